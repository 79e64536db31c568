package httpapi_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/httpapi/httpapitest"
)

// lab is a served API on a unix socket.
type lab struct {
	*testing.T
	fake   *httpapitest.Fake
	guests *httpapitest.Guests
	http   *http.Client
	socket string
	log    *safeBuffer
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func serve(t *testing.T, edit func(*httpapi.Options)) *lab {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	fake := httpapitest.New()
	l := &lab{T: t, fake: fake, guests: httpapitest.NewGuests(fake), socket: filepath.Join(dir, "s"), log: &safeBuffer{}}
	o := httpapi.Options{
		Control: fake, Guests: l.guests, Version: "test", Metrics: prometheus.NewRegistry(), KeepAlive: 20 * time.Millisecond,
		Logger: slog.New(slog.NewJSONHandler(l.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Debug: func(_ context.Context, w io.Writer) error {
			_, err := io.WriteString(w, "bundle")
			return err
		},
	}
	if edit != nil {
		edit(&o)
	}
	listener, err := httpapi.Listen(l.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := httpapi.Server(httpapi.New(o), o.Logger)
	go server.Serve(listener)
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", l.socket)
	}}
	l.http = &http.Client{Transport: transport}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		server.Close()
	})
	return l
}

func (l *lab) do(method, path, body string, headers ...string) (*http.Response, string) {
	l.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	r, err := http.NewRequest(method, "http://croft"+path, reader)
	if err != nil {
		l.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	answer, err := l.http.Do(r)
	if err != nil {
		l.Fatal(err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		l.Fatal(err)
	}
	return answer, string(data)
}

func (l *lab) want(status int, method, path, body string, headers ...string) (*http.Response, string) {
	l.Helper()
	answer, text := l.do(method, path, body, headers...)
	if answer.StatusCode != status {
		l.Fatalf("%s %s: %d, want %d: %s", method, path, answer.StatusCode, status, text)
	}
	return answer, text
}

const (
	servers = "/v1/tenants/default/servers"
	web     = `{"name":"web","labels":{"tier":"front"},"spec":{"model":"os","image":"micro","memory":{"limit":"256MiB"},"cpu":{"cap":1.5}}}`
)

func TestBadInput(t *testing.T) {
	l := serve(t, nil)
	l.want(202, "POST", servers, web)
	spec := func(s string) string { return `{"name":"x","spec":{"model":"os","image":"micro",` + s + `}}` }
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		code               api.Code
		pointer            string
	}{
		"no JSON":              {"POST", servers, `{"name":`, 400, api.CodeMalformed, ""},
		"not JSON":             {"POST", servers, `name: x`, 400, api.CodeMalformed, ""},
		"empty":                {"POST", servers, ``, 400, api.CodeMalformed, ""},
		"array":                {"POST", servers, `[]`, 400, api.CodeMalformed, ""},
		"null":                 {"POST", servers, `null`, 400, api.CodeMalformed, ""},
		"trailing":             {"POST", servers, web + `{}`, 400, api.CodeMalformed, ""},
		"twice":                {"POST", servers, spec(`"cpu":{"cap":"1","cap":"2"}`), 400, api.CodeMalformed, "/spec/cpu/cap"},
		"deep":                 {"POST", servers, strings.Repeat(`{"a":`, 500) + "1" + strings.Repeat("}", 500), 400, api.CodeMalformed, ""},
		"depth bomb":           {"POST", servers, strings.Repeat(`[`, 1<<19), 400, api.CodeMalformed, ""},
		"unknown field":        {"POST", servers, spec(`"memmory":{}`), 422, api.CodeUnknownField, "/spec/memmory"},
		"unknown nested":       {"POST", servers, spec(`"cpu":{"cores":1}`), 422, api.CodeUnknownField, "/spec/cpu/cores"},
		"other case":           {"POST", servers, spec(`"CPU":{}`), 422, api.CodeUnknownField, "/spec/CPU"},
		"in a list":            {"POST", servers, spec(`"ports":[{"network":"a","speed":1}]`), 422, api.CodeUnknownField, "/spec/ports/0/speed"},
		"unknown model":        {"POST", servers, `{"name":"x","spec":{"model":"jail","image":"micro"}}`, 422, api.CodeInvalid, "/spec/model"},
		"no model":             {"POST", servers, `{"name":"x","spec":{"image":"micro"}}`, 422, api.CodeInvalid, "/spec/model"},
		"no name":              {"POST", servers, `{"spec":{"model":"os","image":"micro"}}`, 422, api.CodeInvalid, "/name"},
		"wrong type":           {"POST", servers, spec(`"cpu":{"count":"two"}`), 422, api.CodeInvalid, "/spec/cpu/count"},
		"object for text":      {"POST", servers, spec(`"host":{}`), 422, api.CodeInvalid, "/spec/host"},
		"fraction":             {"POST", servers, spec(`"cpu":{"count":1.5}`), 422, api.CodeInvalid, "/spec/cpu/count"},
		"negative":             {"POST", servers, spec(`"cpu":{"count":-1}`), 422, api.CodeInvalid, "/spec/cpu/count"},
		"absurd":               {"POST", servers, spec(`"cpu":{"count":99999}`), 422, api.CodeInvalid, "/spec/cpu/count"},
		"int overflow":         {"POST", servers, spec(`"pids":99999999999999999999`), 422, api.CodeInvalid, "/spec/pids"},
		"float overflow":       {"POST", servers, spec(`"pids":1e999`), 422, api.CodeInvalid, "/spec/pids"},
		"zero count":           {"POST", servers, spec(`"cpu":{"count":0}`), 422, api.CodeInvalid, "/spec/cpu/count"},
		"zero cap":             {"POST", servers, spec(`"cpu":{"cap":"0"}`), 422, api.CodeInvalid, "/spec/cpu/cap"},
		"zero limit":           {"POST", servers, spec(`"memory":{"limit":0}`), 422, api.CodeInvalid, "/spec/memory/limit"},
		"negative quantity":    {"POST", servers, spec(`"memory":{"limit":"-1MiB"}`), 422, api.CodeInvalid, "/spec/memory/limit"},
		"quantity overflow":    {"POST", servers, spec(`"memory":{"limit":"99999999999PiB"}`), 422, api.CodeInvalid, "/spec/memory/limit"},
		"no quantity":          {"POST", servers, spec(`"memory":{"limit":"lots"}`), 422, api.CodeInvalid, "/spec/memory/limit"},
		"bool for quantity":    {"POST", servers, spec(`"memory":{"limit":true}`), 422, api.CodeInvalid, "/spec/memory/limit"},
		"list for quantity":    {"POST", servers, spec(`"cpu":{"cap":["1"]}`), 422, api.CodeInvalid, "/spec/cpu/cap"},
		"bad duration":         {"POST", servers, spec(`"stopTimeout":"soon"`), 422, api.CodeInvalid, "/spec/stopTimeout"},
		"number for duration":  {"POST", servers, spec(`"stopTimeout":30`), 422, api.CodeInvalid, "/spec/stopTimeout"},
		"bad address":          {"POST", servers, spec(`"ports":[{"network":"a","address":"300.1.1.1"}]`), 422, api.CodeInvalid, "/spec/ports/0/address"},
		"bad prefix":           {"POST", "/v1/tenants/default/networks", `{"name":"x","spec":{"subnets":[{"prefix":"10.0.0.0"}]}}`, 422, api.CodeInvalid, "/spec/subnets/0/prefix"},
		"label with dots":      {"POST", servers, `{"name":"x","labels":{"a.b/c":1},"spec":{"model":"os","image":"micro"}}`, 422, api.CodeInvalid, "/labels/a.b~1c"},
		"status in a create":   {"POST", servers, `{"name":"x","status":{},"spec":{"model":"os","image":"micro"}}`, 422, api.CodeUnknownField, "/status"},
		"control's own":        {"POST", servers, `{"name":"x","spec":{"model":"os","image":"none"}}`, 404, api.CodeNotFound, "/spec/image"},
		"duplicate":            {"POST", servers, web, 409, api.CodeExists, ""},
		"media type":           {"POST", servers + "?", `a=b`, 400, api.CodeMalformed, ""},
		"no such server":       {"GET", servers + "/nope", ``, 404, api.CodeNotFound, ""},
		"path in name":         {"GET", servers + "/..%2f..%2fetc", ``, 404, api.CodeNotFound, ""},
		"shell in name":        {"GET", servers + "/$(id)", ``, 404, api.CodeNotFound, ""},
		"unicode in name":      {"GET", servers + "/w%C3%A9b", ``, 404, api.CodeNotFound, ""},
		"long name":            {"GET", servers + "/" + strings.Repeat("a", 300), ``, 404, api.CodeNotFound, ""},
		"path in tenant":       {"GET", "/v1/tenants/a%2fb/servers", ``, 404, api.CodeNotFound, ""},
		"no such path":         {"GET", "/v2/things", ``, 404, api.CodeNotFound, ""},
		"no such action":       {"POST", servers + "/web/actions/explode", ``, 422, api.CodeInvalid, "path:action"},
		"method":               {"DELETE", servers, ``, 405, api.CodeMethod, ""},
		"image create":         {"POST", "/v1/tenants/default/images", `{}`, 405, api.CodeMethod, ""},
		"limit 0":              {"GET", servers + "?limit=0", ``, 422, api.CodeInvalid, "?limit"},
		"limit text":           {"GET", servers + "?limit=many", ``, 422, api.CodeInvalid, "?limit"},
		"limit large":          {"GET", servers + "?limit=100000", ``, 422, api.CodeInvalid, "?limit"},
		"bad cursor":           {"GET", servers + "?cursor=zz", ``, 422, api.CodeInvalid, ""},
		"unknown parameter":    {"GET", servers + "?lables=a=b", ``, 422, api.CodeUnknownField, "?lables"},
		"bad label":            {"GET", servers + "?labels=a", ``, 422, api.CodeInvalid, "?labels"},
		"patch no object":      {"PATCH", servers + "/web", `[1]`, 400, api.CodeMalformed, ""},
		"patch unknown":        {"PATCH", servers + "/web", `{"spec":{"cpus":1}}`, 422, api.CodeUnknownField, "/spec/cpus"},
		"patch wrong":          {"PATCH", servers + "/web", `{"spec":{"cpu":{"cap":"fast"}}}`, 422, api.CodeInvalid, "/spec/cpu/cap"},
		"patch takes required": {"PATCH", servers + "/web", `{"spec":{"model":null}}`, 422, api.CodeInvalid, "/spec/model"},
		"put without spec":     {"PUT", servers + "/web", `{}`, 422, api.CodeInvalid, "/spec"},
		"put stale body":       {"PUT", servers + "/web", `{"revision":1,"spec":{"model":"os","image":"micro"}}`, 412, api.CodeConflict, ""},
		"import of nothing":    {"POST", "/v1/tenants/default/images/import?name=x", ``, 400, api.CodeMalformed, ""},
		"import without name":  {"POST", "/v1/tenants/default/images/import", `x`, 422, api.CodeInvalid, "?name"},
		"build unknown":        {"POST", "/v1/tenants/default/images/build", `{"name":"x","builtin":"win"}`, 422, api.CodeInvalid, "/builtin"},
		"console no upgrade":   {"GET", servers + "/web/console", ``, 400, api.CodeMalformed, ""},
		"log follow":           {"GET", servers + "/web/log?follow=perhaps", ``, 422, api.CodeInvalid, ""},
	} {
		t.Run(name, func(t *testing.T) {
			l := *l
			l.T = t
			var headers []string
			if name == "media type" {
				headers = []string{"Content-Type", "application/x-www-form-urlencoded"}
			}
			answer, text := l.want(c.status, c.method, c.path, c.body, headers...)
			if got := answer.Header.Get("Content-Type"); got != "application/problem+json" {
				t.Errorf("content type %q", got)
			}
			var p api.Problem
			if err := json.Unmarshal([]byte(text), &p); err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			if p.Code != c.code || p.Status != c.status || p.Detail == "" || p.Title == "" || !strings.HasSuffix(p.Type, string(c.code)) {
				t.Errorf("problem %s", text)
			}
			got := ""
			if len(p.Errors) > 0 {
				got = p.Errors[0].Pointer
			}
			if got != c.pointer {
				t.Errorf("pointer %q, want %q: %s", got, c.pointer, text)
			}
		})
	}
	if _, text := l.want(200, "GET", servers, ""); !strings.Contains(text, `"total":1`) {
		t.Errorf("something was left: %s", text)
	}
}

// A body that is announced as too large is refused unread; one that only turns out to be is refused at the limit.
func TestLargeBody(t *testing.T) {
	l := serve(t, nil)
	conn, err := net.Dial("unix", l.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", servers, 100<<20)
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode != 413 {
		t.Errorf("status %d", answer.StatusCode)
	}
	r, err := http.NewRequest("POST", "http://croft"+servers, io.MultiReader(strings.NewReader(`{"name":"`), strings.NewReader(strings.Repeat("a", 2<<20))))
	if err != nil {
		t.Fatal(err)
	}
	chunked, err := l.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer chunked.Body.Close()
	if chunked.StatusCode != 413 {
		t.Errorf("chunked: status %d", chunked.StatusCode)
	}
}

func TestRevisions(t *testing.T) {
	l := serve(t, nil)
	answer, text := l.want(202, "POST", servers, web, "Idempotency-Key", "k1")
	if got := l.fake.LastCaller(); got.Key != "k1" || !got.Operator || got.Name != "root" && os.Geteuid() == 0 {
		t.Errorf("caller %+v", got)
	}
	if got := answer.Header.Get("Location"); got != servers+"/web" {
		t.Errorf("Location %q", got)
	}
	first := answer.Header.Get("ETag")
	var s api.Server
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	if first != fmt.Sprintf("%q", fmt.Sprint(s.Revision)) || s.Spec.CPU.Cap != 1500 {
		t.Errorf("ETag %s of %s", first, text)
	}

	answer, text = l.want(200, "PATCH", servers+"/web", `{"labels":{"tier":null,"a":"b"},"spec":{"cpu":{"cap":"2"}}}`, "If-Match", first)
	second := answer.Header.Get("ETag")
	if !strings.Contains(text, `"cap":"2"`) || !strings.Contains(text, `"labels":{"a":"b"}`) || !strings.Contains(text, `"limit":"256MiB"`) || second == first {
		t.Errorf("patched: %s", text)
	}
	for _, c := range [][2]string{{"PATCH", `{"spec":{"cpu":{"cap":"3"}}}`}, {"PUT", `{"spec":{"model":"os","image":"micro"}}`}, {"DELETE", ""}} {
		_, text := l.want(412, c[0], servers+"/web", c[1], "If-Match", first)
		if !strings.Contains(text, `"code":"conflict"`) {
			t.Errorf("%s: %s", c[0], text)
		}
		l.want(412, c[0], servers+"/web", c[1], "If-Match", "W/xyz")
	}

	// What GET answers can be sent back, changed.
	_, text = l.want(200, "GET", servers+"/web", "")
	answer, _ = l.want(200, "PUT", servers+"/web", strings.Replace(text, `"cap":"2"`, `"cap":"4"`, 1))
	if answer.Header.Get("ETag") == second {
		t.Error("PUT changed nothing")
	}
	l.want(412, "PUT", servers+"/web", text)
	l.want(409, "DELETE", servers+"/web", "")
	l.want(202, "DELETE", servers+"/web?force=true", "", "If-Match", answer.Header.Get("ETag"))
	l.want(404, "GET", servers+"/web", "")
	l.want(422, "POST", servers, web, "Idempotency-Key", strings.Repeat("k", 300))
}

// Patches without If-Match lose nothing when they race.
func TestPatchesRace(t *testing.T) {
	l := serve(t, nil)
	l.want(202, "POST", servers, web)
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			answer, text := l.do("PATCH", servers+"/web", fmt.Sprintf(`{"labels":{"l%d":"x"}}`, i))
			if answer.StatusCode != 200 {
				t.Errorf("%d: %s", answer.StatusCode, text)
			}
		})
	}
	group.Wait()
	_, text := l.want(200, "GET", servers+"/web", "")
	for i := range 4 {
		if !strings.Contains(text, fmt.Sprintf(`"l%d"`, i)) {
			t.Errorf("label %d is lost: %s", i, text)
		}
	}
}

func TestLists(t *testing.T) {
	l := serve(t, nil)
	for i := range 5 {
		l.want(202, "POST", servers, fmt.Sprintf(`{"name":"w%d","labels":{"n":"%d","all":"yes"},"spec":{"model":"os","image":"micro"}}`, i, i))
	}
	seen, cursor := 0, ""
	for {
		_, text := l.want(200, "GET", servers+"?limit=2&labels=all=yes"+cursor, "")
		var page api.Page[api.Server]
		if err := json.Unmarshal([]byte(text), &page); err != nil {
			t.Fatal(err)
		}
		if page.Total != 5 || page.AtRev == 0 {
			t.Errorf("page %s", text)
		}
		seen += len(page.Items)
		if page.Next == "" {
			break
		}
		cursor = "&cursor=" + page.Next
	}
	if seen != 5 {
		t.Errorf("saw %d", seen)
	}
	for query, total := range map[string]string{
		"labels=n=1": "1", "labels=n=1,all=yes": "1", "labels=n=1&labels=n=2": "1", "name=w*": "5", "name=w3": "1",
		"phase=running": "5", "phase=stopped": "0", "model=full": "0", "labels=none=": "5",
	} {
		if _, text := l.want(200, "GET", servers+"?"+query, ""); !strings.Contains(text, `"total":`+total+",") {
			t.Errorf("%s: %s", query, text)
		}
	}
	l.want(200, "GET", "/v1/servers?limit=1", "")
	if _, text := l.want(200, "GET", "/v1/tenants/default/networks", ""); !strings.Contains(text, `"items":[]`) {
		t.Errorf("an empty list: %s", text)
	}
}

func TestWatch(t *testing.T) {
	l := serve(t, nil)
	r, err := http.NewRequest("GET", "http://croft"+servers, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept", "text/event-stream")
	r.Header.Set("Last-Event-ID", "1")
	answer, err := l.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if got := answer.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Fatalf("content type %q", got)
	}
	if got := l.fake.WatchedFrom(); len(got) != 1 || got[0] != 1 {
		t.Errorf("watched from %v", got)
	}
	lines := bufio.NewScanner(answer.Body)
	next := func(prefix string) string {
		for lines.Scan() {
			if rest, ok := strings.CutPrefix(lines.Text(), prefix); ok {
				return rest
			}
		}
		t.Fatalf("the stream ended before %q: %v", prefix, lines.Err())
		return ""
	}
	next(": watching")
	next(": keep-alive")
	l.want(202, "POST", servers, web)
	id := next("id: ")
	if got := next("event: "); got != "put" {
		t.Errorf("event %q", got)
	}
	var change api.Change[api.Server]
	if err := json.Unmarshal([]byte(next("data: ")), &change); err != nil {
		t.Fatal(err)
	}
	if change.Object.Name != "web" || fmt.Sprint(change.Revision) != id {
		t.Errorf("change %+v with id %s", change, id)
	}
	l.want(202, "DELETE", servers+"/web?force=true", "")
	next("event: delete")
	l.fake.BreakServerWatches()
	for lines.Scan() {
	}
	if err := lines.Err(); err != nil {
		t.Errorf("a broken watch should end the stream in order: %v", err)
	}
}

// An upload is handed on while it arrives, however large it is.
func TestImportStreams(t *testing.T) {
	l := serve(t, nil)
	r, w := io.Pipe()
	go func() {
		chunk := bytes.Repeat([]byte("x"), 1<<20)
		for range 64 {
			w.Write(chunk)
		}
		w.Close()
	}()
	answer, err := l.http.Post("http://croft/v1/tenants/default/images/import?name=big&labels=a=b", "application/octet-stream", r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != 202 || !bytes.Contains(text, []byte(`"phase":"done"`)) {
		t.Fatalf("%d %v: %s", answer.StatusCode, err, text)
	}
	if _, text := l.want(200, "GET", "/v1/tenants/default/images/big", ""); !strings.Contains(text, `"size":"64MiB"`) || !strings.Contains(text, `"labels":{"a":"b"}`) {
		t.Errorf("image %s", text)
	}
}

func TestOperatorRoutes(t *testing.T) {
	l := serve(t, nil)
	for path, want := range map[string]string{
		"/healthz": "ok", "/v1/version": `"version":"test"`, "/metrics": "croft_http_request_duration_seconds",
		"/debug/pprof/goroutine?debug=1": "goroutine profile", "/v1/debug/bundle": "bundle", "/v1/usage": `"items":[]`,
		"/v1/hosts": "host-1", "/v1/tenants": "default", "/v1/events": `"items":`,
	} {
		l.want(200, "GET", "/healthz", "")
		if _, text := l.want(200, "GET", path, ""); !strings.Contains(text, want) {
			t.Errorf("%s: %.200s", path, text)
		}
	}
}

func TestStrangersAreRefused(t *testing.T) {
	l := serve(t, func(o *httpapi.Options) {
		o.Identify = func(*http.Request) (httpapi.Caller, error) {
			return httpapi.Caller{Name: "uid:1000"}, api.Errorf(api.CodeForbidden, "user 1000 may not use this socket")
		}
	})
	for _, path := range []string{servers, "/metrics", "/debug/pprof/", "/v1/openapi.json", "/nope"} {
		l.want(403, "GET", path, "")
	}
	l.want(200, "GET", "/healthz", "")
	// A connection whose peer the kernel does not name is refused too.
	recorder := &plainRecorder{header: http.Header{}}
	r, _ := http.NewRequest("GET", "http://croft/v1/version", nil)
	httpapi.New(httpapi.Options{Control: l.fake, Guests: l.guests}).ServeHTTP(recorder, r)
	if recorder.status != 403 {
		t.Errorf("status %d", recorder.status)
	}
}

type plainRecorder struct {
	header http.Header
	status int
	bytes.Buffer
}

func (p *plainRecorder) Header() http.Header    { return p.header }
func (p *plainRecorder) WriteHeader(status int) { p.status = status }

// A panic and an unexpected error answer with a problem that tells nothing of the inside, and the log has it all.
func TestFailures(t *testing.T) {
	l := serve(t, nil)
	l.fake.Refuse = func(s *api.ServerSpec) error {
		if s.Model == api.ModelFull {
			panic("boom")
		}
		return fmt.Errorf("open /secret/path: denied")
	}
	for _, model := range []string{"full", "os"} {
		_, text := l.want(500, "POST", servers, `{"name":"x","spec":{"model":"`+model+`","image":"micro"}}`)
		if !strings.Contains(text, `"code":"internal"`) || strings.Contains(text, "secret") || strings.Contains(text, "boom") {
			t.Errorf("%s: %s", model, text)
		}
	}
	l.fake.Refuse = nil
	l.want(202, "POST", servers, web)
	log := l.log.String()
	for _, want := range []string{"boom", "/secret/path", `"msg":"audit"`, `"outcome":"failed"`, `"outcome":"done"`, `"caller":"`} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %s", want)
		}
	}
}

func TestListenReplacesDeadSocketOnly(t *testing.T) {
	l := serve(t, nil)
	if _, err := httpapi.Listen(l.socket); err == nil || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("second daemon: %v", err)
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := httpapi.Listen(file); err == nil {
		t.Error("a plain file was replaced")
	}
	dead := l.socket + "2"
	first, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead})
	if err != nil {
		t.Fatal(err)
	}
	first.SetUnlinkOnClose(false)
	first.Close()
	again, err := httpapi.Listen(dead)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}
