package oci

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/keeper"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestConfig(t *testing.T) {
	machine := func(change func(*engine.Machine)) *engine.Machine {
		m := &engine.Machine{
			ID: "01k", Host: "web", Cgroup: "croft-1a2b/01k", IDs: engine.IDRange{Base: 131072, Size: 65536},
			Root: engine.Root{Path: "/var/lib/croft/root"}, NetNS: "/run/croft/netns/s-01k",
			Hosts: "/run/croft/hosts", Resolv: "/run/croft/resolv",
			Spec: &api.ServerSpec{Memory: api.Memory{Limit: api.GiB, Reservation: api.GiB}},
		}
		change(m)
		return m
	}
	system := Facts{
		Cgroups: CgroupsV2, Init: "/sbin/init", PowerOff: offSystemd, UserNS: "/proc/1/fd/9", Files: 1 << 20,
		Fuse: true, Tun: true,
	}
	hybrid := system
	hybrid.Cgroups, hybrid.Files = CgroupsHybrid, 20000
	granted := system
	granted.Binds = []Bind{
		{Source: "/run/g/grant-0", Target: "/data", ReadOnly: true},
		{Source: "/run/g/grant-1", Target: "/dev/ttyS0", Device: true},
	}
	granted.Devices = []Device{{Type: "c", Major: 4, Minor: 64}}
	app := Facts{
		Cgroups: CgroupsV2, Files: 1 << 20, Tun: true, Hostname: "/run/croft/hostname",
		User: account{User: specs.User{UID: 33, GID: 33, AdditionalGids: []uint32{4}}, Name: "www", Home: "/var/www"},
	}
	for _, test := range []struct {
		name string
		m    *engine.Machine
		host Facts
	}{
		{"system", machine(func(*engine.Machine) {}), system},
		{"system-hybrid", machine(func(*engine.Machine) {}), hybrid},
		{"system-granted", machine(func(m *engine.Machine) {
			m.Grants = []api.Grant{{Kind: api.GrantNesting}, {Kind: api.GrantCapability, Source: "CAP_MKNOD"}}
		}), granted},
		{"application", machine(func(m *engine.Machine) {
			m.Spec.Memory.Reservation = 512 * api.MiB
			m.App = &api.App{
				Entrypoint: []string{"/bin/app"}, Args: []string{"-v"}, Env: map[string]string{"B": "2", "A": "1"},
				User: "www", WorkingDir: "/srv",
			}
			m.Grants = []api.Grant{{Kind: api.GrantCapability, Source: "net_raw"}}
		}), app},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := json.MarshalIndent(Config(test.m, test.host), "", "\t")
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", test.name+".json")
			if *update {
				if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)+"\n"); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestResolve(t *testing.T) {
	a := accounts{
		passwd: []byte("root:x:0:0:root:/root:/bin/sh\nbroken\nwww:x:33:34:w:/var/www:/bin/sh\nbig:x:99999999999:1::/:\nfar:x:70000:1::/:\n"),
		group:  []byte("root:x:0:\nwww:x:34:\nlog:x:44:a,www\nfar:x:70000:www\n"),
	}
	for _, test := range []struct {
		who, home string
		user      specs.User
		fails     bool
	}{
		{who: "", home: "/root"},
		{who: "root", home: "/root"},
		{who: "www", home: "/var/www", user: specs.User{UID: 33, GID: 34, AdditionalGids: []uint32{44}}},
		{who: "33", home: "/var/www", user: specs.User{UID: 33, GID: 34, AdditionalGids: []uint32{44}}},
		{who: "www:log", home: "/var/www", user: specs.User{UID: 33, GID: 44}},
		{who: "5:6", user: specs.User{UID: 5, GID: 6}},
		{who: "5", user: specs.User{UID: 5}},
		{who: ":log", home: "/root", user: specs.User{GID: 44}},
		{who: "none", fails: true},
		{who: "www:none", fails: true},
		{who: "big", fails: true},
		{who: "far", fails: true},
		{who: "-1", fails: true},
		{who: "4294967295", fails: true},
		{who: "0:65536", fails: true},
	} {
		got, err := a.resolve(test.who, 65536)
		if (err != nil) != test.fails {
			t.Errorf("%q: %v", test.who, err)
		} else if diff := cmp.Diff(test.user, got.User); !test.fails && (diff != "" || got.Home != test.home) {
			t.Errorf("%q: home %q, %s", test.who, got.Home, diff)
		}
	}
}

func TestExit(t *testing.T) {
	at := time.Unix(1, 0)
	for _, test := range []struct {
		name          string
		code, signal  int
		system, asked bool
		oom           int
		want          api.Exit
	}{
		{name: "exited", code: 3, want: api.Exit{Code: 3, Reason: "exited"}},
		{name: "poweroff", code: 130, signal: 2, system: true, want: api.Exit{Reason: "poweroff"}},
		{name: "reboot", code: 129, signal: 1, system: true, want: api.Exit{Reason: "reboot"}},
		{name: "application interrupted", code: 130, signal: 2, want: api.Exit{Code: 130, Reason: "signal"}},
		{name: "oom", code: 137, signal: 9, oom: 1, want: api.Exit{Code: 137, Reason: "oom"}},
		{name: "survived an oom, then killed by none", code: 0, oom: 1, want: api.Exit{Reason: "exited"}},
		{name: "killed", code: 137, signal: 9, want: api.Exit{Code: 137, Reason: "signal"}},
		{name: "asked", code: 130, signal: 2, system: true, asked: true, want: api.Exit{Reason: "asked"}},
		{name: "lost", code: -1, want: api.Exit{Code: -1, Reason: "lost"}},
	} {
		test.want.Time = at
		got := exitOf(keeper.Status{Code: test.code, Signal: test.signal, Ended: at}, test.system, test.asked, test.oom)
		if got != test.want {
			t.Errorf("%s: got %+v, want %+v", test.name, got, test.want)
		}
	}
}

func TestFindInit(t *testing.T) {
	for _, test := range []struct {
		name  string
		files map[string]string // with "-> " for a link
		path  string
		off   powerOff
		fails bool
	}{
		{"systemd", map[string]string{"sbin/init": "-> /lib/systemd/systemd", "lib/systemd/systemd": "x"}, "/sbin/init", offSystemd, false},
		{"busybox", map[string]string{"sbin/init": "-> ../bin/busybox", "bin/busybox": "x"}, "/sbin/init", offBusybox, false},
		{"copy of busybox", map[string]string{"sbin/init": "\x7fELF BusyBox v1.36"}, "/sbin/init", offBusybox, false},
		{"script", map[string]string{"init": "#!/bin/sh\n"}, "/init", offOther, false},
		{"link to nowhere", map[string]string{"sbin/init": "-> /no/such", "init": "x"}, "/init", offOther, false},
		{"loop", map[string]string{"sbin/init": "-> init", "init": "x"}, "/init", offOther, false},
		{"link out", map[string]string{"sbin/init": "-> ../../../../../../../../bin/busybox"}, "", 0, true},
		{"none", nil, "", 0, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range test.files {
				path := filepath.Join(dir, name)
				err := os.MkdirAll(filepath.Dir(path), 0o755)
				if err == nil && len(text) > 3 && text[:3] == "-> " {
					err = os.Symlink(text[3:], path)
				} else if err == nil {
					err = os.WriteFile(path, []byte(text), 0o755)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			root, err := openTree(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer root.close()
			path, off, err := root.findInit()
			if (err != nil) != test.fails || path != test.path || off != test.off {
				t.Errorf("got %q, %d, %v; want %q, %d", path, off, err, test.path, test.off)
			}
		})
	}
}

// TestTree: what the guest lays in the way of a read is not touched.
func TestTree(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"out": "/etc/passwd", "up": "../../../../../../../etc/passwd", "self": "/proc/self/root/etc/passwd"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := openTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.close()
	for _, name := range []string{"fifo", "out", "up", "self", "../../../../../../../etc/passwd", "."} {
		if data, err := root.read(name, 100); err == nil {
			t.Errorf("%s: read %q", name, data)
		}
	}
}

func TestLineEnds(t *testing.T) {
	var out strings.Builder
	w := &lineEnds{to: &out}
	for _, p := range []string{"a\n", "b\r", "\nc\r\n", "\n"} {
		if n, err := w.Write([]byte(p)); n != len(p) || err != nil {
			t.Errorf("%q: %d, %v", p, n, err)
		}
	}
	if got, want := out.String(), "a\r\nb\r\nc\r\n\r\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestLastMessage(t *testing.T) {
	for log, want := range map[string]string{
		"": "",
		`{"level":"warning","msg":"a"}` + "\n" + `{"level":"error","msg":"b"}` + "\n": "b",
		`time="x" level=error msg="runc run failed: no \"such\" file"`:                `runc run failed: no "such" file`,
		"2026-11-23T01:00:00Z: cgroups in hybrid mode not supported\n":                "2026-11-23T01:00:00Z: cgroups in hybrid mode not supported",
	} {
		if got := lastMessage([]byte(log)); got != want {
			t.Errorf("%q: got %q, want %q", log, got, want)
		}
	}
}

func TestBundleKeepsWhatIsNotItsOwn(t *testing.T) {
	b := bundle(filepath.Join(t.TempDir(), "oci"))
	held := b.file("grant-0")
	if err := os.MkdirAll(held, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(held, "precious"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := b.remove(); err == nil {
		t.Error("removed a directory that is not empty")
	}
	if _, err := os.Stat(filepath.Join(held, "precious")); errors.Is(err, os.ErrNotExist) {
		t.Error("a file in a grant was removed")
	}
}

// The kernel takes the family of a socket from an int: bits above it hide no family from the filter.
func TestSocketFamilies(t *testing.T) {
	refused := func(family uint64) bool {
		for _, call := range seccomp(system).Syscalls {
			if !slices.Equal(call.Names, []string{"socket"}) {
				continue
			}
			arg := call.Args[0]
			if arg.Op == specs.OpEqualTo && family == arg.Value || arg.Op == specs.OpMaskedEqual && family&arg.Value == arg.ValueTwo {
				return true
			}
		}
		return false
	}
	for _, family := range []uint64{unix.AF_VSOCK, unix.AF_ALG} {
		if !refused(family) || !refused(1<<32|family) {
			t.Errorf("family %d is not refused", family)
		}
	}
	if refused(unix.AF_INET) || refused(unix.AF_UNIX) {
		t.Error("a family that guests need is refused")
	}
}
