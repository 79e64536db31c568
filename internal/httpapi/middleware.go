package httpapi

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/croftproject/croft/api"
)

// keyLimit is the most characters of an Idempotency-Key.
const keyLimit = 255

// recorder remembers how a request was answered.
type recorder struct {
	http.ResponseWriter
	status int
	code   string // of the problem that it was answered with
	err    error  // what was behind an internal error
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach Flush and the deadlines.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Hijack takes the connection over, for WebSockets.
func (r *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	r.status = http.StatusSwitchingProtocols
	return http.NewResponseController(r.ResponseWriter).Hijack()
}

// outcome is where handlers leave what the log should know of a failed request.
type outcomeKey struct{}

// note records the error that a request is answered with.
func note(ctx context.Context, err error) {
	if r, ok := ctx.Value(outcomeKey{}).(*recorder); ok {
		r.code = string(asProblem(err).Code)
		if api.CodeOf(err) == api.CodeInternal {
			r.err = err
		}
	}
}

// ServeHTTP identifies the caller, routes, and logs and counts what became of the request.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	rec := &recorder{ResponseWriter: w}
	who, err := s.identify(r)
	who.Key = r.Header.Get("Idempotency-Key")
	ctx := context.WithValue(r.Context(), outcomeKey{}, rec)
	r = r.WithContext(context.WithValue(ctx, callerKey{}, who))
	defer func() {
		if p := recover(); p != nil {
			s.panicked(rec, r, p)
		}
		s.finish(rec, r, who, time.Since(began))
	}()
	if err == nil && len(who.Key) > keyLimit {
		err = api.Errorf(api.CodeInvalid, "the Idempotency-Key is longer than %d characters", keyLimit)
	}
	if err == nil {
		err = checkLength(r)
	}
	if err != nil && r.URL.Path != "/healthz" {
		note(r.Context(), err)
		if r.ContentLength > bodyLimit {
			rec.Header().Set("Connection", "close")
		}
		writeProblem(rec, asProblem(err))
		return
	}
	s.route(rec, r)
}

// checkLength refuses a large body by its announced length, before any of it is read.
func checkLength(r *http.Request) error {
	if r.ContentLength > bodyLimit && !strings.HasSuffix(r.URL.Path, "/images/import") {
		return tooLarge()
	}
	return nil
}

// route hands the request to its handler; what has none is answered with a problem.
func (s *server) route(w *recorder, r *http.Request) {
	h, pattern := s.mux.Handler(r)
	if pattern != "" {
		s.mux.ServeHTTP(w, r)
		return
	}
	probe := &discard{header: http.Header{}}
	h.ServeHTTP(probe, r)
	var p *api.Problem
	switch {
	case probe.status == http.StatusMethodNotAllowed:
		w.Header().Set("Allow", probe.header.Get("Allow"))
		p = api.Errorf(api.CodeMethod, "%s is not possible here; %s is", r.Method, probe.header.Get("Allow"))
	case probe.status >= 300 && probe.status < 400:
		h.ServeHTTP(w, r)
		return
	default:
		p = api.Errorf(api.CodeNotFound, "there is no %s in this API; /v1/openapi.json describes it", r.URL.Path)
	}
	note(r.Context(), p)
	writeProblem(w, p)
}

// discard is a response that only its status and header are wanted of.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(status int)      { d.status = status }

func (s *server) panicked(w *recorder, r *http.Request, p any) {
	if p == http.ErrAbortHandler {
		panic(p)
	}
	s.log.Error("panic in a request", "method", r.Method, "path", r.URL.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	w.code = string(api.CodeInternal)
	if w.status == 0 {
		writeProblem(w, api.Errorf(api.CodeInternal, "the daemon failed to do this; its log has the reason"))
	}
}

// finish counts the request and logs it: reads at debug level; writes, which are the audit log, at info.
func (s *server) finish(w *recorder, r *http.Request, who Caller, took time.Duration) {
	pattern := r.Pattern
	if pattern == "" {
		pattern = "none"
	}
	s.requests.WithLabelValues(pattern, strconv.Itoa(w.status)).Observe(took.Seconds())
	attrs := []slog.Attr{
		slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Int("status", w.status),
		slog.Duration("duration", took), slog.String("caller", who.Name),
	}
	if w.code != "" {
		attrs = append(attrs, slog.String("code", w.code))
	}
	if w.err != nil {
		attrs = append(attrs, slog.String("error", w.err.Error()))
	}
	switch {
	case isWrite(r):
		outcome := "done"
		if w.status >= 400 || w.code != "" {
			outcome = "refused"
		}
		if w.status >= 500 {
			outcome = "failed"
		}
		attrs = append(attrs, slog.String("outcome", outcome), slog.String("key", who.Key))
		s.log.LogAttrs(r.Context(), slog.LevelInfo, "audit", attrs...)
	case w.status >= 500:
		s.log.LogAttrs(r.Context(), slog.LevelError, "request", attrs...)
	default:
		s.log.LogAttrs(r.Context(), slog.LevelDebug, "request", attrs...)
	}
}

// isWrite tells whether a request belongs in the audit log: what changes something, and who was inside a guest.
func isWrite(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return strings.HasSuffix(r.URL.Path, "/console") || strings.HasSuffix(r.URL.Path, "/exec") ||
			strings.HasSuffix(r.URL.Path, "/display")
	}
	return true
}

func newHistogram(r prometheus.Registerer) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "croft_http_request_duration_seconds", Help: "Time that requests to the API took, by route and status.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5, 30},
	}, []string{"route", "status"})
	if r != nil {
		r.MustRegister(h)
	}
	return h
}
