package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
	"github.com/croftproject/croft/test/world"
)

// raw sends a request as it is, by no client of ours.
func raw(t *testing.T, w *world.World, method, path string, header map[string]string, body io.Reader) (int, *api.Problem) {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", w.Socket())
	}}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://croft/v1/"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range header {
		r.Header.Set(name, value)
	}
	answer, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer answer.Body.Close()
	var p api.Problem
	if answer.StatusCode >= 400 {
		if ct := answer.Header.Get("Content-Type"); ct != "application/problem+json" {
			t.Errorf("%s %s: a problem of type %q", method, path, ct)
		}
		if err := json.NewDecoder(answer.Body).Decode(&p); err != nil {
			t.Errorf("%s %s: the problem can't be read: %v", method, path, err)
		}
		if p.Status != answer.StatusCode || p.Detail == "" || p.Type == "" || p.Title == "" {
			t.Errorf("%s %s: status %d, and the problem %+v", method, path, answer.StatusCode, p)
		}
	}
	return answer.StatusCode, &p
}

// server is a valid create, with one field of it as given: a pointer relative to the document, and JSON.
func server(pointer, value string) string {
	doc := map[string]any{"name": "bad", "spec": map[string]any{"model": "os", "image": "micro", "cpu": map[string]any{},
		"memory": map[string]any{}, "disk": map[string]any{}, "restart": map[string]any{}, "guest": map[string]any{},
		"autostart": map[string]any{}}}
	at := doc
	parts := strings.Split(pointer[1:], "/")
	for _, p := range parts[:len(parts)-1] {
		at = at[p].(map[string]any)
	}
	at[parts[len(parts)-1]] = json.RawMessage(value)
	data, err := json.Marshal(doc)
	if err != nil {
		return pointer + value // what is no JSON is sent as it is
	}
	return string(data)
}

// testInput sends what users, and those who are none, may send. Each gets a problem with a stable code and a pointer to
// the field, and leaves no trace.
func testInput(t *testing.T, w *world.World) {
	const servers = "tenants/default/servers"
	long := strings.Repeat("a", 300)
	bad := func(pointer, value string) [3]string { return [3]string{pointer, value, pointer} }
	fields := [][3]string{
		bad("/spec/model", `"virtual"`), bad("/spec/model", `""`), bad("/spec/model", `7`), bad("/spec/engine", `"vmware"`),
		bad("/spec/engine", `"qemu"`), bad("/spec/image", `"nothing"`), bad("/spec/image", `""`), bad("/spec/image", `"../micro"`),
		bad("/spec/host", `"elsewhere"`),
		bad("/spec/cpu/count", `0`), bad("/spec/cpu/count", `-1`), bad("/spec/cpu/count", `1000000`), bad("/spec/cpu/count", `1.5`),
		bad("/spec/cpu/count", `99999999999999999999999999`), bad("/spec/cpu/count", `"one"`),
		bad("/spec/cpu/cap", `"-1"`), bad("/spec/cpu/cap", `"0.0001"`), bad("/spec/cpu/cap", `"9e9"`), bad("/spec/cpu/cap", `"much"`),
		bad("/spec/cpu/entitlement", `"-500m"`), bad("/spec/cpu/weight", `-1`), bad("/spec/cpu/weight", `0`), bad("/spec/cpu/weight", `10001`),
		bad("/spec/memory/limit", `"-1MiB"`), bad("/spec/memory/limit", `"1"`), bad("/spec/memory/limit", `"99999999PiB"`),
		bad("/spec/memory/limit", `"9223372036854775808"`), bad("/spec/memory/limit", `-5`), bad("/spec/memory/limit", `"256 MegaBytes"`),
		bad("/spec/memory/limit", `"0"`), bad("/spec/memory/limit", `true`), bad("/spec/memory/reservation", `"100GiB"`),
		bad("/spec/pids", `-1`), bad("/spec/pids", `99999999999`), bad("/spec/disk/size", `"-1GiB"`), bad("/spec/disk/size", `"1"`),
		bad("/spec/disk/size", `"9000000TiB"`), bad("/spec/disk/readIOPS", `-1`),
		bad("/spec/stopTimeout", `"-1s"`), bad("/spec/stopTimeout", `"soon"`), bad("/spec/stopTimeout", `"1000h"`), bad("/spec/stopTimeout", `"0s"`),
		bad("/spec/restart/policy", `"sometimes"`), bad("/spec/restart/maxRetries", `-1`), bad("/spec/autostart/order", `99999`),
		bad("/spec/state", `"on"`), bad("/spec/firmware", `"coreboot"`), bad("/spec/devices", `"ide"`), bad("/spec/cdrom", `"micro"`),
		bad("/spec/guest/hostname", `"a b"`), bad("/spec/guest/sshKeys", `"x"`),
		{"/spec/ports", `[{"network":"nothing"}]`, "/spec/ports/0/network"}, {"/spec/ports", `[{"network":"lan","mac":"zz"}]`, "/spec/ports/0/mac"},
		{"/spec/ports", `[{"network":"lan","mac":"01:00:5e:00:00:01"}]`, "/spec/ports/0/mac"},
		{"/spec/ports", `[{"network":"lan","address":"10.9.0.256"}]`, "/spec/ports/0/address"},
		{"/spec/ports", `[{"network":"lan","address":"10.200.0.5"}]`, "/spec/ports/0/address"},
		{"/spec/ports", `[{"network":"lan","address":"10.9.0.0"}]`, "/spec/ports/0/address"},
		{"/spec/ports", `[{"network":"lan","address":"10.9.0.1"}]`, "/spec/ports/0/address"},
		{"/spec/ports", `[{"network":"lan"},{"network":"lan"}]`, "/spec/ports"},
		{"/spec/grants", `[{"kind":"everything"}]`, "/spec/grants/0/kind"},
		{"/spec/grants", `[{"kind":"directory","source":"/etc/../root"}]`, "/spec/grants/0/source"},
		{"/spec/grants", `[{"kind":"directory","source":"/srv","target":"relative"}]`, "/spec/grants/0/target"},
		bad("/spec/color", `"red"`), bad("/spec/cpu/speed", `1`), bad("/colour", `1`), bad("/status", `{}`),
		bad("/name", `""`), bad("/name", `"../../etc"`), bad("/name", `"a;reboot"`), bad("/name", `"$(id)"`), bad("/name", `"A"`), bad("/name", `"-a"`),
		bad("/name", `"a.b"`), bad("/name", `"`+long+`"`), bad("/name", `"größe"`), bad("/name", `"名前"`), bad("/name", `"a\u0000b"`), bad("/name", `"a b"`), bad("/name", `null`),
	}
	before := traces(w)
	for _, f := range fields {
		t.Run(f[0]+"="+f[1][:min(len(f[1]), 40)], func(t *testing.T) {
			status, p := raw(t, w, "POST", servers, map[string]string{"Content-Type": "application/json"}, strings.NewReader(server(f[0], f[1])))
			wantField(t, status, p, f[2])
		})
	}
	for what, c := range map[string]struct {
		method, path string
		header       map[string]string
		body         io.Reader
		status       int
		code         api.Code
	}{
		"no such tenant":      {"POST", "tenants/nobody/servers", nil, strings.NewReader(server("/name", `"x"`)), 404, api.CodeNotFound},
		"tenant with slash":   {"POST", "tenants/..%2Fdefault/servers", nil, strings.NewReader(server("/name", `"x"`)), 404, api.CodeNotFound},
		"no such server":      {"GET", servers + "/nothing", nil, nil, 404, api.CodeNotFound},
		"name of 300":         {"GET", servers + "/" + long, nil, nil, 404, api.CodeNotFound},
		"power of none":       {"POST", servers + "/nothing/actions/start", nil, nil, 404, api.CodeNotFound},
		"unknown action":      {"POST", servers + "/nothing/actions/explode", nil, nil, 0, ""},
		"no such route":       {"GET", "nothing", nil, nil, 404, api.CodeNotFound},
		"wrong method":        {"DELETE", "version", nil, nil, 405, api.CodeMethod},
		"no body":             {"POST", servers, nil, nil, 400, api.CodeMalformed},
		"no JSON":             {"POST", servers, nil, strings.NewReader("{"), 400, api.CodeMalformed},
		"an array":            {"POST", servers, nil, strings.NewReader("[]"), 400, api.CodeMalformed},
		"two documents":       {"POST", servers, nil, strings.NewReader(server("/name", `"x"`) + "{}"), 400, api.CodeMalformed},
		"a name twice":        {"POST", servers, nil, strings.NewReader(`{"name":"a","name":"b","spec":{}}`), 400, api.CodeMalformed},
		"deep":                {"POST", servers, nil, strings.NewReader(strings.Repeat(`{"a":`, 5000)), 400, api.CodeMalformed},
		"100 MB":              {"POST", servers, nil, bytes.NewReader(make([]byte, 100<<20)), 413, api.CodeTooLarge},
		"100 MB, unannounced": {"POST", servers, nil, struct{ io.Reader }{bytes.NewReader(make([]byte, 100<<20))}, 413, api.CodeTooLarge},
		"wrong type":          {"POST", servers, map[string]string{"Content-Type": "text/html"}, strings.NewReader(server("/name", `"x"`)), 400, api.CodeMalformed},
		"long key":            {"POST", servers, map[string]string{"Idempotency-Key": long}, strings.NewReader(server("/name", `"x"`)), 422, api.CodeInvalid},
		"bad limit":           {"GET", servers + "?limit=-1", nil, nil, 422, api.CodeInvalid},
		"bad cursor":          {"GET", servers + "?cursor=%00%ff", nil, nil, 422, api.CodeInvalid},
		"unknown query":       {"GET", servers + "?colour=red", nil, nil, 422, ""},
		"duplicate network":   {"POST", "tenants/default/networks", nil, strings.NewReader(`{"name":"lan","spec":{}}`), 409, api.CodeExists},
		"prefix with bits":    {"POST", "tenants/default/networks", nil, strings.NewReader(`{"name":"x","spec":{"subnets":[{"prefix":"10.0.0.1/24"}]}}`), 422, api.CodeInvalid},
		"prefix of nothing":   {"POST", "tenants/default/networks", nil, strings.NewReader(`{"name":"x","spec":{"subnets":[{"prefix":"10.0.0.0/33"}]}}`), 422, api.CodeInvalid},
		"prefix of /32":       {"POST", "tenants/default/networks", nil, strings.NewReader(`{"name":"x","spec":{"subnets":[{"prefix":"10.0.0.0/32"}]}}`), 422, api.CodeInvalid},
		"MTU of 0":            {"POST", "tenants/default/networks", nil, strings.NewReader(`{"name":"x","spec":{"mtu":0}}`), 422, api.CodeInvalid},
		"reserve of 0":        {"PATCH", "hosts/test", map[string]string{"Content-Type": "application/merge-patch+json"}, strings.NewReader(`{"spec":{"reserve":{"disk":"0"}}}`), 422, api.CodeInvalid},
		"overcommit of 0":     {"PATCH", "hosts/test", map[string]string{"Content-Type": "application/merge-patch+json"}, strings.NewReader(`{"spec":{"overcommit":{"cpu":0}}}`), 422, api.CodeInvalid},
		"exec, no WebSocket":  {"GET", servers + "/nothing/exec?cmd=true", nil, nil, 400, api.CodeMalformed},
		"stale ETag":          {"DELETE", "tenants/default/networks/lan", map[string]string{"If-Match": `"1"`}, nil, 412, api.CodeConflict},
		"bad ETag":            {"DELETE", "tenants/default/networks/lan", map[string]string{"If-Match": `lan`}, nil, 0, ""},
	} {
		t.Run(what, func(t *testing.T) {
			status, p := raw(t, w, c.method, c.path, c.header, c.body)
			if status < 400 || status >= 500 || c.status != 0 && status != c.status || c.code != "" && p.Code != c.code {
				t.Errorf("status %d, %+v; want %d, %s", status, p, c.status, c.code)
			}
		})
	}
	testBadImages(t, w)
	if after := traces(w); !slices.Equal(before, after) {
		t.Errorf("traces on the host: before\n%s\nafter\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	if n, err := w.Servers(world.Tenant).Page(t.Context(), client.ListOptions{Filter: map[string]string{"name": "bad*"}}); err != nil || n.Total != 0 {
		t.Errorf("servers were made: %+v, %v", n, err)
	}
}

func wantField(t *testing.T, status int, p *api.Problem, pointer string) {
	t.Helper()
	if status < 400 || status >= 500 || p.Code == "" {
		t.Fatalf("status %d, %+v", status, p)
	}
	for _, f := range p.Errors {
		if f.Pointer == pointer && f.Message != "" {
			return
		}
	}
	t.Errorf("the problem %s points to %+v, not to %s", p.Code, p.Errors, pointer)
}

// testBadImages imports what is no image, or a trap.
func testBadImages(t *testing.T, w *world.World) {
	entry := func(h tar.Header) []byte {
		var b bytes.Buffer
		out := tar.NewWriter(&b)
		h.Mode = 0o755
		if err := out.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		out.Close()
		return b.Bytes()
	}
	links := func(target string) []byte {
		var b bytes.Buffer
		out := tar.NewWriter(&b)
		out.WriteHeader(&tar.Header{Name: "way", Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777})
		out.WriteHeader(&tar.Header{Name: "way/escaped", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1})
		out.Write([]byte("x"))
		out.Close()
		return b.Bytes()
	}
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.Mkdir(outside, 0o777); err != nil {
		t.Fatal(err)
	}
	whole := entry(tar.Header{Name: "etc/", Typeflag: tar.TypeDir})
	for what, data := range map[string][]byte{
		"none":            []byte("this is no image at all, but a text of some length that goes on for a while"),
		"empty":           {},
		"zeros":           make([]byte, 1<<16),
		"truncated tar":   whole[:700],
		"truncated qcow2": append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 20)...),
		"dot dot":         entry(tar.Header{Name: "../escaped", Typeflag: tar.TypeReg}),
		"dot dot inside":  entry(tar.Header{Name: "a/../../escaped", Typeflag: tar.TypeReg}),
		"device node":     entry(tar.Header{Name: "dev/sda", Typeflag: tar.TypeBlock, Devmajor: 8}),
		"link to outside": links(outside),
		"link upwards":    links("../../../../../../../../../../.." + outside),
		"hard link away":  entry(tar.Header{Name: "shadow", Typeflag: tar.TypeLink, Linkname: "../../../../../../etc/shadow"}),
	} {
		t.Run("image/"+what, func(t *testing.T) {
			name := "bad-" + strings.ReplaceAll(what, " ", "-")
			status, p := raw(t, w, "POST", "tenants/default/images/import?name="+name, map[string]string{"Content-Type": "application/octet-stream"}, bytes.NewReader(data))
			made, err := w.Images(world.Tenant).Get(t.Context(), name)
			if err == nil { // a device or a link may also be left out, so that nothing bad is left of it
				if what != "device node" && !strings.Contains(what, "link") && what != "absolute" {
					t.Errorf("there is an image: %+v", made.Status)
				}
				if _, err := w.Images(world.Tenant).Delete(t.Context(), name, client.DeleteOptions{}); err != nil {
					t.Error(err)
				}
			} else if status < 400 || status >= 500 || p.Code != api.CodeBadImage && p.Code != api.CodeMalformed {
				t.Errorf("status %d, %+v", status, p)
			}
			if left, _ := os.ReadDir(outside); len(left) > 0 {
				t.Errorf("it wrote %s outside of the image", left[0].Name())
			}
		})
	}
}

// traces are what refused requests could leave: files of the state directory, but for the store's own.
func traces(w *world.World) []string {
	var out []string
	for _, dir := range []string{"images", "servers", "volumes"} {
		entries, _ := os.ReadDir(filepath.Join(w.StateDir, dir))
		for _, e := range entries {
			out = append(out, fmt.Sprint(dir, "/", e.Name()))
		}
	}
	run, _ := os.ReadDir(filepath.Join(w.RunDir, "s"))
	for _, e := range run {
		out = append(out, "run/"+e.Name())
	}
	return append(out, w.Leaks()...)
}
