package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/state"
)

type edit = func(*api.ServerSpec)

func TestBadServers(t *testing.T) {
	w := newWorld(t)
	w.image("iso")
	w.image("huge")
	w.server("taken", func(s *api.ServerSpec) {
		s.Ports = []api.Port{{Network: "corp", Address: netip.MustParseAddr("10.64.0.9"), MAC: "02:00:00:00:00:01"}}
	})
	before := w.host().Status.Allocated
	port := func(p api.Port) edit {
		p.Network = "corp"
		return func(s *api.ServerSpec) { s.Ports = []api.Port{p} }
	}
	grant := func(g api.Grant) edit { return func(s *api.ServerSpec) { s.Grants = []api.Grant{g} } }
	addr := netip.MustParseAddr
	for name, tc := range map[string]struct {
		name    string
		edit    edit
		code    api.Code
		pointer string
	}{
		"no model":            {"", func(s *api.ServerSpec) { s.Model = "" }, api.CodeInvalid, "/spec/model"},
		"unknown model":       {"", func(s *api.ServerSpec) { s.Model = "micro" }, api.CodeInvalid, "/spec/model"},
		"unknown engine":      {"", func(s *api.ServerSpec) { s.Engine = "lguest" }, api.CodeInvalid, "/spec/engine"},
		"engine of another":   {"", func(s *api.ServerSpec) { s.Engine = "qemu" }, api.CodeInvalid, "/spec/engine"},
		"no image":            {"", func(s *api.ServerSpec) { s.Image = "" }, api.CodeInvalid, "/spec/image"},
		"unknown image":       {"", func(s *api.ServerSpec) { s.Image = "../etc/passwd" }, api.CodeInvalid, "/spec/image"},
		"image of no such":    {"", func(s *api.ServerSpec) { s.Image = "iso" }, api.CodeInvalid, "/spec/image"},
		"unknown host":        {"", func(s *api.ServerSpec) { s.Host = "nowhere" }, api.CodeInvalid, "/spec/host"},
		"unknown state":       {"", func(s *api.ServerSpec) { s.State = "flying" }, api.CodeInvalid, "/spec/state"},
		"negative count":      {"", func(s *api.ServerSpec) { s.CPU.Count = -1 }, api.CodeInvalid, "/spec/cpu/count"},
		"absurd count":        {"", func(s *api.ServerSpec) { s.CPU.Count = math.MaxInt64 }, api.CodeInvalid, "/spec/cpu/count"},
		"negative entitled":   {"", func(s *api.ServerSpec) { s.CPU.Entitlement = -5 }, api.CodeInvalid, "/spec/cpu/entitlement"},
		"entitled too much":   {"", func(s *api.ServerSpec) { s.CPU.Entitlement = 1001 }, api.CodeInvalid, "/spec/cpu/entitlement"},
		"cap below":           {"", func(s *api.ServerSpec) { s.CPU.Entitlement, s.CPU.Cap = 500, 400 }, api.CodeInvalid, "/spec/cpu/cap"},
		"cap above":           {"", func(s *api.ServerSpec) { s.CPU.Cap = 1001 }, api.CodeInvalid, "/spec/cpu/cap"},
		"overflowing cap":     {"", func(s *api.ServerSpec) { s.CPU.Cap = math.MaxInt64 }, api.CodeInvalid, "/spec/cpu/cap"},
		"absurd weight":       {"", func(s *api.ServerSpec) { s.CPU.Weight = 10001 }, api.CodeInvalid, "/spec/cpu/weight"},
		"negative memory":     {"", func(s *api.ServerSpec) { s.Memory.Limit = -1 }, api.CodeInvalid, "/spec/memory/limit"},
		"tiny memory":         {"", func(s *api.ServerSpec) { s.Memory.Limit = 1 }, api.CodeInvalid, "/spec/memory/limit"},
		"overflowing memory":  {"", func(s *api.ServerSpec) { s.Memory.Limit = math.MaxInt64 }, api.CodeInvalid, "/spec/memory/limit"},
		"reserved above":      {"", func(s *api.ServerSpec) { s.Memory.Reservation = s.Memory.Limit + 1 }, api.CodeInvalid, "/spec/memory/reservation"},
		"negative reserved":   {"", func(s *api.ServerSpec) { s.Memory.Reservation = math.MinInt64 }, api.CodeInvalid, "/spec/memory/reservation"},
		"negative pids":       {"", func(s *api.ServerSpec) { s.PIDs = -1 }, api.CodeInvalid, "/spec/pids"},
		"absurd pids":         {"", func(s *api.ServerSpec) { s.PIDs = math.MaxInt64 }, api.CodeInvalid, "/spec/pids"},
		"negative disk":       {"", func(s *api.ServerSpec) { s.Disk.Size = -1 }, api.CodeInvalid, "/spec/disk/size"},
		"overflowing disk":    {"", func(s *api.ServerSpec) { s.Disk.Size = math.MaxInt64 }, api.CodeInvalid, "/spec/disk/size"},
		"disk below image":    {"", func(s *api.ServerSpec) { s.Image = "huge"; s.Disk.Size = api.GiB }, api.CodeInvalid, "/spec/disk/size"},
		"negative iops":       {"", func(s *api.ServerSpec) { s.Disk.ReadIOPS = -1 }, api.CodeInvalid, "/spec/disk/readIOPS"},
		"unknown network":     {"", func(s *api.ServerSpec) { s.Ports = []api.Port{{Network: "x"}} }, api.CodeInvalid, "/spec/ports/0/network"},
		"no network":          {"", func(s *api.ServerSpec) { s.Ports = []api.Port{{}} }, api.CodeInvalid, "/spec/ports/0/network"},
		"two ports":           {"", func(s *api.ServerSpec) { s.Ports = []api.Port{{Network: "corp"}, {Network: "corp"}} }, api.CodeInvalid, "/spec/ports"},
		"address outside":     {"", port(api.Port{Address: addr("192.0.2.1")}), api.CodeInvalid, "/spec/ports/0/address"},
		"address taken":       {"", port(api.Port{Address: addr("10.64.0.9")}), api.CodeInvalid, "/spec/ports/0/address"},
		"address of gateway":  {"", port(api.Port{Address: addr("10.64.0.1")}), api.CodeInvalid, "/spec/ports/0/address"},
		"address of IPv6":     {"", port(api.Port{Address: addr("fd00::1")}), api.CodeInvalid, "/spec/ports/0/address"},
		"broadcast":           {"", port(api.Port{Address: addr("10.64.0.255")}), api.CodeInvalid, "/spec/ports/0/address"},
		"no MAC":              {"", port(api.Port{MAC: "hello"}), api.CodeInvalid, "/spec/ports/0/mac"},
		"long MAC":            {"", port(api.Port{MAC: "02:00:00:00:00:01:02:03"}), api.CodeInvalid, "/spec/ports/0/mac"},
		"group MAC":           {"", port(api.Port{MAC: "01:00:5e:00:00:01"}), api.CodeInvalid, "/spec/ports/0/mac"},
		"zero MAC":            {"", port(api.Port{MAC: "00:00:00:00:00:00"}), api.CodeInvalid, "/spec/ports/0/mac"},
		"MAC taken":           {"", port(api.Port{MAC: "02:00:00:00:00:01"}), api.CodeInvalid, "/spec/ports/0/mac"},
		"grant not allowed":   {"", grant(api.Grant{Kind: api.GrantNesting}), api.CodeForbidden, "/spec/grants/0"},
		"unknown grant":       {"", grant(api.Grant{Kind: "root"}), api.CodeInvalid, "/spec/grants/0/kind"},
		"grant of ..":         {"", grant(api.Grant{Kind: api.GrantDirectory, Source: "/srv/../etc"}), api.CodeInvalid, "/spec/grants/0/source"},
		"grant of relative":   {"", grant(api.Grant{Kind: api.GrantDirectory, Source: "srv"}), api.CodeInvalid, "/spec/grants/0/source"},
		"grant at a tag":      {"", grant(api.Grant{Kind: api.GrantDirectory, Source: "/srv", Target: "data"}), api.CodeInvalid, "/spec/grants/0/target"},
		"grant over root":     {"", grant(api.Grant{Kind: api.GrantDirectory, Source: "/srv", Target: "/"}), api.CodeInvalid, "/spec/grants/0/target"},
		"grant of a file":     {"", grant(api.Grant{Kind: api.GrantDevice, Source: "/etc/shadow"}), api.CodeInvalid, "/spec/grants/0/source"},
		"PCI read-only":       {"", grant(api.Grant{Kind: api.GrantDevice, Source: "0000:01:00.0", ReadOnly: true}), api.CodeInvalid, "/spec/grants/0/readOnly"},
		"PCI at a path":       {"", grant(api.Grant{Kind: api.GrantDevice, Source: "0000:01:00.0", Target: "/dev/x"}), api.CodeInvalid, "/spec/grants/0/target"},
		"cap at a path":       {"", grant(api.Grant{Kind: api.GrantCapability, Source: "CAP_NET_RAW", Target: "/x"}), api.CodeInvalid, "/spec/grants/0/target"},
		"cap read-only":       {"", grant(api.Grant{Kind: api.GrantCapability, Source: "CAP_NET_RAW", ReadOnly: true}), api.CodeInvalid, "/spec/grants/0/readOnly"},
		"nesting read-only":   {"", grant(api.Grant{Kind: api.GrantNesting, ReadOnly: true}), api.CodeInvalid, "/spec/grants/0/readOnly"},
		"nesting at a path":   {"", grant(api.Grant{Kind: api.GrantNesting, Target: "/x"}), api.CodeInvalid, "/spec/grants/0/target"},
		"grant of no cap":     {"", grant(api.Grant{Kind: api.GrantCapability, Source: "all"}), api.CodeInvalid, "/spec/grants/0/source"},
		"dedicated, denied":   {"", func(s *api.ServerSpec) { s.CPU.Dedicated = true }, api.CodeForbidden, "/spec/cpu/dedicated"},
		"huge pages, denied":  {"", func(s *api.ServerSpec) { s.Memory.HugePages = true }, api.CodeForbidden, "/spec/memory/hugePages"},
		"firmware":            {"", func(s *api.ServerSpec) { s.Firmware = "coreboot" }, api.CodeInvalid, "/spec/firmware"},
		"devices":             {"", func(s *api.ServerSpec) { s.Devices = "scsi" }, api.CodeInvalid, "/spec/devices"},
		"drive of an os":      {"", func(s *api.ServerSpec) { s.CDROM = "iso" }, api.CodeInvalid, "/spec/cdrom"},
		"no ISO":              {"", func(s *api.ServerSpec) { s.Model = api.ModelFull; s.CDROM = "micro" }, api.CodeInvalid, "/spec/cdrom"},
		"app of a full":       {"", func(s *api.ServerSpec) { s.Model = api.ModelFull; s.App = &api.App{} }, api.CodeInvalid, "/spec/app"},
		"env":                 {"", func(s *api.ServerSpec) { s.App = &api.App{Env: map[string]string{"A=B": "c"}} }, api.CodeInvalid, "/spec/app/env"},
		"hostname":            {"", func(s *api.ServerSpec) { s.Guest = &api.Guest{Hostname: "a b"} }, api.CodeInvalid, "/spec/guest/hostname"},
		"user data and users": {"", func(s *api.ServerSpec) { s.Guest = &api.Guest{UserData: "x", SSHKeys: []string{"ssh-ed25519 A"}} }, api.CodeInvalid, "/spec/guest/userData"},
		"two lines of key":    {"", func(s *api.ServerSpec) { s.Guest = &api.Guest{SSHKeys: []string{"ssh-ed25519 A\nroot"}} }, api.CodeInvalid, "/spec/guest/sshKeys/0"},
		"user name":           {"", func(s *api.ServerSpec) { s.Guest = &api.Guest{Users: []api.GuestUser{{Name: "a:b"}}} }, api.CodeInvalid, "/spec/guest/users/0/name"},
		"clear password": {"", func(s *api.ServerSpec) {
			s.Guest = &api.Guest{Users: []api.GuestUser{{Name: "a", PasswordHash: "secret"}}}
		}, api.CodeInvalid, "/spec/guest/users/0/passwordHash"},
		"order":              {"", func(s *api.ServerSpec) { s.Autostart.Order = 1001 }, api.CodeInvalid, "/spec/autostart/order"},
		"autostart":          {"", func(s *api.ServerSpec) { s.Autostart.Policy = "maybe" }, api.CodeInvalid, "/spec/autostart/policy"},
		"retries":            {"", func(s *api.ServerSpec) { s.Restart.MaxRetries = -1 }, api.CodeInvalid, "/spec/restart/maxRetries"},
		"stop timeout":       {"", func(s *api.ServerSpec) { s.StopTimeout = -1 }, api.CodeInvalid, "/spec/stopTimeout"},
		"the engine's rule":  {"", func(s *api.ServerSpec) { s.Model, s.Engine, s.CPU.Count = api.ModelPara, "uml", 2 }, api.CodeInvalid, "/spec/cpu/count"},
		"name taken":         {"taken", nil, api.CodeExists, "/name"},
		"path":               {"../x", nil, api.CodeInvalid, "/name"},
		"shell":              {"a;rm -rf", nil, api.CodeInvalid, "/name"},
		"upper case":         {"Web", nil, api.CodeInvalid, "/name"},
		"digit first":        {"1web", nil, api.CodeInvalid, "/name"},
		"hyphen last":        {"web-", nil, api.CodeInvalid, "/name"},
		"unicode":            {"wëb", nil, api.CodeInvalid, "/name"},
		"300 characters":     {strings.Repeat("a", 300), nil, api.CodeInvalid, "/name"},
		"newline":            {"web\n", nil, api.CodeInvalid, "/name"},
		"more than there is": {"", func(s *api.ServerSpec) { s.Memory.Limit = api.TiB }, api.CodeCapacity, ""},
		"no engine does":     {"", func(s *api.ServerSpec) { s.Model, s.Engine = api.ModelPara, "xen" }, api.CodeInvalid, "/spec/engine"},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.name == "" {
				tc.name = "web"
			}
			if tc.edit == nil {
				tc.edit = func(*api.ServerSpec) {}
			}
			_, err := w.create(tc.name, tc.edit)
			if tc.pointer == "" {
				problem(t, err, tc.code)
			} else {
				problem(t, err, tc.code, tc.pointer)
			}
		})
	}
	for name, labels := range map[string]map[string]string{
		"/labels": {"a b": "c"}, "/labels/a": {"a": "line\nline"}, "/labels/a~1b": {"a/b": strings.Repeat("x", 300)},
	} {
		_, err := w.Servers().Create(t.Context(), root, DefaultTenant, httpapi.Create[api.ServerSpec]{Name: "web", Labels: labels, Spec: small()})
		problem(t, err, api.CodeInvalid, name)
	}
	_, err := w.Servers().Create(t.Context(), root, "nobody", httpapi.Create[api.ServerSpec]{Name: "web", Spec: small()})
	problem(t, err, api.CodeNotFound)
	_, err = w.Servers().Create(t.Context(), httpapi.Caller{Name: "eve"}, DefaultTenant, httpapi.Create[api.ServerSpec]{Name: "web", Spec: small()})
	problem(t, err, api.CodeForbidden)
	if d := cmp.Diff(before, w.host().Status.Allocated); d != "" {
		t.Errorf("refused servers left something promised: %s", d)
	}
	w.sound()
}

func TestDefaults(t *testing.T) {
	w := newWorld(t)
	s, err := w.Servers().Create(t.Context(), root, DefaultTenant, httpapi.Create[api.ServerSpec]{
		Name: "web", Spec: api.ServerSpec{Model: api.ModelOS, Image: "micro", CPU: api.CPU{Count: 2}, Ports: []api.Port{{Network: "corp"}}},
	})
	w.must(err)
	if s.Spec.CPU != (api.CPU{Count: 2, Entitlement: 200, Cap: 2000}) || s.Spec.Memory != (api.Memory{Limit: 512 * api.MiB, Reservation: 512 * api.MiB}) ||
		s.Spec.Disk.Size != 10*api.GiB || s.Spec.State != api.StateRunning || s.Status.Phase != api.PhasePending || s.Status.Engine != "runc" {
		t.Errorf("%+v", s)
	}
	p := s.Status.Ports[0]
	if p.Address.String() != "10.64.0.2" || p.Prefix != 24 || p.MAC == "" || p.Name != "web" {
		t.Errorf("%+v", p)
	}
	for model, engine := range map[api.Model]string{api.ModelFull: "qemu", api.ModelPara: "uml"} {
		s := w.server("x-"+string(model), func(s *api.ServerSpec) { s.Model = model })
		if s.Status.Engine != engine || s.Status.Overhead == 0 {
			t.Errorf("%s: %+v", model, s.Status)
		}
	}
	// uml takes one CPU only: with two, the choice falls on microvm.
	if s := w.server("two", func(s *api.ServerSpec) { s.Model, s.CPU.Count = api.ModelPara, 2 }); s.Status.Engine != "microvm" {
		t.Errorf("%+v", s.Status)
	}
	w.sound()
}

func TestUpdate(t *testing.T) {
	w := newWorld(t)
	s := w.server("web", func(s *api.ServerSpec) { s.Ports = []api.Port{{Network: "corp"}} })
	w.phase(s, api.PhaseRunning)
	update := func(e edit) (*api.Server, error) {
		now, err := w.Servers().Get(t.Context(), root, DefaultTenant, s.ID)
		w.must(err)
		spec := now.Spec
		e(&spec)
		return w.Servers().Update(t.Context(), root, DefaultTenant, s.ID, httpapi.Update[api.ServerSpec]{Spec: spec, Revision: now.Revision})
	}
	got, err := update(func(s *api.ServerSpec) { s.Memory.Limit = 512 * api.MiB })
	w.must(err)
	if got.Spec.Memory.Reservation != 512*api.MiB || w.host().Status.Allocated.Memory != 512*api.MiB {
		t.Errorf("the reservation does not follow the limit: %+v", got.Spec.Memory)
	}
	if got.Status.Ports[0] != s.Status.Ports[0] {
		t.Errorf("the port changed: %+v", got.Status.Ports)
	}
	if same, err := update(func(*api.ServerSpec) {}); err != nil || same.Revision != got.Revision {
		t.Errorf("an update without a change was written: %v, %v", same, err)
	}
	for name, tc := range map[string]struct {
		edit    edit
		code    api.Code
		pointer string
	}{
		"model":         {func(s *api.ServerSpec) { s.Model = api.ModelFull }, api.CodeInvalid, "/spec/model"},
		"image":         {func(s *api.ServerSpec) { s.Image = "other" }, api.CodeInvalid, "/spec/image"},
		"host":          {func(s *api.ServerSpec) { s.Host = "h2" }, api.CodeInvalid, "/spec/host"},
		"engine":        {func(s *api.ServerSpec) { s.Engine = "crun" }, api.CodeInvalid, "/spec/engine"},
		"smaller disk":  {func(s *api.ServerSpec) { s.Disk.Size = 2 * api.MiB }, api.CodeInvalid, "/spec/disk/size"},
		"live ports":    {func(s *api.ServerSpec) { s.Ports = nil }, api.CodeWrongState, "/spec/ports"},
		"live disk":     {func(s *api.ServerSpec) { s.Disk.Size = api.GiB }, api.CodeWrongState, "/spec/disk/size"},
		"too much":      {func(s *api.ServerSpec) { s.Memory.Limit, s.Memory.Reservation = api.TiB, api.TiB }, api.CodeCapacity, ""},
		"unknown state": {func(s *api.ServerSpec) { s.State = "x" }, api.CodeInvalid, "/spec/state"},
	} {
		_, err := update(tc.edit)
		if tc.pointer != "" {
			problem(t, err, tc.code, tc.pointer)
		} else if api.CodeOf(err) != tc.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = w.Servers().Update(t.Context(), root, DefaultTenant, "web", httpapi.Update[api.ServerSpec]{Spec: small(), Revision: 1})
	problem(t, err, api.CodeConflict)
	// Not before it was asked to stop, and has no start on its way: a phase is what was.
	w.phase(s, api.PhaseStopped)
	_, err = update(func(s *api.ServerSpec) { s.Ports = nil })
	problem(t, err, api.CodeWrongState, "/spec/ports")
	for _, act := range []api.PowerAction{api.PowerStop, api.PowerStart, api.PowerStop} {
		w.phase(s, api.PhaseFailed)
		if _, err = w.Power(t.Context(), root, DefaultTenant, "web", act, false); act == api.PowerStart {
			w.must(err)
		}
	}
	_, err = update(func(s *api.ServerSpec) { s.Ports = nil })
	problem(t, err, api.CodeWrongState, "/spec/ports")
	w.write(state.ServerStatus+s.ID, state.Status{ServerStatus: api.ServerStatus{Phase: api.PhaseStopped}, StartSeen: 1})
	if got, err = update(func(s *api.ServerSpec) { s.Ports, s.Disk.Size = nil, api.GiB }); err != nil || len(got.Status.Ports) != 0 {
		t.Fatalf("%+v, %v", got, err)
	}
	// A rename frees the old name and takes the new one.
	renamed, err := w.Servers().Update(t.Context(), root, DefaultTenant, "web", httpapi.Update[api.ServerSpec]{Name: "www", Spec: got.Spec})
	w.must(err)
	if renamed.Name != "www" || renamed.ID != s.ID {
		t.Errorf("%+v", renamed.Meta)
	}
	w.server("web")
	_, err = w.Servers().Update(t.Context(), root, DefaultTenant, "www", httpapi.Update[api.ServerSpec]{Name: "web", Spec: got.Spec})
	problem(t, err, api.CodeExists, "/name")
	w.sound()
	w.remove("web")
	w.remove("www")
	w.empty()
}

// The disk of a running server grows where its engine can do that.
func TestDiskGrowsLive(t *testing.T) {
	w := newWorld(t)
	s := w.server("web")
	w.phase(s, api.PhaseRunning)
	update := func(size api.Bytes) error {
		s.Spec.Disk.Size = size
		_, err := w.Servers().Update(t.Context(), root, DefaultTenant, "web", httpapi.Update[api.ServerSpec]{Spec: s.Spec})
		return err
	}
	problem(t, update(2*api.GiB), api.CodeWrongState, "/spec/disk/size")
	st := fakeStatus()
	for i := range st.Engines {
		st.Engines[i].Abilities = append(st.Engines[i].Abilities, "grow")
	}
	w.write(state.HostStatus+w.hostID, st)
	w.must(update(2 * api.GiB))
	if got := w.host().Status.Allocated.Disk; got != 2*api.GiB {
		t.Errorf("promised %v of disk", got)
	}
	problem(t, update(api.GiB), api.CodeInvalid, "/spec/disk/size")
	w.sound()
}

// A running server keeps the memory that it has, whatever its engine can: what it uses is promised to nobody else.
func TestMemoryShrink(t *testing.T) {
	w := newWorld(t)
	st := fakeStatus()
	st.Engines[0].Abilities = []string{"resize"}
	w.write(state.HostStatus+w.hostID, st)
	for _, model := range []api.Model{api.ModelFull, api.ModelOS} {
		s := w.server("m-"+string(model), func(s *api.ServerSpec) { s.Model = model })
		w.phase(s, api.PhaseRunning)
		update := func(limit api.Bytes) error {
			s.Spec.Memory.Limit = limit
			_, err := w.Servers().Update(t.Context(), root, DefaultTenant, s.ID, httpapi.Update[api.ServerSpec]{Spec: s.Spec})
			return err
		}
		w.must(update(512 * api.MiB))
		before := w.host().Status.Allocated
		problem(t, update(256*api.MiB), api.CodeWrongState, "/spec/memory/limit")
		if after := w.host().Status.Allocated; after != before {
			t.Errorf("%s: promised %+v, before %+v", model, after, before)
		}
		s.Spec.State = api.StateStopped
		w.must(update(512 * api.MiB))
		w.phase(s, api.PhaseStopped)
		w.must(update(256 * api.MiB))
		if after := w.host().Status.Allocated; after.Memory != before.Memory-256*api.MiB {
			t.Errorf("%s: promised %+v, before %+v", model, after, before)
		}
	}
	w.sound()
}

// The image in a drive is the one that was put in, whoever has its name later.
func TestDriveKeepsItsImage(t *testing.T) {
	w := newWorld(t)
	w.image("iso")
	s := w.server("vm", func(s *api.ServerSpec) { s.Model, s.CDROM = api.ModelFull, "iso" })
	before := w.ix.servers[s.ID].v
	_, err := w.Images().Update(t.Context(), root, DefaultTenant, "iso", httpapi.Update[api.ImageSpec]{Name: "old", Spec: api.ImageSpec{Shared: true}})
	w.must(err)
	_, err = w.Servers().Update(t.Context(), root, DefaultTenant, "vm", httpapi.Update[api.ServerSpec]{Spec: s.Spec, Labels: map[string]string{"a": "b"}})
	w.must(err)
	if now := w.ix.servers[s.ID].v; now.CDROMID != before.CDROMID || now.CDROMID == "" || now.CDROMDigest != before.CDROMDigest {
		t.Errorf("%+v", now)
	}
	w.sound()
}

func TestPowerIsRepeatable(t *testing.T) {
	w := newWorld(t)
	s := w.server("web")
	w.phase(s, api.PhaseRunning)
	who := root
	who.Key = "once"
	events := func() int {
		list, err := w.Events().List(t.Context(), root, DefaultTenant, httpapi.ListOptions{Filter: map[string]string{"reason": "RestartAsked"}})
		w.must(err)
		return list.Total
	}
	first, err := w.Power(t.Context(), who, DefaultTenant, "web", api.PowerRestart, false)
	w.must(err)
	again, err := w.Power(t.Context(), who, DefaultTenant, "web", api.PowerRestart, false)
	w.must(err)
	if n := w.ix.servers[s.ID].v.Intent.Restart; n != 1 || events() != 1 || first.Revision != again.Revision {
		t.Errorf("%d restarts, %d events, revisions %d and %d", n, events(), first.Revision, again.Revision)
	}
	_, err = w.Power(t.Context(), who, DefaultTenant, "web", api.PowerPause, false)
	problem(t, err, api.CodeKeyReused)
	// What changes nothing is no event, and with a key is still at the revision that is answered.
	w.phase(s, api.PhasePaused)
	who.Key = "none"
	same, err := w.Power(t.Context(), who, DefaultTenant, "web", api.PowerResume, false)
	w.must(err)
	again, err = w.Power(t.Context(), who, DefaultTenant, "web", api.PowerResume, false)
	w.must(err)
	list, err := w.Events().List(t.Context(), root, DefaultTenant, httpapi.ListOptions{Filter: map[string]string{"reason": "ResumeAsked"}})
	if err != nil || list.Total != 0 || same.Revision != again.Revision {
		t.Errorf("%d events, revisions %d and %d, %v", list.Total, same.Revision, again.Revision, err)
	}
}

func TestPower(t *testing.T) {
	w := newWorld(t)
	s := w.server("web")
	act := func(a api.PowerAction) error {
		_, err := w.Power(t.Context(), root, DefaultTenant, "web", a, false)
		return err
	}
	for _, tc := range []struct {
		phase api.Phase
		act   api.PowerAction
		code  api.Code // empty: it is done
		state api.PowerState
	}{
		{api.PhaseRunning, api.PowerStart, api.CodeWrongState, api.StateRunning},
		{api.PhaseRunning, api.PowerResume, api.CodeWrongState, api.StateRunning},
		{api.PhaseRunning, api.PowerPause, "", api.StatePaused},
		{api.PhasePaused, api.PowerStart, api.CodeWrongState, api.StatePaused},
		{api.PhasePaused, api.PowerPause, api.CodeWrongState, api.StatePaused},
		{api.PhasePaused, api.PowerResume, "", api.StateRunning},
		{api.PhaseRunning, api.PowerRestart, "", api.StateRunning},
		{api.PhaseRunning, api.PowerStop, "", api.StateStopped},
		{api.PhaseStopped, api.PowerStop, api.CodeWrongState, api.StateStopped},
		{api.PhaseStopped, api.PowerRestart, api.CodeWrongState, api.StateStopped},
		{api.PhaseStopped, api.PowerPause, api.CodeWrongState, api.StateStopped},
		{api.PhaseStopped, api.PowerStart, "", api.StateRunning},
		{api.PhaseFailed, api.PowerStart, "", api.StateRunning},
		{api.PhaseRunning, "explode", api.CodeInvalid, api.StateRunning},
	} {
		w.phase(s, tc.phase)
		if err := act(tc.act); (err == nil) != (tc.code == "") || (err != nil && api.CodeOf(err) != tc.code) {
			t.Errorf("%s while %s: %v, want %q", tc.act, tc.phase, err, tc.code)
		}
		if now, _ := w.Servers().Get(t.Context(), root, DefaultTenant, "web"); now.Spec.State != tc.state {
			t.Errorf("%s while %s: %s is asked for, want %s", tc.act, tc.phase, now.Spec.State, tc.state)
		}
	}
	r := w.ix.servers[s.ID].v
	if r.Intent.Restart != 1 || r.Intent.Start != 3 {
		t.Errorf("%+v", r.Intent)
	}
}

// A paused server whose guest has ended is held until a start, which a resume is.
func TestResumeOfWhatEnded(t *testing.T) {
	w := newWorld(t)
	s := w.server("web")
	w.phase(s, api.PhaseRunning)
	_, err := w.Power(t.Context(), root, DefaultTenant, "web", api.PowerPause, false)
	w.must(err)
	w.phase(s, api.PhaseStopped)
	_, err = w.Power(t.Context(), root, DefaultTenant, "web", api.PowerResume, false)
	w.must(err)
	if r := w.ix.servers[s.ID].v; r.Spec.State != api.StateRunning || r.Intent.Start != 1 {
		t.Errorf("after a resume: state %s, intent %+v", r.Spec.State, r.Intent)
	}
}

func TestDelete(t *testing.T) {
	w := newWorld(t)
	s := w.server("web", func(s *api.ServerSpec) { s.DeleteProtection = true })
	del := func(o httpapi.DeleteOptions) error {
		_, err := w.Servers().Delete(t.Context(), root, DefaultTenant, "web", o)
		return err
	}
	problem(t, del(httpapi.DeleteOptions{Force: true}), api.CodeProtected)
	spec := s.Spec
	spec.DeleteProtection = false
	_, err := w.Servers().Update(t.Context(), root, DefaultTenant, "web", httpapi.Update[api.ServerSpec]{Spec: spec})
	w.must(err)
	w.phase(s, api.PhaseRunning)
	problem(t, del(httpapi.DeleteOptions{}), api.CodeWrongState)
	problem(t, del(httpapi.DeleteOptions{Revision: s.Revision}), api.CodeConflict)
	w.must(del(httpapi.DeleteOptions{Force: true}))
	w.must(del(httpapi.DeleteOptions{})) // again is no error
	got, err := w.Servers().Get(t.Context(), root, DefaultTenant, "web")
	if err != nil || got.Status.Phase != api.PhaseDeleting {
		t.Errorf("%+v, %v", got, err)
	}
	_, err = w.Power(t.Context(), root, DefaultTenant, "web", api.PowerStart, false)
	problem(t, err, api.CodeWrongState)
	_, err = w.create("web")
	problem(t, err, api.CodeExists)
	w.must(w.Gone(t.Context(), s.ID))
	problem(t, del(httpapi.DeleteOptions{}), api.CodeNotFound)
	w.server("web")
}

func TestGrants(t *testing.T) {
	w := newWorld(t)
	_, err := w.Tenants().Create(t.Context(), root, "", httpapi.Create[api.TenantSpec]{Name: "acme", Spec: api.TenantSpec{Grants: []api.AllowedGrant{
		{Kind: api.GrantDirectory, Source: "/srv/data"}, {Kind: api.GrantDedicatedCPU}, {Kind: api.GrantCapability, Source: "CAP_NET_RAW"},
		{Kind: api.GrantHugePages},
	}}})
	w.must(err)
	create := func(name string, e edit) error {
		spec := small()
		e(&spec)
		_, err := w.Servers().Create(t.Context(), root, "acme", httpapi.Create[api.ServerSpec]{Name: name, Spec: spec})
		return err
	}
	directory := func(source string) edit {
		return func(s *api.ServerSpec) { s.Grants = []api.Grant{{Kind: api.GrantDirectory, Source: source}} }
	}
	w.must(create("a", directory("/srv/data")))
	w.must(create("b", directory("/srv/data/x")))
	problem(t, create("c", directory("/srv/database")), api.CodeForbidden, "/spec/grants/0")
	problem(t, create("c", directory("/")), api.CodeForbidden, "/spec/grants/0")
	w.must(create("tag", func(s *api.ServerSpec) { // what a virtual machine mounts by is no path
		s.Model, s.Grants = api.ModelFull, []api.Grant{{Kind: api.GrantDirectory, Source: "/srv/data", Target: "data"}}
	}))
	w.must(create("d", func(s *api.ServerSpec) { s.CPU.Dedicated, s.CPU.Count = true, 3 }))
	if cpus := w.ix.tables[kindServer].named("acme", "d"); !cmp.Equal(w.ix.servers[cpus.meta.ID].v.CPUs, []int{5, 6, 7}) {
		t.Errorf("%+v", w.ix.servers[cpus.meta.ID].v)
	}
	p := problem(t, create("e", func(s *api.ServerSpec) { s.CPU.Dedicated, s.CPU.Count = true, 6 }), api.CodeCapacity)
	if p.Short[0].Resource != "host-cpu" || p.Short[0].Short != "1" {
		t.Errorf("%+v", p.Short)
	}
	// Allowed, but no engine here can: neither at first nor later.
	p = problem(t, create("f", func(s *api.ServerSpec) { s.Model, s.Memory.HugePages = api.ModelFull, true }), api.CodeUnsupported, "/spec/memory/hugePages")
	if !strings.Contains(p.Detail, "qemu: can't hand over huge-pages: none are set aside") {
		t.Error(p)
	}
	// What has a field of its own is no grant of the list.
	for kind, field := range map[api.GrantKind]string{api.GrantDedicatedCPU: "/spec/cpu/dedicated", api.GrantHugePages: "/spec/memory/hugePages"} {
		p := problem(t, create("f", func(s *api.ServerSpec) { s.Grants = []api.Grant{{Kind: kind}} }), api.CodeInvalid, "/spec/grants/0/kind")
		if !strings.Contains(p.Error(), "by "+field) {
			t.Error(p)
		}
	}
	w.must(create("f", func(s *api.ServerSpec) { s.Model, s.State = api.ModelFull, api.StateStopped }))
	for pointer, e := range map[string]edit{
		"":                       directory("/srv/data"),
		"/spec/cpu/dedicated":    func(s *api.ServerSpec) { s.CPU.Dedicated = true },
		"/spec/memory/hugePages": func(s *api.ServerSpec) { s.Memory.HugePages = true },
		"/spec/grants/1": func(s *api.ServerSpec) {
			s.Grants = []api.Grant{{Kind: api.GrantDirectory, Source: "/srv/data"}, {Kind: api.GrantCapability, Source: "CAP_NET_RAW"}}
		},
	} {
		now, err := w.Servers().Get(t.Context(), root, "acme", "f")
		w.must(err)
		spec := now.Spec
		e(&spec)
		_, err = w.Servers().Update(t.Context(), root, "acme", "f", httpapi.Update[api.ServerSpec]{Spec: spec})
		if pointer == "" {
			w.must(err)
		} else {
			p := problem(t, err, api.CodeUnsupported, pointer)
			if strings.HasSuffix(pointer, "hugePages") && !strings.Contains(p.Error(), "on host h1 can't hand over huge-pages: none are set aside") {
				t.Error(p)
			}
		}
	}
	// What it has already is not asked for again.
	w.write(state.HostStatus+w.hostID, api.HostStatus{Phase: "ready"})
	now, err := w.Servers().Get(t.Context(), root, "acme", "a")
	w.must(err)
	_, err = w.Servers().Update(t.Context(), root, "acme", "a", httpapi.Update[api.ServerSpec]{Name: "renamed", Spec: now.Spec})
	w.must(err)
	w.sound()
}

// Huge pages are promised once, beside the rest of the memory, and count as memory against the quota.
func TestHugePages(t *testing.T) {
	w := newWorld(t)
	paged := machine
	paged.Capacity.HugePages = api.GiB
	w.register(paged)
	st := fakeStatus()
	st.Engines[0].Grants = append(st.Engines[0].Grants, api.GrantHugePages)
	w.write(state.HostStatus+w.hostID, st)
	_, err := w.Tenants().Update(t.Context(), root, "", DefaultTenant, httpapi.Update[api.TenantSpec]{
		Spec: api.TenantSpec{Grants: []api.AllowedGrant{{Kind: api.GrantHugePages}}},
	})
	w.must(err)
	on := func(limit api.Bytes) edit {
		return func(s *api.ServerSpec) {
			s.Model, s.State, s.Memory = api.ModelFull, api.StateStopped, api.Memory{Limit: limit, HugePages: true}
		}
	}
	used := func() (h, q api.Resources) {
		tenant, err := w.Tenants().Get(t.Context(), root, "", DefaultTenant)
		w.must(err)
		return w.host().Status.Allocated, tenant.Status.Used
	}
	s := w.server("a", on(768*api.MiB))
	if h, q := used(); h.HugePages != 768*api.MiB || h.Memory != 64*api.MiB || q.Memory != 768*api.MiB || s.Status.Overhead != 64*api.MiB {
		t.Errorf("host %+v, quota %+v, overhead %v", h, q, s.Status.Overhead)
	}
	p := problem(t, func() error { _, err := w.create("b", on(512*api.MiB)); return err }(), api.CodeCapacity)
	if d := cmp.Diff([]api.Shortage{{Resource: "huge-pages", Where: "h1", Asked: "512MiB", Free: "256MiB", Short: "256MiB"}}, p.Short); d != "" {
		t.Error(d)
	}
	w.server("b", on(256*api.MiB))
	update := func(e edit) error {
		spec := s.Spec
		e(&spec)
		_, err := w.Servers().Update(t.Context(), root, DefaultTenant, "a", httpapi.Update[api.ServerSpec]{Spec: spec})
		return err
	}
	if p := problem(t, update(func(s *api.ServerSpec) { s.Memory.Limit += 2 * api.MiB }), api.CodeCapacity); p.Short[0].Resource != "huge-pages" {
		t.Errorf("%+v", p.Short)
	}
	w.sound()
	// The host has fewer by now: what does not grow is never short. And off them again.
	w.register(machine)
	w.must(update(func(s *api.ServerSpec) { s.DeleteProtection = true }))
	w.must(update(func(s *api.ServerSpec) { s.Memory.HugePages = false }))
	if h, q := used(); h.HugePages != 256*api.MiB || h.Memory != (768+2*64)*api.MiB || q.Memory != 1024*api.MiB {
		t.Errorf("host %+v, quota %+v", h, q)
	}
	w.sound()
	w.remove("b")
	w.remove("a")
	w.empty()
}

// A host that lost its KVM promises what QEMU takes without, as far as it has that.
func TestReadmit(t *testing.T) {
	w := newWorld(t)
	s := w.server("a", func(s *api.ServerSpec) {
		s.Model, s.State, s.Memory = api.ModelFull, api.StateStopped, api.Memory{Limit: 256 * api.MiB}
	})
	before := w.host().Status.Allocated.Memory
	now := func(overhead api.Bytes) error {
		qemu := w.o.Engines[0].(fakeEngine)
		qemu.overhead = overhead
		w.o.Engines[0] = qemu
		return w.Readmit(t.Context(), s.ID)
	}
	w.must(now(200 * api.MiB))
	if got := w.host().Status.Allocated.Memory - before; got != 136*api.MiB {
		t.Errorf("the host promises %v more, want 136MiB", got)
	}
	problem(t, now(api.TiB), api.CodeCapacity)
	w.sound()
	w.remove("a")
	w.must(w.Readmit(t.Context(), s.ID))
	w.empty()
}

func TestUnavailable(t *testing.T) {
	w := newWorld(t)
	w.server("web")
	w.store.Close()
	_, err := w.create("late")
	problem(t, err, api.CodeUnavailable)
	if list, err := w.Servers().List(t.Context(), root, DefaultTenant, httpapi.ListOptions{}); err != nil || len(list.Items) != 1 {
		t.Errorf("reads go on: %v, %v", list, err)
	}
}

func TestStarted(t *testing.T) {
	w := newWorld(t)
	s := w.server("web", func(s *api.ServerSpec) { s.State = api.StateStopped })
	for range 2 {
		w.must(w.Started(t.Context(), s.ID))
	}
	if got, _ := w.Servers().Get(t.Context(), root, DefaultTenant, "web"); got.Spec.State != api.StateRunning {
		t.Errorf("%+v", got.Spec)
	}
	w.must(w.Started(t.Context(), "unknown"))
}

func TestIdempotency(t *testing.T) {
	w := newWorld(t)
	who := root
	who.Key = "k-1"
	body := httpapi.Create[api.ServerSpec]{Name: "web", Spec: small()}
	first, err := w.Servers().Create(t.Context(), who, DefaultTenant, body)
	w.must(err)
	w.phase(first, api.PhaseRunning)
	again, err := w.Servers().Create(t.Context(), who, DefaultTenant, body)
	w.must(err)
	if d := cmp.Diff(first, again, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Error(d)
	}
	body.Name = "other"
	_, err = w.Servers().Create(t.Context(), who, DefaultTenant, body)
	problem(t, err, api.CodeKeyReused)
	// At the same time, through two control planes: one server.
	other := start(t, w.store, w.images)
	who.Key, body.Name = "k-2", "racer"
	ids := make(chan string)
	for i := range 20 {
		go func() {
			s, err := []*Control{w.Control, other}[i%2].Servers().Create(t.Context(), who, DefaultTenant, body)
			if err != nil {
				t.Error(err)
				s = &api.Server{}
			}
			ids <- s.ID
		}()
	}
	seen := map[string]int{}
	for range 20 {
		seen[<-ids]++
	}
	if len(seen) != 1 {
		t.Errorf("%v", seen)
	}
	// A refused request is not remembered.
	who.Key = "k-3"
	body.Name = "UPPER"
	_, err = w.Servers().Create(t.Context(), who, DefaultTenant, body)
	problem(t, err, api.CodeInvalid)
	body.Name = "lower"
	_, err = w.Servers().Create(t.Context(), who, DefaultTenant, body)
	w.must(err)
	w.sound()
}

// A spec that a client can send is admitted or refused with a problem, and what is admitted fits and is sound.
func FuzzServerSpec(f *testing.F) {
	for _, seed := range []string{
		`{"model":"os","image":"micro"}`, `{"model":"full","image":"micro","cpu":{"count":2,"cap":"1.5"},"memory":{"limit":"1GiB"}}`,
		`{"model":"para","image":"micro","cpu":{"count":-1},"disk":{"size":9223372036854775807}}`,
		`{"model":"os","image":"micro","ports":[{"network":"corp","address":"10.64.0.7","mac":"02:00:00:00:00:07"}],"grants":[{"kind":"device","source":"/dev/kvm"}]}`,
		`{"model":"os","image":"micro","stopTimeout":"-5s","autostart":{"order":99999},"guest":{"users":[{"name":"x"}]}}`,
	} {
		f.Add([]byte(seed))
	}
	w := newWorld(f)
	n := 0
	f.Fuzz(func(t *testing.T, data []byte) {
		var spec api.ServerSpec
		if json.Unmarshal(data, &spec) != nil {
			return
		}
		n++
		s, err := w.Servers().Create(t.Context(), root, DefaultTenant, httpapi.Create[api.ServerSpec]{Name: fmt.Sprintf("f%d", n), Spec: spec})
		var p *api.Problem
		if err != nil {
			if !errors.As(err, &p) || p.Status >= 500 {
				t.Fatalf("%s: %v", data, err)
			}
			return
		}
		if s.Spec.CPU.Entitlement <= 0 || s.Spec.Memory.Reservation <= 0 || s.Spec.Memory.Reservation > s.Spec.Memory.Limit || s.Spec.Disk.Size <= 0 {
			t.Fatalf("%s: %+v", data, s.Spec)
		}
		if have := w.ix.servers[s.ID].v; have.Reserved.Memory < s.Spec.Memory.Reservation {
			t.Fatalf("%s: %+v", data, have.Reserved)
		}
		if err := w.Gone(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
	})
}
