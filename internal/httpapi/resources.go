package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/croftproject/croft/api"
)

// kind is one kind of resource and its routes.
type kind[T, S any] struct {
	*server
	singular, plural string
	global           bool // not of a tenant: hosts and tenants
	resources        func() Resources[T, S]
	meta             func(*T) *api.Meta
	create, update   decoder
}

// replace is the body of a PUT: what a GET answered, changed. What only Croft writes is taken and ignored, but for the
// revision, which counts as If-Match.
type replace[S any] struct {
	Name     string            `json:"name,omitempty" doc:"Another name renames the resource."`
	Labels   map[string]string `json:"labels,omitempty"`
	Spec     S                 `json:"spec"`
	Revision int64             `json:"revision,omitempty" doc:"Revision that was changed; the same as If-Match."`
	Tenant   string            `json:"tenant,omitempty" readOnly:"true"`
	ID       string            `json:"id,omitempty" readOnly:"true"`
	Created  string            `json:"created,omitempty" readOnly:"true"`
	Status   json.RawMessage   `json:"status,omitempty" readOnly:"true"`
}

// Inputs of the routes are put together from these; the router fills exported fields only, of embedded structs too.

// Call gives a handler the request.
type Call struct{ ctx huma.Context }

// Resolve keeps the request: bodies are read by the handlers, with limits and pointers of their own.
func (c *Call) Resolve(ctx huma.Context) []error {
	c.ctx = ctx
	return nil
}

func (c *Call) request() *http.Request {
	r, _ := humago.Unwrap(c.ctx)
	return r
}

// InTenant is the tenant in the path.
type InTenant struct {
	Tenant string `path:"tenant" doc:"Tenant that owns the resource."`
}

// Named is the name in the path.
type Named struct {
	Name string `path:"name" doc:"Name, or id."`
}

// Matched is the precondition of a change.
type Matched struct {
	IfMatch string `header:"If-Match" doc:"ETag that the resource must still have; else 412."`
}

// Keyed makes a request repeatable.
type Keyed struct {
	Key string `header:"Idempotency-Key" doc:"Word of the caller's own choice (at most 255 characters): the same request with the same key is done once."`
}

type resourceOutput[T any] struct {
	Status   int    `json:"-"`
	ETag     string `header:"ETag" doc:"Revision of the resource, quoted."`
	Location string `header:"Location" doc:"Path of the resource."`
	Body     *T
}

// resourceRoutes registers every kind.
func (s *server) resourceRoutes() {
	r := s.api.OpenAPI().Components.Schemas
	servers := &kind[api.Server, api.ServerSpec]{server: s, singular: "server", plural: "servers",
		resources: s.control.Servers, meta: func(t *api.Server) *api.Meta { return &t.Meta }}
	servers.writable(r).all(true)
	networks := &kind[api.Network, api.NetworkSpec]{server: s, singular: "network", plural: "networks",
		resources: s.control.Networks, meta: func(t *api.Network) *api.Meta { return &t.Meta }}
	networks.writable(r).all(true)
	images := &kind[api.Image, api.ImageSpec]{server: s, singular: "image", plural: "images",
		resources: s.control.Images, meta: func(t *api.Image) *api.Meta { return &t.Meta }}
	images.writable(r).all(false)
	hosts := &kind[api.Host, api.HostSpec]{server: s, singular: "host", plural: "hosts", global: true,
		resources: s.control.Hosts, meta: func(t *api.Host) *api.Meta { return &t.Meta }}
	hosts.writable(r).all(false)
	tenants := &kind[api.Tenant, api.TenantSpec]{server: s, singular: "tenant", plural: "tenants", global: true,
		resources: s.control.Tenants, meta: func(t *api.Tenant) *api.Meta { return &t.Meta }}
	tenants.writable(r).all(true)
	jobs := &kind[api.Job, api.JobSpec]{server: s, singular: "job", plural: "jobs",
		resources: s.control.Jobs, meta: func(t *api.Job) *api.Meta { return &t.Meta }}
	jobs.lists()
	jobs.get()
	jobs.delete()
	events := &kind[api.Event, struct{}]{server: s, singular: "event", plural: "events", resources: s.control.Events}
	events.lists()
}

func (k *kind[T, S]) writable(r huma.Registry) *kind[T, S] {
	k.create = newDecoder[Create[S]](r)
	k.update = newDecoder[replace[S]](r)
	return k
}

// all registers the routes of a kind that is read and written.
func (k *kind[T, S]) all(creatable bool) {
	k.lists()
	k.get()
	if creatable {
		k.post()
	}
	k.put()
	k.patch()
	k.delete()
}

// path of the kind's collection.
func (k *kind[T, S]) path() string {
	if k.global {
		return "/v1/" + k.plural
	}
	return "/v1/tenants/{tenant}/" + k.plural
}

func (k *kind[T, S]) operation(method, verb, path, summary string, status int) huma.Operation {
	return huma.Operation{
		OperationID: verb + "-" + k.singular, Method: method, Path: path, Summary: summary, Tags: []string{k.plural},
		DefaultStatus: status,
	}
}

// register registers an operation in the two shapes that there are: with a tenant, and without.
func register[G, L, O any](global bool, s *server, op huma.Operation, onGlobal func(context.Context, *G) (*O, error), onTenant func(context.Context, *L) (*O, error)) {
	if global {
		huma.Register(s.api, op, answered(onGlobal))
		return
	}
	huma.Register(s.api, op, answered(onTenant))
}

// answered turns a handler's error into the router's.
func answered[I, O any](h func(context.Context, *I) (*O, error)) func(context.Context, *I) (*O, error) {
	return func(ctx context.Context, in *I) (*O, error) {
		out, err := h(ctx, in)
		return out, answerError(ctx, err)
	}
}

// describeBody documents the body of an operation that reads it by itself.
func (s *server) describeBody(path, method, mediaType string, required bool, schema *huma.Schema) {
	item := s.api.OpenAPI().Paths[path]
	op := map[string]*huma.Operation{
		http.MethodPost: item.Post, http.MethodPut: item.Put, http.MethodPatch: item.Patch,
	}[method]
	op.RequestBody = &huma.RequestBody{Required: required, Content: map[string]*huma.MediaType{mediaType: {Schema: schema}}}
}

func article(noun string) string {
	if strings.ContainsRune("aeiou", rune(noun[0])) {
		return "an " + noun
	}
	return "a " + noun
}

func (s *server) ref(t reflect.Type) *huma.Schema {
	return s.api.OpenAPI().Components.Schemas.Schema(t, true, t.Name())
}

var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// checkNames answers names that no resource can have, so that none of them reaches a key of the store.
func (k *kind[T, S]) checkNames(tenant, name string) error {
	if !k.global && !nameForm.MatchString(tenant) {
		return api.Errorf(api.CodeNotFound, "there is no tenant %q", clip(tenant))
	}
	if !nameForm.MatchString(name) {
		return api.Errorf(api.CodeNotFound, "there is no %s %q", k.singular, clip(name))
	}
	return nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// output makes the answer out of a resource.
func (k *kind[T, S]) output(status int, t *T) *resourceOutput[T] {
	m := k.meta(t)
	path := strings.Replace(k.path(), "{tenant}", m.Tenant, 1) + "/" + m.Name
	return &resourceOutput[T]{Status: status, ETag: etag(m.Revision), Location: path, Body: t}
}

func etag(revision int64) string { return `"` + strconv.FormatInt(revision, 10) + `"` }

// ifMatch reads the header (RFC 9110, 13.1.1): 0 where there is none or any revision will do.
func ifMatch(header string) (int64, error) {
	if header == "" || header == "*" {
		return 0, nil
	}
	text, ok := strings.CutPrefix(header, `"`)
	text, quoted := strings.CutSuffix(text, `"`)
	revision, err := strconv.ParseInt(text, 10, 64)
	if !ok || !quoted || err != nil || revision <= 0 {
		return 0, api.Errorf(api.CodeConflict, "If-Match is %q, which is no ETag that this API gave; send it as it was received", clip(header))
	}
	return revision, nil
}

func (k *kind[T, S]) get() {
	handle := func(ctx context.Context, tenant, name string) (*resourceOutput[T], error) {
		if err := k.checkNames(tenant, name); err != nil {
			return nil, err
		}
		t, err := k.resources().Get(ctx, callerOf(ctx), tenant, name)
		if err != nil {
			return nil, err
		}
		return k.output(http.StatusOK, t), nil
	}
	op := k.operation(http.MethodGet, "get", k.path()+"/{name}", "Show "+article(k.singular), http.StatusOK)
	register(k.global, k.server, op,
		func(ctx context.Context, in *struct{ Named }) (*resourceOutput[T], error) {
			return handle(ctx, "", in.Name)
		},
		func(ctx context.Context, in *struct {
			InTenant
			Named
		}) (*resourceOutput[T], error) {
			return handle(ctx, in.Tenant, in.Name)
		})
}

func (k *kind[T, S]) post() {
	handle := func(ctx context.Context, tenant string, r *http.Request) (*resourceOutput[T], error) {
		data, err := readBody(r)
		if err != nil {
			return nil, err
		}
		var c Create[S]
		if err := k.create.decode(data, &c); err != nil {
			return nil, err
		}
		if !k.global && !nameForm.MatchString(tenant) {
			return nil, k.checkNames(tenant, "x")
		}
		t, err := k.resources().Create(ctx, callerOf(ctx), tenant, c)
		if err != nil {
			return nil, err
		}
		return k.output(http.StatusAccepted, t), nil
	}
	op := k.operation(http.MethodPost, "create", k.path(), "Create "+article(k.singular), http.StatusAccepted)
	register(k.global, k.server, op,
		func(ctx context.Context, in *struct {
			Call
			Keyed
		}) (*resourceOutput[T], error) {
			return handle(ctx, "", in.request())
		},
		func(ctx context.Context, in *struct {
			Call
			InTenant
			Keyed
		}) (*resourceOutput[T], error) {
			return handle(ctx, in.Tenant, in.request())
		})
	k.describeBody(op.Path, op.Method, "application/json", true, k.ref(k.create.typ))
}

func (k *kind[T, S]) put() {
	handle := func(ctx context.Context, tenant, name, match string, r *http.Request) (*resourceOutput[T], error) {
		if err := k.checkNames(tenant, name); err != nil {
			return nil, err
		}
		revision, err := ifMatch(match)
		if err != nil {
			return nil, err
		}
		data, err := readBody(r)
		if err != nil {
			return nil, err
		}
		var body replace[S]
		if err := k.update.decode(data, &body); err != nil {
			return nil, err
		}
		if revision == 0 {
			revision = body.Revision
		}
		return k.replace(ctx, tenant, name, body, revision)
	}
	op := k.operation(http.MethodPut, "replace", k.path()+"/{name}", "Replace the spec and labels of "+article(k.singular), http.StatusOK)
	register(k.global, k.server, op,
		func(ctx context.Context, in *struct {
			Call
			Named
			Matched
		}) (*resourceOutput[T], error) {
			return handle(ctx, "", in.Name, in.IfMatch, in.request())
		},
		func(ctx context.Context, in *struct {
			Call
			InTenant
			Named
			Matched
		}) (*resourceOutput[T], error) {
			return handle(ctx, in.Tenant, in.Name, in.IfMatch, in.request())
		})
	k.describeBody(op.Path, op.Method, "application/json", true, k.ref(k.update.typ))
}

func (k *kind[T, S]) replace(ctx context.Context, tenant, name string, body replace[S], revision int64) (*resourceOutput[T], error) {
	t, err := k.resources().Update(ctx, callerOf(ctx), tenant, name,
		Update[S]{Name: body.Name, Labels: body.Labels, Spec: body.Spec, Revision: revision})
	if err != nil {
		return nil, err
	}
	return k.output(http.StatusOK, t), nil
}

// patchTries is how often a patch without If-Match is applied anew when another writer was faster.
const patchTries = 5

func (k *kind[T, S]) patch() {
	handle := func(ctx context.Context, tenant, name, match string, r *http.Request) (*resourceOutput[T], error) {
		if err := k.checkNames(tenant, name); err != nil {
			return nil, err
		}
		revision, err := ifMatch(match)
		if err != nil {
			return nil, err
		}
		patch, err := readPatch(r)
		if err != nil {
			return nil, err
		}
		for try := 1; ; try++ {
			out, err := k.patchOnce(ctx, tenant, name, patch, revision)
			if err == nil || revision != 0 || try == patchTries || api.CodeOf(err) != api.CodeConflict {
				return out, err
			}
		}
	}
	op := k.operation(http.MethodPatch, "patch", k.path()+"/{name}", "Change fields of "+article(k.singular)+" (JSON merge patch, RFC 7396)", http.StatusOK)
	register(k.global, k.server, op,
		func(ctx context.Context, in *struct {
			Call
			Named
			Matched
		}) (*resourceOutput[T], error) {
			return handle(ctx, "", in.Name, in.IfMatch, in.request())
		},
		func(ctx context.Context, in *struct {
			Call
			InTenant
			Named
			Matched
		}) (*resourceOutput[T], error) {
			return handle(ctx, in.Tenant, in.Name, in.IfMatch, in.request())
		})
	k.describeBody(op.Path, op.Method, "application/merge-patch+json", true, &huma.Schema{Type: huma.TypeObject,
		Description: "The fields of the resource that change; null puts a field back to its default."})
}

func readPatch(r *http.Request) (map[string]any, error) {
	data, err := readBody(r)
	if err != nil {
		return nil, err
	}
	doc, err := parse(data)
	if err != nil {
		return nil, err
	}
	patch, ok := doc.(map[string]any)
	if !ok {
		return nil, api.Errorf(api.CodeMalformed, "the body must be a JSON object: a merge patch (RFC 7396)")
	}
	return patch, nil
}

// patchOnce applies a patch to the resource as it is now; revision, if not 0, is the one that it must have.
func (k *kind[T, S]) patchOnce(ctx context.Context, tenant, name string, patch map[string]any, revision int64) (*resourceOutput[T], error) {
	current, err := k.resources().Get(ctx, callerOf(ctx), tenant, name)
	if err != nil {
		return nil, err
	}
	if revision == 0 {
		revision = k.meta(current).Revision
	}
	doc, err := document(current)
	if err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", k.singular, name, err)
	}
	for _, own := range []string{"status", "tenant", "id", "created", "revision"} {
		delete(doc, own)
	}
	if wanted, ok := patch["revision"].(json.Number); ok && wanted.String() != strconv.FormatInt(k.meta(current).Revision, 10) {
		return nil, api.Errorf(api.CodeConflict, "%s %s was changed meanwhile: it is at revision %d", k.singular, name, k.meta(current).Revision)
	}
	merged, err := json.Marshal(mergePatch(doc, patch))
	if err != nil {
		return nil, fmt.Errorf("encode the patched %s %s: %w", k.singular, name, err)
	}
	var body replace[S]
	if err := k.update.decode(merged, &body); err != nil {
		return nil, err
	}
	return k.replace(ctx, tenant, name, body, revision)
}

// document is a resource as a JSON document.
func document(resource any) (doc map[string]any, err error) {
	encoded, err := json.Marshal(resource)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(encoded))
	d.UseNumber()
	err = d.Decode(&doc)
	return doc, err
}

func (k *kind[T, S]) delete() {
	handle := func(ctx context.Context, tenant, name, match string, force bool) (*resourceOutput[T], error) {
		if err := k.checkNames(tenant, name); err != nil {
			return nil, err
		}
		revision, err := ifMatch(match)
		if err != nil {
			return nil, err
		}
		t, err := k.resources().Delete(ctx, callerOf(ctx), tenant, name, DeleteOptions{Revision: revision, Force: force})
		if err != nil {
			return nil, err
		}
		return k.output(http.StatusAccepted, t), nil
	}
	type Forced struct {
		Force bool `query:"force" doc:"Stop a running server hard first; without it a running server is refused with wrong-state."`
	}
	op := k.operation(http.MethodDelete, "delete", k.path()+"/{name}", "Delete "+article(k.singular), http.StatusAccepted)
	register(k.global, k.server, op,
		func(ctx context.Context, in *struct {
			Named
			Matched
		}) (*resourceOutput[T], error) {
			return handle(ctx, "", in.Name, in.IfMatch, false)
		},
		func(ctx context.Context, in *struct {
			InTenant
			Named
			Matched
			Forced
		}) (*resourceOutput[T], error) {
			return handle(ctx, in.Tenant, in.Name, in.IfMatch, in.Force)
		})
}
