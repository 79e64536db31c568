package control

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/state"
	"github.com/croftproject/croft/internal/store"
)

const (
	mbit     api.BitRate = 1e6
	onH1                 = "the uplink of h1"
	rateAt               = "/spec/bandwidth/committed"
	gigabit              = 1000 * mbit
	ofThatIs             = 900 * mbit // committable
)

// newUplinkWorld is a world whose host has an uplink of 1 Gbit, of which 900 Mbit may be committed.
func newUplinkWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.must(w.SetHostUplink(t.Context(), gigabit))
	return w
}

func committed(r api.BitRate) api.NetworkSpec {
	return api.NetworkSpec{Bandwidth: api.Bandwidth{Committed: r}}
}

func (w *world) makeNetwork(tenant, name string, rate api.BitRate) (*api.Network, error) {
	return w.Networks().Create(w.t.Context(), root, tenant, httpapi.Create[api.NetworkSpec]{Name: name, Spec: committed(rate)})
}

// lan makes a network of the default tenant.
func (w *world) lan(name string, rate api.BitRate) {
	w.t.Helper()
	_, err := w.makeNetwork(DefaultTenant, name, rate)
	w.must(err)
}

func (w *world) rateNetwork(tenant, name string, rate api.BitRate) error {
	w.t.Helper()
	n, err := w.Networks().Get(w.t.Context(), root, tenant, name)
	w.must(err)
	n.Spec.Bandwidth.Committed = rate
	_, err = w.Networks().Update(w.t.Context(), root, tenant, name, httpapi.Update[api.NetworkSpec]{Spec: n.Spec})
	return err
}

func (w *world) rateTenant(name string, rate api.BitRate) error {
	_, err := w.Tenants().Update(w.t.Context(), root, "", name,
		httpapi.Update[api.TenantSpec]{Spec: api.TenantSpec{Bandwidth: api.Bandwidth{Committed: rate}}})
	return err
}

func (w *world) updateHost(spec api.HostSpec) error {
	_, err := w.Hosts().Update(w.t.Context(), root, "", "h1", httpapi.Update[api.HostSpec]{Spec: spec})
	return err
}

func (w *world) tenant(name string, spec api.TenantSpec) *api.Tenant {
	w.t.Helper()
	made, err := w.Tenants().Create(w.t.Context(), root, "", httpapi.Create[api.TenantSpec]{Name: name, Spec: spec})
	w.must(err)
	return made
}

func (w *world) createFor(tenant, name, network string) error {
	spec := small()
	in(network)(&spec)
	_, err := w.Servers().Create(w.t.Context(), root, tenant, httpapi.Create[api.ServerSpec]{Name: name, Spec: spec})
	return err
}

// in gives a server a port in a network.
func in(network string) edit {
	return func(s *api.ServerSpec) { s.Ports = []api.Port{{Network: network}} }
}

// ledgers are all ledgers as they are in the store.
func (w *world) ledgers() map[string]string {
	w.t.Helper()
	records, _, err := w.store.List(w.t.Context(), "ledger/")
	w.must(err)
	out := map[string]string{}
	for _, r := range records {
		out[r.Key] = string(r.Value)
	}
	return out
}

// committed demands what is committed on the uplink of a host.
func (w *world) committed(host string, want api.BitRate) {
	w.t.Helper()
	h, err := w.Hosts().Get(w.t.Context(), root, "", host)
	w.must(err)
	if got := h.Status.Uplink.Committed; got != want {
		w.t.Errorf("%s are committed on %s; want %s", got, host, want)
	}
}

func short(where, asked, free, by string) api.Shortage {
	return api.Shortage{Resource: "bandwidth", Where: where, Asked: asked, Free: free, Short: by}
}

// refused demands a problem with exactly these shortages, and that the ledgers are as before.
func (w *world) refused(before map[string]string, err error, code api.Code, pointers []string, want ...api.Shortage) {
	w.t.Helper()
	p := problem(w.t, err, code, pointers...)
	if d := cmp.Diff(want, p.Short); d != "" {
		w.t.Error(d)
	}
	if len(p.Errors) != len(pointers) {
		w.t.Errorf("errors %+v; want those of %v", p.Errors, pointers)
	}
	if d := cmp.Diff(before, w.ledgers()); d != "" {
		w.t.Errorf("what was refused changed the ledgers: %s", d)
	}
}

func TestBadBandwidth(t *testing.T) {
	w := newUplinkWorld(t)
	w.lan("fast", mbit)
	w.tenant("acme", api.TenantSpec{})
	before := w.ledgers()
	for name, tc := range map[string]struct {
		bandwidth api.Bandwidth
		pointer   string
	}{
		"above peak":         {api.Bandwidth{Committed: 2, Peak: 1}, "/spec/bandwidth/committed"},
		"committed too much": {api.Bandwidth{Committed: mostRate + 1}, "/spec/bandwidth/committed"},
		"committed negative": {api.Bandwidth{Committed: -1}, "/spec/bandwidth/committed"},
		"peak too much":      {api.Bandwidth{Peak: mostRate + 1}, "/spec/bandwidth/peak"},
		"peak negative":      {api.Bandwidth{Peak: -1}, "/spec/bandwidth/peak"},
		"burst too small":    {api.Bandwidth{Burst: 64*api.KiB - 1}, "/spec/bandwidth/burst"},
		"burst too large":    {api.Bandwidth{Burst: api.GiB + 1}, "/spec/bandwidth/burst"},
		"burst negative":     {api.Bandwidth{Burst: -1}, "/spec/bandwidth/burst"},
	} {
		t.Run(name, func(t *testing.T) {
			network, tenant := api.NetworkSpec{Bandwidth: tc.bandwidth}, api.TenantSpec{Bandwidth: tc.bandwidth}
			_, err := w.Networks().Create(t.Context(), root, DefaultTenant, httpapi.Create[api.NetworkSpec]{Name: "bad", Spec: network})
			problem(t, err, api.CodeInvalid, tc.pointer)
			_, err = w.Networks().Update(t.Context(), root, DefaultTenant, "fast", httpapi.Update[api.NetworkSpec]{Spec: network})
			problem(t, err, api.CodeInvalid, tc.pointer)
			_, err = w.Tenants().Create(t.Context(), root, "", httpapi.Create[api.TenantSpec]{Name: "bad", Spec: tenant})
			problem(t, err, api.CodeInvalid, tc.pointer)
			_, err = w.Tenants().Update(t.Context(), root, "", "acme", httpapi.Update[api.TenantSpec]{Spec: tenant})
			problem(t, err, api.CodeInvalid, tc.pointer)
		})
	}
	// A network that has a rate can't lose its way out.
	off := committed(mbit)
	off.NAT = new(bool)
	_, err := w.Networks().Update(t.Context(), root, DefaultTenant, "fast", httpapi.Update[api.NetworkSpec]{Spec: off})
	problem(t, err, api.CodeInvalid, "/spec/bandwidth")
	less := api.BitRate(-1)
	_, err = w.Tenants().Update(t.Context(), root, "", "acme", httpapi.Update[api.TenantSpec]{Spec: api.TenantSpec{Quota: api.Quota{Bandwidth: &less}}})
	problem(t, err, api.CodeInvalid, "/spec/quota/bandwidth")
	if d := cmp.Diff(before, w.ledgers()); d != "" {
		t.Error(d)
	}
	for name, b := range map[string]api.Bandwidth{
		"least": {Committed: 1, Peak: 1, Burst: 64 * api.KiB},
		"most":  {Committed: mostRate, Peak: mostRate, Burst: api.GiB},
	} {
		_, err := w.Networks().Create(t.Context(), root, DefaultTenant, httpapi.Create[api.NetworkSpec]{Name: name, Spec: api.NetworkSpec{Bandwidth: b}})
		w.must(err)
		w.tenant(name, api.TenantSpec{Bandwidth: b})
	}
	w.sound()
}

func TestBadHostUplink(t *testing.T) {
	w := newUplinkWorld(t)
	for name, tc := range map[string]struct {
		spec    api.HostSpec
		pointer string
	}{
		"everything":    {api.HostSpec{Committable: 96}, "/spec/committable"},
		"negative part": {api.HostSpec{Committable: -1}, "/spec/committable"},
		"negative rate": {api.HostSpec{UplinkRate: -1}, "/spec/uplinkRate"},
		"too fast":      {api.HostSpec{UplinkRate: mostRate + 1}, "/spec/uplinkRate"},
	} {
		t.Run(name, func(t *testing.T) { problem(t, w.updateHost(tc.spec), api.CodeInvalid, tc.pointer) })
	}
	w.must(w.updateHost(api.HostSpec{UplinkRate: mostRate, Committable: 95}))
	w.must(w.updateHost(api.HostSpec{})) // left out
	if h := w.host(); h.Spec.Committable != 90 || h.Status.Uplink.Committable != ofThatIs {
		t.Errorf("%+v, %+v", h.Spec, h.Status.Uplink)
	}
}

func TestServerExceedsUplink(t *testing.T) {
	w := newUplinkWorld(t)
	w.lan("fast", 600*mbit)
	w.lan("wide", 400*mbit)
	w.server("a", in("fast"))
	w.committed("h1", 600*mbit)
	before := w.ledgers()
	_, err := w.create("b", in("wide"))
	w.refused(before, err, api.CodeCapacity, nil, short(onH1, "400Mbit", "300Mbit", "100Mbit"))
	if list, err := w.Servers().List(t.Context(), root, DefaultTenant, httpapi.ListOptions{}); err != nil || list.Total != 1 {
		t.Errorf("%s, %v", list.Items, err)
	}
	// Everything that is short is told.
	_, err = w.create("b", in("wide"), func(s *api.ServerSpec) { s.Memory.Limit = 100 * 256 * api.MiB })
	w.refused(before, err, api.CodeCapacity, nil,
		api.Shortage{Resource: "memory", Where: "h1", Asked: "25GiB", Free: "25344MiB", Short: "256MiB"}, short(onH1, "400Mbit", "300Mbit", "100Mbit"))
	w.server("b", in("fast")) // what its network has already
	w.server("c", in("corp")) // which has none
	w.server("d")
	w.committed("h1", 600*mbit)
	w.must(w.rateNetwork(DefaultTenant, "wide", 300*mbit)) // it has no port: nothing is committed yet
	w.committed("h1", 600*mbit)
	w.server("e", in("wide"))
	w.committed("h1", ofThatIs)
	w.sound()
}

func TestUnknownUplink(t *testing.T) {
	w := newWorld(t)
	tenant := w.tenant("acme", api.TenantSpec{})
	w.lan("fast", mbit) // without a server it is a wish
	before := w.ledgers()
	_, err := w.create("a", in("fast"))
	w.refused(before, err, api.CodeCapacity, nil, short(onH1, "1Mbit", "0bit", "1Mbit"))
	w.server("b", in("corp"))
	_, err = w.makeNetwork(tenant.Name, "lan", 0)
	w.must(err)
	w.must(w.createFor(tenant.Name, "a", "lan"))
	before = w.ledgers()
	w.refused(before, w.rateNetwork(DefaultTenant, "corp", 2*mbit), api.CodeCapacity, []string{rateAt}, short(onH1, "2Mbit", "0bit", "2Mbit"))
	w.refused(before, w.rateTenant(tenant.Name, 3*mbit), api.CodeCapacity, []string{rateAt}, short(onH1, "3Mbit", "0bit", "3Mbit"))
	corp, err := w.Networks().Get(t.Context(), root, DefaultTenant, "corp")
	w.must(err)
	corp.Spec.Bandwidth = api.Bandwidth{Peak: mbit, Burst: api.MiB} // these promise nothing
	_, err = w.Networks().Update(t.Context(), root, DefaultTenant, "corp", httpapi.Update[api.NetworkSpec]{Spec: corp.Spec})
	w.must(err)
	if d := cmp.Diff(api.UplinkStatus{}, w.host().Status.Uplink); d != "" {
		t.Error(d)
	}
	w.must(w.updateHost(api.HostSpec{UplinkRate: gigabit}))
	w.must(w.rateNetwork(DefaultTenant, "corp", mbit))
	w.must(w.rateTenant(tenant.Name, 3*mbit))
	w.server("a", in("fast"))
	w.committed("h1", 5*mbit)
	w.sound()
}

func TestNetworkRateChanges(t *testing.T) {
	w := newUplinkWorld(t)
	w.lan("fast", 600*mbit)
	w.server("a", in("fast"))
	w.server("b", in("corp"))
	w.must(w.rateNetwork(DefaultTenant, "corp", 300*mbit)) // the last there is
	w.committed("h1", ofThatIs)
	before := w.ledgers()
	w.refused(before, w.rateNetwork(DefaultTenant, "corp", 300*mbit+1), api.CodeCapacity, []string{rateAt}, short(onH1, "1bit", "0bit", "1bit"))
	w.must(w.rateNetwork(DefaultTenant, "fast", 500*mbit))
	w.committed("h1", 800*mbit)
	before = w.ledgers()
	w.refused(before, w.rateNetwork(DefaultTenant, "corp", 450*mbit), api.CodeCapacity, []string{rateAt}, short(onH1, "150Mbit", "100Mbit", "50Mbit"))
	if n, err := w.Networks().Get(t.Context(), root, DefaultTenant, "corp"); err != nil || n.Spec.Bandwidth.Committed != 300*mbit {
		t.Errorf("%+v, %v", n, err)
	}
	w.must(w.rateNetwork(DefaultTenant, "corp", 400*mbit))
	w.committed("h1", ofThatIs)
	w.sound()
	w.must(w.rateNetwork(DefaultTenant, "corp", 0))
	w.must(w.rateNetwork(DefaultTenant, "fast", 0))
	w.committed("h1", 0)
	w.sound()
	// A port that has none keeps its place in the ledger, and it goes with the port.
	w.must(w.rateNetwork(DefaultTenant, "fast", mbit))
	w.committed("h1", mbit)
	w.remove("a")
	w.committed("h1", 0)
	w.remove("b")
	w.empty()
	w.sound()
}

func TestTenantRateChanges(t *testing.T) {
	const ofAcme = "tenant acme on " + onH1
	w := newUplinkWorld(t)
	w.tenant("acme", api.TenantSpec{Bandwidth: api.Bandwidth{Committed: 300 * mbit}})
	for name, rate := range map[string]api.BitRate{"a": 200 * mbit, "b": 100 * mbit, "c": 50 * mbit} {
		_, err := w.makeNetwork("acme", name, rate)
		w.must(err)
	}
	w.committed("h1", 0)
	w.must(w.createFor("acme", "a", "a"))
	w.committed("h1", 300*mbit) // a tenant's first port brings all its rate
	w.must(w.createFor("acme", "b", "b"))
	w.committed("h1", 300*mbit)
	before := w.ledgers()
	at := []string{rateAt}
	w.refused(before, w.createFor("acme", "c", "c"), api.CodeCapacity, nil, short(ofAcme, "50Mbit", "0bit", "50Mbit"))
	w.refused(before, w.rateTenant("acme", 250*mbit), api.CodeCapacity, at, short(ofAcme, "300Mbit", "250Mbit", "50Mbit"))
	w.refused(before, w.rateNetwork("acme", "a", 201*mbit), api.CodeCapacity, at, short(ofAcme, "1Mbit", "0bit", "1Mbit"))
	w.refused(before, w.rateTenant("acme", 1000*mbit), api.CodeCapacity, at, short(onH1, "700Mbit", "600Mbit", "100Mbit"))
	w.must(w.rateTenant("acme", 350*mbit))
	w.committed("h1", 350*mbit)
	w.must(w.createFor("acme", "c", "c"))
	w.must(w.rateNetwork("acme", "a", 150*mbit)) // the tenant keeps what it has
	w.committed("h1", 350*mbit)
	w.must(w.rateTenant("acme", 300*mbit))
	w.committed("h1", 300*mbit)
	w.sound()
	w.must(w.rateNetwork("acme", "a", 50*mbit))
	w.must(w.rateTenant("acme", 0)) // none of its own: what its networks have
	w.committed("h1", 200*mbit)
	w.sound()
}

func TestBandwidthQuota(t *testing.T) {
	w := newWorld(t)
	most, less := 100*mbit, 50*mbit
	w.tenant("reseller", api.TenantSpec{Quota: api.Quota{Bandwidth: &most}})
	w.tenant("acme", api.TenantSpec{Parent: "reseller"})
	used := func(want api.BitRate) {
		t.Helper()
		for _, name := range []string{"reseller", "acme"} {
			got, err := w.Tenants().Get(t.Context(), root, "", name)
			if err != nil || got.Status.Bandwidth != want {
				t.Errorf("%s has %s, %v; want %s", name, got.Status.Bandwidth, err, want)
			}
		}
	}
	make := func(name string, rate api.BitRate) error {
		_, err := w.makeNetwork("acme", name, rate)
		return err
	}
	before := w.ledgers()
	w.refused(before, make("a", 150*mbit), api.CodeQuota, nil, short("reseller", "150Mbit", "100Mbit", "50Mbit"))
	w.must(make("a", 60*mbit))
	used(60 * mbit)
	before = w.ledgers()
	w.refused(before, make("b", 50*mbit), api.CodeQuota, nil, short("reseller", "50Mbit", "40Mbit", "10Mbit"))
	w.must(make("b", 40*mbit))
	before = w.ledgers()
	w.refused(before, w.rateNetwork("acme", "b", 41*mbit), api.CodeQuota, nil, short("reseller", "41Mbit", "40Mbit", "1Mbit"))
	w.must(w.rateNetwork("acme", "a", 55*mbit))
	used(95 * mbit)
	// Less than what is used: nothing grows, everything may shrink.
	_, err := w.Tenants().Update(t.Context(), root, "", "reseller", httpapi.Update[api.TenantSpec]{Spec: api.TenantSpec{Quota: api.Quota{Bandwidth: &less}}})
	w.must(err)
	w.must(w.rateNetwork("acme", "a", 54*mbit))
	before = w.ledgers()
	w.refused(before, w.rateNetwork("acme", "a", 55*mbit), api.CodeQuota, nil, short("reseller", "55Mbit", "10Mbit", "45Mbit"))
	w.must(make("c", 0))
	used(94 * mbit)
	w.sound()
	for _, name := range []string{"a", "b", "c"} {
		_, err := w.Networks().Delete(t.Context(), root, "acme", name, httpapi.DeleteOptions{})
		w.must(err)
	}
	used(0)
	w.sound()
}

func TestServerGivesUplinkBack(t *testing.T) {
	w := newUplinkWorld(t)
	w.lan("fast", 600*mbit)
	tenant, err := w.Tenants().Get(t.Context(), root, "", DefaultTenant)
	w.must(err)
	key := state.UplinkKey(w.hostID, tenant.ID)
	w.server("a", in("fast"))
	w.server("b", in("fast"))
	w.server("c", in("corp"))
	if _, err := w.store.Get(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	w.remove("a")
	w.committed("h1", 600*mbit)
	// A delete alone gives nothing back: the server is still there.
	b, err := w.Servers().Delete(t.Context(), root, DefaultTenant, "b", httpapi.DeleteOptions{Force: true})
	w.must(err)
	w.committed("h1", 600*mbit)
	w.sound()
	// Nothing that goes is held back by what the uplink is by now.
	w.must(w.SetHostUplink(t.Context(), 0))
	for range 2 { // it is idempotent
		w.must(w.Gone(t.Context(), b.ID))
	}
	w.committed("h1", 0)
	if _, err := w.store.Get(t.Context(), key); err != nil {
		t.Errorf("the tenant has a port on the host: %v", err)
	}
	w.sound()
	w.remove("c")
	if _, err := w.store.Get(t.Context(), key); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("%s is left: %v", key, err)
	}
	w.empty()
	w.sound()
}

// A server that changes its network takes what the new one has, and gives what the old one had back.
func TestServerChangesNetwork(t *testing.T) {
	w := newUplinkWorld(t)
	w.lan("fast", 600*mbit)
	w.lan("wide", 400*mbit)
	stopped := func(s *api.ServerSpec) { s.State = api.StateStopped }
	w.server("a", in("fast"), stopped)
	s := w.server("b", in("corp"), stopped)
	move := func(name string, edit edit) error {
		spec := s.Spec
		edit(&spec)
		_, err := w.Servers().Update(t.Context(), root, DefaultTenant, name, httpapi.Update[api.ServerSpec]{Spec: spec})
		return err
	}
	before := w.ledgers()
	w.refused(before, move("b", in("wide")), api.CodeCapacity, nil, short(onH1, "400Mbit", "300Mbit", "100Mbit"))
	w.must(move("a", in("wide")))
	w.committed("h1", 400*mbit)
	w.must(move("b", in("wide")))
	w.committed("h1", 400*mbit)
	w.sound()
	for _, name := range []string{"a", "b"} {
		w.must(move(name, func(s *api.ServerSpec) { s.Ports = nil }))
	}
	w.committed("h1", 0)
	w.sound()
	w.remove("a")
	w.remove("b")
	w.empty()
}

func TestUplinkStatus(t *testing.T) {
	w := newUplinkWorld(t)
	st := fakeStatus()
	st.Uplink.Device = "eth0"
	w.write(state.HostStatus+w.hostID, st)
	w.lan("fast", 600*mbit)
	w.server("a", in("fast"))
	check := func(rate, committable, committed api.BitRate) {
		t.Helper()
		want := api.UplinkStatus{Device: "eth0", Rate: rate, Committable: committable, Committed: committed}
		if d := cmp.Diff(want, w.host().Status.Uplink); d != "" {
			t.Error(d)
		}
	}
	check(gigabit, 900*mbit, 600*mbit)
	before := w.host().Revision
	w.must(w.SetHostUplink(t.Context(), gigabit))
	if w.host().Revision != before {
		t.Error("the same rate changed the host")
	}
	w.must(w.updateHost(api.HostSpec{UplinkRate: 2 * gigabit, Committable: 50})) // what is declared goes before what the device tells
	check(2*gigabit, gigabit, 600*mbit)
	w.must(w.updateHost(api.HostSpec{}))
	check(gigabit, 900*mbit, 600*mbit)
	w.must(w.SetHostUplink(t.Context(), 100*mbit)) // what is promised stays
	check(100*mbit, 90*mbit, 600*mbit)
	w.remove("a")
	check(100*mbit, 90*mbit, 0)
}

func TestUplinkOverpromised(t *testing.T) {
	w := newUplinkWorld(t)
	w.lan("fast", 600*mbit)
	w.server("a", in("fast"))
	over := func() httpapi.Raw {
		t.Helper()
		events, err := w.Events().List(t.Context(), root, "", httpapi.ListOptions{AllTenants: true, Filter: map[string]string{"reason": "Overpromised"}})
		w.must(err)
		return events
	}
	w.must(w.updateHost(api.HostSpec{UplinkRate: gigabit, Committable: 60})) // just what is committed
	if e := over(); e.Total != 0 {
		t.Errorf("%s", e.Items)
	}
	w.must(w.updateHost(api.HostSpec{UplinkRate: 500 * mbit}))
	e := over()
	if e.Total != 1 || !strings.Contains(string(e.Items[0]), `"warning":true`) ||
		!strings.Contains(string(e.Items[0]), "bandwidth: 600Mbit asked of the uplink of h1, 450Mbit free, 150Mbit short") {
		t.Errorf("%s", e.Items)
	}
	// Nothing grows, everything may shrink.
	before := w.ledgers()
	w.refused(before, w.rateNetwork(DefaultTenant, "fast", 601*mbit), api.CodeCapacity, []string{rateAt}, short(onH1, "1Mbit", "0bit", "1Mbit"))
	w.server("b", in("fast"))
	w.must(w.rateNetwork(DefaultTenant, "fast", 500*mbit))
	w.committed("h1", 500*mbit)
	w.sound()
}

// A server goes where the uplink has room; and a network's rate has to fit everywhere that the network has a server.
func TestUplinksOfSeveralHosts(t *testing.T) {
	w := newUplinkWorld(t)
	second := machine
	second.Name = "h2"
	w.register(second)
	w.must(w.SetHostUplink(t.Context(), gigabit))
	for _, name := range []string{"first", "second", "third"} {
		w.lan(name, 800*mbit)
	}
	on := func(s *api.Server, host string) {
		t.Helper()
		if s.Status.Host != host {
			t.Errorf("%s is on %s; want %s", s.Name, s.Status.Host, host)
		}
	}
	on(w.server("a", in("first")), "h1")
	on(w.server("b", in("second")), "h2")
	for i := range 4 { // wherever there is more memory
		on(w.server(fmt.Sprintf("a%d", i), in("first")), "h1")
		on(w.server(fmt.Sprintf("b%d", i), in("second"), func(s *api.ServerSpec) { s.Memory.Limit = api.GiB }), "h2")
	}
	before := w.ledgers()
	of1, of2 := short(onH1, "800Mbit", "100Mbit", "700Mbit"), short("the uplink of h2", "800Mbit", "100Mbit", "700Mbit")
	_, err := w.create("c", in("third"))
	w.refused(before, err, api.CodeCapacity, nil, of1, of2)
	_, err = w.create("c", in("third"), func(s *api.ServerSpec) { s.Host = "h2" })
	w.refused(before, err, api.CodeCapacity, nil, of2)

	w.must(w.rateNetwork(DefaultTenant, "first", 100*mbit))
	on(w.server("c", in("first"), func(s *api.ServerSpec) { s.Host = "h2" }), "h2")
	w.committed("h1", 100*mbit)
	w.committed("h2", 900*mbit)
	before = w.ledgers()
	w.refused(before, w.rateNetwork(DefaultTenant, "first", 200*mbit), api.CodeCapacity, []string{rateAt},
		short("the uplink of h2", "100Mbit", "0bit", "100Mbit"))
	w.must(w.rateNetwork(DefaultTenant, "second", 700*mbit))
	w.must(w.rateNetwork(DefaultTenant, "first", 200*mbit))
	w.committed("h1", 200*mbit)
	w.committed("h2", 900*mbit)
	w.sound()
}

// 200 changes of rates at once admit exactly what fits, again and again; the refused hear what is short by how much; and
// when all are taken back nothing is committed any more.
func TestConcurrentRates(t *testing.T) {
	r := newRates(t)
	other := start(t, r.store, r.images)
	t.Run("one control plane", func(t *testing.T) {
		for range 3 {
			r.race(t, []*Control{r.Control}, 100, func(int) api.BitRate { return 9 * mbit })
		}
		r.race(t, []*Control{r.Control}, 0, func(i int) api.BitRate { return api.BitRate(1+i*7%20) * mbit })
	})
	t.Run("two control planes on one store", func(t *testing.T) {
		both := []*Control{r.Control, other}
		r.race(t, both, 100, func(int) api.BitRate { return 9 * mbit })
		r.race(t, both, 0, func(i int) api.BitRate { return api.BitRate(1+i*7%20) * mbit })
	})
	for i := range r.specs {
		r.remove(fmt.Sprintf("s%d", i))
	}
	r.empty()
	r.sound()
}

// rates is a world with 200 networks, each with a port on the host.
type rates struct {
	*world
	specs [200]api.NetworkSpec
}

func newRates(t *testing.T) *rates {
	t.Helper()
	r := &rates{world: newUplinkWorld(t)}
	large := machine
	large.Capacity.Memory = api.TiB
	r.register(large)
	var wg sync.WaitGroup
	for i := range r.specs {
		wg.Go(func() {
			name := fmt.Sprintf("n%d", i)
			n, err := r.makeNetwork(DefaultTenant, name, 0)
			if err == nil {
				r.specs[i] = n.Spec
				_, err = r.create(fmt.Sprintf("s%d", i), in(name))
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return r
}

func (r *rates) change(plane *Control, i int, rate api.BitRate) error {
	spec := cloneNetwork(r.specs[i])
	spec.Bandwidth.Committed = rate
	_, err := plane.Networks().Update(r.t.Context(), root, DefaultTenant, fmt.Sprintf("n%d", i), httpapi.Update[api.NetworkSpec]{Spec: spec})
	return err
}

// race gives every network its rate at once, and then takes all back at once. Where all rates are the same, room is how
// many of them fit.
func (r *rates) race(t *testing.T, planes []*Control, room int, rate func(i int) api.BitRate) {
	t.Helper()
	for _, p := range planes {
		if err := p.catchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	var refusals [len(r.specs)]error
	all := func(do func(plane *Control, i int)) {
		var wg sync.WaitGroup
		for i := range r.specs {
			wg.Go(func() { do(planes[i%len(planes)], i) })
		}
		wg.Wait()
		if err := r.catchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	all(func(plane *Control, i int) { refusals[i] = r.change(plane, i, rate(i)) })
	var sum api.BitRate
	admitted := 0
	for i, err := range refusals {
		if err == nil {
			sum += rate(i)
			admitted++
		}
	}
	left := ofThatIs - sum
	if left < 0 || room > 0 && admitted != room {
		t.Fatalf("%d changes admitted %s; want %d, and %s at most", admitted, sum, room, ofThatIs)
	}
	r.committed("h1", sum)
	for i, err := range refusals {
		if err == nil {
			continue
		}
		// Rates only grow meanwhile: what was free then was at least what is left in the end.
		p := problem(t, err, api.CodeCapacity, rateAt)
		if len(p.Short) != 1 {
			t.Fatalf("%+v", p.Short)
		}
		free, err := api.ParseBitRate(p.Short[0].Free)
		if want := short(onH1, rate(i).String(), free.String(), (rate(i) - free).String()); err != nil || p.Short[0] != want || free < left || free >= rate(i) {
			t.Errorf("short of %+v, with %s left in the end; want %+v", p.Short[0], left, want)
		}
		if room > 0 && free != 0 {
			t.Errorf("refused with %s free", free)
		}
	}
	r.sound()
	all(func(plane *Control, i int) {
		if err := r.change(plane, i, 0); err != nil {
			t.Error(err)
		}
	})
	r.committed("h1", 0)
	r.sound()
}
