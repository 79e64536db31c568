package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
	"github.com/croftproject/croft/test/world"
)

// testGrants asks for what is the host's: refused until the operator allows it to the tenant, and handed over then.
func testGrants(t *testing.T, w *world.World) {
	dir := sharedDir(t)
	refused := small(api.ModelOS, "runc")
	refused.Grants = []api.Grant{{Kind: api.GrantDirectory, Source: dir}, {Kind: api.GrantCapability, Source: "CAP_SYS_TIME"},
		{Kind: api.GrantNesting}, {Kind: api.GrantDevice, Source: "/dev/fuse"}}
	_, err := w.Servers(world.Tenant).Create(t.Context(), client.Create[api.ServerSpec]{Name: "grant-none", Spec: refused})
	for _, pointer := range []string{"/spec/grants/0", "/spec/grants/1", "/spec/grants/2", "/spec/grants/3"} {
		wantCode(t, err, api.CodeForbidden, pointer)
	}
	dedicated := small(api.ModelOS, "runc")
	dedicated.CPU = api.CPU{Count: 1, Dedicated: true}
	_, err = w.Servers(world.Tenant).Create(t.Context(), client.Create[api.ServerSpec]{Name: "grant-none", Spec: dedicated})
	wantCode(t, err, api.CodeForbidden, "/spec/cpu/dedicated")

	_, err = w.Tenants().Create(t.Context(), client.Create[api.TenantSpec]{Name: "granted", Spec: api.TenantSpec{Grants: []api.AllowedGrant{
		{Kind: api.GrantDirectory, Source: dir}, {Kind: api.GrantCapability, Source: "CAP_SYS_TIME"}, {Kind: api.GrantNesting},
		{Kind: api.GrantDevice, Source: "/dev/fuse"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	beyond := small(api.ModelOS, "runc")
	beyond.Grants = []api.Grant{{Kind: api.GrantDirectory, Source: filepath.Dir(dir)}}
	_, err = w.Servers("granted").Create(t.Context(), client.Create[api.ServerSpec]{Name: "grant-more", Spec: beyond})
	wantCode(t, err, api.CodeForbidden, "/spec/grants/0")

	spec := small(api.ModelOS, "runc")
	spec.Grants = []api.Grant{{Kind: api.GrantDirectory, Source: dir, Target: "/shared"},
		{Kind: api.GrantDirectory, Source: dir, Target: "/looked-at", ReadOnly: true}, {Kind: api.GrantDevice, Source: "/dev/fuse"}}
	para := small(api.ModelPara, "uml")
	para.Grants = []api.Grant{{Kind: api.GrantDirectory, Source: dir, Target: "/shared"}}
	for name, s := range map[string]api.ServerSpec{"grant-os": spec, "grant-uml": para} {
		if _, err := w.Servers("granted").Create(t.Context(), client.Create[api.ServerSpec]{Name: name, Spec: s}); err != nil {
			t.Fatalf("create %s: %v", name, err)
		}
	}
	w.ReadyOf(t, "granted", "grant-os")
	for what, c := range map[string]struct {
		command string
		code    int
	}{
		"read":              {"grep -q given /shared/file", 0},
		"write":             {"echo from-os >/shared/os", 0},
		"write, read-only":  {"echo x >/looked-at/os", 1},
		"the device":        {"test -c /dev/fuse && : </dev/fuse", 0},
		"no other device":   {"mknod /tmp/kmsg c 1 11 && : </tmp/kmsg", 1},
		"no set-user files": {"cp /bin/busybox /shared/su && chmod 4755 /shared/su && mount | grep /shared | grep -qv nosuid", 1},
	} {
		if code, out := w.ExecOf(t, "granted", "grant-os", "sh", "-c", c.command); code != c.code {
			t.Errorf("%s: %q ended with code %d, want %d: %s", what, c.command, code, c.code, out)
		}
	}
	if data, err := os.ReadFile(filepath.Join(dir, "os")); err != nil || string(data) != "from-os\n" {
		t.Errorf("what the guest wrote is %q, %v", data, err)
	}
	up := w.ReadyOf(t, "granted", "grant-uml")
	if up.Status.Engine != "uml" {
		t.Errorf("it runs on %s", up.Status.Engine)
	}
	for _, name := range []string{"grant-os", "grant-uml"} {
		if err := w.Delete(t.Context(), "granted", name); err != nil {
			t.Error(err)
		}
	}
	if data, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || !strings.Contains(string(data), "given") {
		t.Errorf("after the servers were deleted, the directory holds %q, %v", data, err)
	}
}

// sharedDir is a directory of the host that any user may use.
func sharedDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "croft-grant")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("given\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}
