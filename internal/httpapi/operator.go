package httpapi

import (
	"context"
	"net/http"
	"net/http/pprof"
	"runtime"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/croftproject/croft/api"
)

// version is what /v1/version answers.
type version struct {
	Version string `json:"version" doc:"Version of the daemon."`
	API     string `json:"api" doc:"Version of the API."`
	Go      string `json:"go" doc:"Version of Go that it was built with."`
}

// operatorRoutes registers what is about the daemon itself.
func (s *server) operatorRoutes(o Options) {
	type versionOutput struct{ Body version }
	huma.Register(s.api, huma.Operation{
		OperationID: "get-version", Method: http.MethodGet, Path: "/v1/version", Tags: []string{"daemon"}, Summary: "Version of the daemon",
	}, func(context.Context, *struct{}) (*versionOutput, error) {
		return &versionOutput{version{Version: o.Version, API: "v1", Go: runtime.Version()}}, nil
	})
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if o.Ready != nil {
			if err := o.Ready(); err != nil {
				note(r.Context(), err)
				writeProblem(w, api.Errorf(api.CodeUnavailable, "not ready: %v", err))
				return
			}
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Write([]byte("ok\n")) //nolint:errcheck // the client is gone
	})
	if o.Metrics != nil {
		s.operatorOnly("GET /metrics", promhttp.HandlerFor(o.Metrics, promhttp.HandlerOpts{}))
	}
	s.operatorOnly("GET /debug/pprof/", http.HandlerFunc(pprof.Index))
	s.operatorOnly("GET /debug/pprof/cmdline", http.HandlerFunc(pprof.Cmdline))
	s.operatorOnly("GET /debug/pprof/profile", http.HandlerFunc(pprof.Profile))
	s.operatorOnly("GET /debug/pprof/symbol", http.HandlerFunc(pprof.Symbol))
	s.operatorOnly("GET /debug/pprof/trace", http.HandlerFunc(pprof.Trace))
	if o.Debug != nil {
		s.bundleRoute(o)
	}
}

func (s *server) operatorOnly(pattern string, h http.Handler) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if err := needOperator(r.Context()); err != nil {
			s.fail(w, r, err)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// bundleRoute serves the debug bundle. A failure after the first byte breaks the connection, so that no half bundle
// passes for a whole one.
func (s *server) bundleRoute(o Options) {
	s.operatorOnly("GET /v1/debug/bundle", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/gzip")
		w.Header().Set("Content-Disposition", `attachment; filename="croft-debug-`+time.Now().UTC().Format("20060102T150405Z")+`.tar.gz"`)
		out := &counter{w: w}
		err := o.Debug(r.Context(), out)
		if err == nil {
			return
		}
		s.log.Error("debug bundle failed", "error", err)
		if out.n > 0 {
			panic(http.ErrAbortHandler)
		}
		w.Header().Del("Content-Disposition")
		s.fail(w, r, err)
	}))
	s.describe(http.MethodGet, "/v1/debug/bundle", &huma.Operation{
		OperationID: "get-debug-bundle", Tags: []string{"daemon"}, Summary: "Everything that a bug report needs, as tar.gz (operator)",
		Responses: map[string]*huma.Response{"200": {Description: "The bundle.", Content: map[string]*huma.MediaType{
			"application/gzip": {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}}}},
	})
}

// counter tells whether anything was written.
type counter struct {
	w http.ResponseWriter
	n int
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += n
	return n, err
}

// describe documents a route that the router does not serve.
func (s *server) describe(method, path string, op *huma.Operation) {
	op.Method, op.Path = method, path
	s.api.OpenAPI().AddOperation(op)
}
