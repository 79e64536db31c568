package agent

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/hostnet"
	"github.com/croftproject/croft/internal/state"
)

// division waits until the uplink is divided as wanted. It is divided again and again, so others may come before.
func (h *host) division(what string, want hostnet.Shares) {
	h.t.Helper()
	var last hostnet.Shares
	for deadline := time.After(20 * time.Second); ; {
		select {
		case last = <-h.divided:
			if reflect.DeepEqual(last, want) {
				return
			}
		case <-deadline:
			h.t.Fatalf("%s: the uplink is not divided as it should be: %s", what, cmp.Diff(want, last))
		}
	}
}

// The uplink is divided between the networks that have a port on the host, before they are there, and anew whenever a
// profile, a port or the uplink's rate changes.
func TestShares(t *testing.T) {
	h := newHost(t)
	h.divided = make(chan hostnet.Shares, 1000)
	network := func(b api.Bandwidth) {
		h.write(state.Networks+"net1", state.Network{Meta: api.Meta{Name: "corp", ID: "net1", Tenant: "t"}, Spec: api.NetworkSpec{
			MTU: 1500, Subnets: []api.Subnet{{Prefix: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.1")}}, Bandwidth: b,
		}})
	}
	shares := func(rate api.BitRate, tenant, network hostnet.Profile) hostnet.Shares {
		return hostnet.Shares{Rate: rate, Reserved: rate / 10, Tenants: []hostnet.TenantShare{
			{ID: "t", Profile: tenant, Networks: []hostnet.NetworkShare{{ID: "net1", Profile: network}}},
		}}
	}
	none := hostnet.Profile{}
	network(api.Bandwidth{Committed: 20e6, Peak: 50e6, Burst: 1 << 20})
	corp := hostnet.Profile{Committed: 20e6, Peak: 50e6, Burst: 1 << 20}
	a, stop := h.agent()
	a.SetUplink(1e9, 1e8)
	h.division("no port yet", hostnet.Shares{})
	h.server("a", nil)
	h.division("a port", shares(1e9, none, corp))
	h.phase("a", api.PhaseRunning)
	for len(h.divided) > 0 {
		<-h.divided
	}
	h.division("nothing changed, but somebody may have changed something by hand", shares(1e9, none, corp))

	network(api.Bandwidth{Committed: 30e6})
	h.division("the network's profile changed", shares(1e9, none, hostnet.Profile{Committed: 30e6}))
	h.write(state.Tenants+"t1", state.Tenant{Meta: api.Meta{Name: "t", ID: "t1"}, Spec: api.TenantSpec{Bandwidth: api.Bandwidth{Committed: 40e6}}})
	h.division("the tenant's profile changed", shares(1e9, hostnet.Profile{Committed: 40e6}, hostnet.Profile{Committed: 30e6}))
	a.SetUplink(2e9, 2e8)
	h.division("the uplink's rate changed", shares(2e9, hostnet.Profile{Committed: 40e6}, hostnet.Profile{Committed: 30e6}))

	// The next daemon changes nothing before it knows all.
	stop()
	for len(h.divided) > 0 {
		<-h.divided
	}
	a, _ = h.agent()
	a.SetUplink(2e9, 2e8)
	if first, want := <-h.divided, shares(2e9, hostnet.Profile{Committed: 40e6}, hostnet.Profile{Committed: 30e6}); !reflect.DeepEqual(first, want) {
		t.Errorf("after a restart the uplink is divided otherwise at first: %s", cmp.Diff(want, first))
	}
	h.server("a", deleted)
	h.division("no port any more", hostnet.Shares{})
}
