package httpapi

import (
	"context"
	"net/http"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/croftproject/croft/api"
)

// imageRoutes registers import and build: images are made by jobs.
func (s *server) imageRoutes() {
	s.importRoute()
	s.buildRoute()
}

type jobOutput = resourceOutput[api.Job]

func jobAnswer(tenant string, j *api.Job) *jobOutput {
	return &jobOutput{
		Status: http.StatusAccepted, ETag: etag(j.Revision), Location: "/v1/tenants/" + tenant + "/jobs/" + j.Name, Body: j,
	}
}

type importInput struct {
	Call
	InTenant
	Keyed
	Name      string   `query:"name" required:"true" maxLength:"63" doc:"Name of the image."`
	Shared    bool     `query:"shared" doc:"Visible to every tenant (operator)."`
	Labels    []string `query:"labels,explode" doc:"Labels, as key=value; repeated or separated by commas."`
	Registry  string   `query:"registry" maxLength:"512" doc:"OCI reference to import from, instead of a body."`
	PlainHTTP bool     `query:"plainHTTP" doc:"Ask the registry over HTTP."`
}

func (s *server) importRoute() {
	op := huma.Operation{
		OperationID: "import-image", Method: http.MethodPost, Path: "/v1/tenants/{tenant}/images/import", Tags: []string{"images"},
		Summary: "Import an image", DefaultStatus: http.StatusAccepted,
		Description: "The body is the image itself, in any form that is known: a tar of a root tree, an OCI layout or a docker " +
			"archive (plain, gzip or zstd), qcow2, raw, or ISO. It is read as a stream, of any size, and the answer comes once it is " +
			"imported. With registry there is no body, and the answer comes at once: watch the job.",
	}
	huma.Register(s.api, op, answered(func(ctx context.Context, in *importInput) (*jobOutput, error) {
		if !nameForm.MatchString(in.Tenant) {
			return nil, api.Errorf(api.CodeNotFound, "there is no tenant %q", clip(in.Tenant))
		}
		labels, err := (&ListQuery{Labels: in.Labels}).options(false)
		if err != nil {
			return nil, err
		}
		i := ImageImport{Name: in.Name, Shared: in.Shared, Labels: labels.Labels, Registry: in.Registry, PlainHTTP: in.PlainHTTP}
		body := in.request().Body
		switch {
		case in.Registry == "" && in.request().ContentLength == 0:
			return nil, api.Errorf(api.CodeMalformed, "there is nothing to import: send the image as the body, or name a registry reference")
		case in.Registry == "":
			i.Body = body
		}
		job, err := s.control.ImportImage(ctx, callerOf(ctx), in.Tenant, i)
		if err != nil {
			return nil, err
		}
		return jobAnswer(in.Tenant, job), nil
	}))
	s.describeBody(op.Path, op.Method, "application/octet-stream", false, &huma.Schema{Type: huma.TypeString, Format: "binary"})
}

// imageBuild is the body of a build.
type imageBuild struct {
	Name    string `json:"name" doc:"Name of the image."`
	Builtin string `json:"builtin" doc:"What to build: micro, or debian-12."`
	Shared  bool   `json:"shared,omitempty" doc:"Visible to every tenant (operator)."`
}

func (s *server) buildRoute() {
	decode := newDecoder[imageBuild](s.api.OpenAPI().Components.Schemas)
	op := huma.Operation{
		OperationID: "build-image", Method: http.MethodPost, Path: "/v1/tenants/{tenant}/images/build", Tags: []string{"images"},
		Summary: "Build a built-in image", DefaultStatus: http.StatusAccepted,
	}
	huma.Register(s.api, op, answered(func(ctx context.Context, in *struct {
		Call
		InTenant
		Keyed
	}) (*jobOutput, error) {
		if !nameForm.MatchString(in.Tenant) {
			return nil, api.Errorf(api.CodeNotFound, "there is no tenant %q", clip(in.Tenant))
		}
		data, err := readBody(in.request())
		if err != nil {
			return nil, err
		}
		var b imageBuild
		if err := decode.decode(data, &b); err != nil {
			return nil, err
		}
		job, err := s.control.BuildImage(ctx, callerOf(ctx), in.Tenant, b.Name, b.Builtin, b.Shared)
		if err != nil {
			return nil, err
		}
		return jobAnswer(in.Tenant, job), nil
	}))
	s.describeBody(op.Path, op.Method, "application/json", true, s.ref(reflect.TypeFor[imageBuild]()))
}

// powerRoutes registers the acts on a server's power.
func (s *server) powerRoutes() {
	type input struct {
		InTenant
		Named
		Keyed
		Action string `path:"action" enum:"start,stop,restart,pause,resume" doc:"What to do."`
		Force  bool   `query:"force" doc:"Stop hard at once, as if the plug was pulled."`
	}
	op := huma.Operation{
		OperationID: "power-server", Method: http.MethodPost, Path: "/v1/tenants/{tenant}/servers/{name}/actions/{action}",
		Tags: []string{"servers"}, Summary: "Start, stop, restart, pause or resume a server", DefaultStatus: http.StatusAccepted,
	}
	servers := &kind[api.Server, api.ServerSpec]{server: s, singular: "server", plural: "servers",
		meta: func(t *api.Server) *api.Meta { return &t.Meta }}
	huma.Register(s.api, op, answered(func(ctx context.Context, in *input) (*resourceOutput[api.Server], error) {
		if err := servers.checkNames(in.Tenant, in.Name); err != nil {
			return nil, err
		}
		server, err := s.control.Power(ctx, callerOf(ctx), in.Tenant, in.Name, api.PowerAction(in.Action), in.Force)
		if err != nil {
			return nil, err
		}
		return servers.output(http.StatusAccepted, server), nil
	}))
}

// usagePage is what /usage answers.
type usagePage struct {
	Items []api.Usage `json:"items"`
}

// usageRoutes registers what servers use now.
func (s *server) usageRoutes() {
	type output struct{ Body usagePage }
	usage := func(ctx context.Context, tenant string) (*output, error) {
		items, err := s.guests.Usage(ctx, callerOf(ctx), tenant)
		if err != nil {
			return nil, err
		}
		if items == nil {
			items = []api.Usage{}
		}
		return &output{usagePage{Items: items}}, nil
	}
	op := huma.Operation{
		OperationID: "list-usage", Method: http.MethodGet, Path: "/v1/tenants/{tenant}/usage", Tags: []string{"usage"},
		Summary: "What the tenant's servers use now",
	}
	huma.Register(s.api, op, answered(func(ctx context.Context, in *struct{ InTenant }) (*output, error) {
		if !nameForm.MatchString(in.Tenant) {
			return nil, api.Errorf(api.CodeNotFound, "there is no tenant %q", clip(in.Tenant))
		}
		return usage(ctx, in.Tenant)
	}))
	op.OperationID, op.Path = "list-all-usage", strings.Replace(op.Path, "/tenants/{tenant}", "", 1)
	op.Summary = "What the servers of all tenants use now (operator)"
	huma.Register(s.api, op, answered(func(ctx context.Context, _ *struct{}) (*output, error) {
		if err := needOperator(ctx); err != nil {
			return nil, err
		}
		return usage(ctx, "")
	}))
}
