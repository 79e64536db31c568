package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/croftproject/croft/api"
)

// Options of the handler.
type Options struct {
	Control Control
	Guests  Guests
	Logger  *slog.Logger // default: discards
	Version string
	// Metrics takes the request histogram, and is served at /metrics; nil serves none.
	Metrics *prometheus.Registry
	// Debug writes the debug bundle; nil serves none.
	Debug func(ctx context.Context, w io.Writer) error
	// Ready tells whether the daemon can serve, for /healthz; nil: always.
	Ready func() error
	// Identify tells who asks; default: by the credentials of the unix socket's peer, which Server notes.
	Identify func(*http.Request) (Caller, error)
	// KeepAlive is how often an idle watch sends a comment; default 15 s.
	KeepAlive time.Duration
}

// server holds what the handlers share.
type server struct {
	control   Control
	guests    Guests
	log       *slog.Logger
	identify  func(*http.Request) (Caller, error)
	keepAlive time.Duration
	mux       *http.ServeMux
	api       huma.API
	requests  *prometheus.HistogramVec
	lasting   *lasting
}

// New makes the handler of the whole API.
func New(o Options) *Handler {
	s := &server{
		control: o.Control, guests: o.Guests, log: o.Logger, identify: o.Identify, keepAlive: o.KeepAlive,
		mux: http.NewServeMux(), lasting: newLasting(),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.identify == nil {
		s.identify = identifyPeer
	}
	if s.keepAlive == 0 {
		s.keepAlive = 15 * time.Second
	}
	var register prometheus.Registerer
	if o.Metrics != nil {
		register = o.Metrics
	}
	s.requests = newHistogram(register)
	s.api = humago.New(s.mux, apiConfig(o.Version))
	s.resourceRoutes()
	s.imageRoutes()
	s.guestRoutes()
	s.operatorRoutes(o)
	finishSchemas(s.api.OpenAPI().Components.Schemas)
	s.openAPIRoute()
	return &Handler{s}
}

func apiConfig(version string) huma.Config {
	format := huma.Format{
		Marshal:   func(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) },
		Unmarshal: json.Unmarshal,
	}
	return huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "Croft", Version: version,
				Description: "Divides physical servers into virtual servers for many tenants. Errors are problems (RFC 9457) " +
					"with a stable code; resources have an ETag; creates take an Idempotency-Key; lists are watched as " +
					"server-sent events.",
				License: &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
			},
			Components: &huma.Components{Schemas: newRegistry()},
		},
		Formats:                      map[string]huma.Format{"application/json": format, "json": format},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
	}
}

// openAPIRoute serves the description, which is complete only when every route is there.
func (s *server) openAPIRoute() {
	document := sync.OnceValues(func() ([]byte, error) { return json.Marshal(s.api.OpenAPI()) })
	s.mux.HandleFunc("GET /v1/openapi.json", func(w http.ResponseWriter, r *http.Request) {
		data, err := document()
		if err != nil {
			s.fail(w, r, fmt.Errorf("encode the OpenAPI document: %w", err))
			return
		}
		w.Header().Set("Content-Type", "application/openapi+json")
		w.Write(data) //nolint:errcheck // the client is gone
	})
}

// fail answers a request that is not the router's with err's problem.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	note(r.Context(), err)
	writeProblem(w, asProblem(err))
}

// Server is an http.Server for the handler, which knows the peers of a unix socket. Its requests may last: streams and
// uploads have no time limit, only their headers do.
func Server(h http.Handler, log *slog.Logger) *http.Server {
	server := &http.Server{
		Handler: h, ConnContext: connContext,
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
	}
	if log != nil {
		server.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelWarn)
	}
	return server
}

// Listen makes the unix socket at path, for its owner alone. A socket that nobody listens on any more is replaced.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("%s is in the way: it is no socket", path)
		}
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			c.Close() //nolint:errcheck // it was opened to see whether it can be
			return nil, fmt.Errorf("another daemon listens on %s", path)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// answerError is what a handler of the router returns.
func answerError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	note(ctx, err)
	var own *problem
	if errors.As(err, &own) {
		return own
	}
	return &problem{*asProblem(err)}
}

var notThere = api.Errorf(api.CodeNotFound, "there is no such resource")
