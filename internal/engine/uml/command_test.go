package uml

import (
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/keeper"
)

func machine() *engine.Machine {
	return &engine.Machine{
		ID: "web", Host: "web", Dir: "/d", RunDir: "/r",
		Spec: &api.ServerSpec{Memory: api.Memory{Limit: 64 * api.MiB}},
		IDs:  engine.IDRange{Base: 700000, Size: 65536},
		Root: engine.Root{Path: "/v/web.img", Format: "raw"},
	}
}

func TestArguments(t *testing.T) {
	m := machine()
	m.Seed, m.Boot.Initrd, m.Boot.Cmdline, m.Boot.Modules = "/v/seed.iso", "/i/initrd", "quiet systemd.unit=x", "/i/modules"
	m.NICs = []engine.NIC{
		{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 1500, Tap: engine.Tap{NetNS: "/n/a", Device: "t1"}},
		{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, Tap: engine.Tap{NetNS: "/n/b", Device: "t2"}},
	}
	m.Grants = []api.Grant{
		{Kind: api.GrantNesting},
		{Kind: api.GrantDirectory, Source: "/srv/a", Target: "/a", ReadOnly: true},
	}
	want := []string{
		"mem=65536K", "uml_dir=/r/u", "umid=m", "con=none", "con0=fd:0,fd:1", "ssl=none", "noreboot",
		"ubd0d=/v/web.img", "root=/dev/ubda", "rw", "ubd1rd=/v/seed.iso", "initrd=/i/initrd",
		"vec0:transport=fd,fd=3,vec=0,mac=02:00:00:00:00:01,mtu=1500",
		"vec1:transport=fd,fd=4,vec=0,mac=02:00:00:00:00:02",
		"hostname=web", "croft.modules=/i/modules", "croft.hostfs=/srv/a,/a,ro", "quiet", "systemd.unit=x",
	}
	got, err := arguments(m)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	s, err := New(Config{}).spec(m)
	if err != nil {
		t.Fatal(err)
	}
	if s.OOMScore == 0 || s.OOMScore != engine.OOMScore(m.Spec) {
		t.Errorf("score %d", s.OOMScore)
	}
	if diff := cmp.Diff(keeper.File{Path: "/srv/a", Tree: keeper.ReadTree}, s.Files[2]); diff != "" {
		t.Error(diff)
	}
	if below := New(Config{}).confinement(m, got).ReadBelow; !slices.Contains(below, "/proc/self/fd/5") || slices.Contains(below, "/srv/a") {
		t.Errorf("may read below %v", below)
	}
	if len(s.Files) != 3 || s.Files[1].Tap != "t2" || s.Files[1].NetNS != "/n/b" || s.User != 700000 || !s.Isolate {
		t.Errorf("got %+v", s)
	}
}

// Nothing that a tenant or an image brings becomes an option of the host's.
func TestArgumentsRefuse(t *testing.T) {
	for name, change := range map[string]func(*engine.Machine){
		"qcow2":            func(m *engine.Machine) { m.Root.Format = "qcow2" },
		"second disk":      func(m *engine.Machine) { m.Root.Path = "/v/a,/etc/passwd" },
		"backing file":     func(m *engine.Machine) { m.Root.Path = "/v/a:/etc/passwd" },
		"space in a path":  func(m *engine.Machine) { m.Seed = "/v/a ubd2=/etc/passwd" },
		"host name":        func(m *engine.Machine) { m.Host = "web hostfs=/" },
		"disk in image":    func(m *engine.Machine) { m.Boot.Cmdline = "quiet ubd2=/etc/passwd" },
		"hostfs in image":  func(m *engine.Machine) { m.Boot.Cmdline = "hostfs=/" },
		"program in image": func(m *engine.Machine) { m.Boot.Cmdline = "con1=xterm xterm=/bin/sh,-c,id" },
		"network in image": func(m *engine.Machine) { m.Boot.Cmdline = "vec0:transport=raw,ifname=eth0" },
		"old network":      func(m *engine.Machine) { m.Boot.Cmdline = "eth0=tuntap,eth0" },
		"memory in image":  func(m *engine.Machine) { m.Boot.Cmdline = "mem=64G" },
		"console in image": func(m *engine.Machine) { m.Boot.Cmdline = "mconsole=notify:/run/s" },
		"help in image":    func(m *engine.Machine) { m.Boot.Cmdline = "--help" },
		"relative grant":   func(m *engine.Machine) { m.Grants = []api.Grant{{Kind: api.GrantDirectory, Source: "srv"}} },
		"climbing grant":   func(m *engine.Machine) { m.Grants = []api.Grant{{Kind: api.GrantDirectory, Source: "/srv/../etc"}} },
		"comma in a target": func(m *engine.Machine) {
			m.Grants = []api.Grant{{Kind: api.GrantDirectory, Source: "/s", Target: "/t,rw"}}
		},
		"newline in a grant": func(m *engine.Machine) { m.Grants = []api.Grant{{Kind: api.GrantDirectory, Source: "/s\n"}} },
	} {
		t.Run(name, func(t *testing.T) {
			m := machine()
			change(m)
			if args, err := arguments(m); err == nil {
				t.Errorf("got %q", args)
			}
		})
	}
}

func TestConfinementIsNarrow(t *testing.T) {
	m := machine()
	args, err := arguments(m)
	if err != nil {
		t.Fatal(err)
	}
	c := New(Config{}).confinement(m, args)
	for _, dir := range slices.Concat(c.ReadBelow, c.WriteBelow) {
		for _, never := range []string{"/etc", "/proc", "/sys", "/var", "/run", "/home", "/root", m.Dir} {
			if dir == "/" || dir == never || strings.HasPrefix(never, dir+"/") {
				t.Errorf("%s lies in %s", never, dir)
			}
		}
	}
	if slices.Contains(c.WriteBelow, m.RunDir) {
		t.Error("the guest can write where the daemon keeps its marks")
	}
}
