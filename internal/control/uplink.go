package control

import (
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/ledger"
	"github.com/croftproject/croft/internal/state"
)

// mostRate bounds rates, so that no sum of them is out of range.
const mostRate api.BitRate = 100e12

func checkRate(f *faults, pointer string, r api.BitRate) {
	if r < 0 || r > mostRate {
		f.add(pointer, "%s is out of range: at most %s", r, mostRate)
	}
}

func checkBandwidth(f *faults, at string, b api.Bandwidth) {
	checkRate(f, at+"/committed", b.Committed)
	checkRate(f, at+"/peak", b.Peak)
	if b.Peak > 0 && b.Committed > b.Peak {
		f.add(at+"/committed", "%s is more than the peak rate of %s", b.Committed, b.Peak)
	}
	if b.Burst != 0 && (b.Burst < 64*api.KiB || b.Burst > api.GiB) {
		f.add(at+"/burst", "%s is not in 64KiB to 1GiB", b.Burst)
	}
}

// onUplink is a change of what is committed to a tenant on a host's uplink.
type onUplink struct {
	key      string
	room     ledger.Room
	lines    ledger.Lines
	from, to ledger.Uplink
}

func uplinkOf(h *state.Host) string { return "the uplink of " + h.Meta.Name }

func (d *draft) onUplink(h *state.Host, t *state.Tenant) onUplink {
	key := state.UplinkKey(h.Meta.ID, t.Meta.ID)
	has := or(d.ix.uplinkLedgers[strings.TrimPrefix(key, state.UplinkLedger)])
	return onUplink{key: key, room: room(h), from: has, to: has, lines: ledger.Lines{
		Uplink: uplinkOf(h), Tenant: "tenant " + t.Meta.Name,
		Network: func(id string) string {
			if n, ok := d.ix.networks[id]; ok {
				id = n.v.Meta.Name
			}
			return "network " + id
		},
	}}
}

// commit carries the change out on the host's ledger, which the caller puts.
func (u onUplink) commit(d *draft, h ledger.Host) (ledger.Host, []api.Shortage) {
	next, short := h.Commit(u.room, u.lines, u.from, u.to)
	if len(short) > 0 || reflect.DeepEqual(u.from, u.to) {
		return next, short
	}
	there := len(u.from.Networks) > 0
	switch {
	case len(u.to.Networks) == 0:
		d.remove(u.key)
	case there:
		d.put(u.key, u.to)
	default:
		d.make(u.key, u.to)
	}
	return next, nil
}

// uplinkOfServer is what changes on a host's uplink where a server has its ports instead of those that it had there.
func (d *draft) uplinkOfServer(h *state.Host, s *state.Server, had []state.Port) (onUplink, error) {
	line, err := d.ix.lineage(s.Meta.Tenant)
	if err != nil {
		return onUplink{}, err
	}
	t := line[0].v
	u := d.onUplink(h, t)
	for _, p := range had {
		u.to = u.to.Detach(ledger.Commitment{Network: p.NetworkID})
	}
	for _, p := range s.Ports {
		n, ok := d.ix.networks[p.NetworkID]
		if !ok {
			return u, api.Errorf(api.CodeUnavailable, "network %s is gone", p.Network)
		}
		u.to = u.to.Attach(ledger.Commitment{
			Network: p.NetworkID, OfTenant: t.Spec.Bandwidth.Committed, TenantPeak: t.Spec.Bandwidth.Peak, OfNetwork: n.v.Spec.Bandwidth.Committed,
		})
	}
	if len(s.Ports) > 0 { // what they have committed
		d.check(state.Tenants + t.Meta.ID)
		for _, p := range s.Ports {
			d.check(state.Networks + p.NetworkID)
		}
	}
	return u, nil
}

// recommitNetwork changes what is committed to a network: against the quotas, and on the uplink of each host that has a
// port of it.
func (d *draft) recommitNetwork(next, old *state.Network) error {
	short, err := d.charge(next.Meta.Tenant, usageOfNetwork(&old.Spec), usageOfNetwork(&next.Spec))
	if err != nil {
		return err
	}
	if err := overQuota(short); err != nil {
		return err
	}
	line, err := d.ix.lineage(next.Meta.Tenant)
	if err != nil {
		return err
	}
	d.check(state.NetworkLedger + next.Meta.ID) // which ports there are
	return d.recommit(line[0].v, "/spec/bandwidth/committed", func(u ledger.Uplink) ledger.Uplink {
		return u.CommitNetwork(next.Meta.ID, next.Spec.Bandwidth.Committed)
	})
}

// recommitTenant changes what is committed to a tenant on the uplink of each host that has a port of its.
func (d *draft) recommitTenant(next *state.Tenant) error {
	b := next.Spec.Bandwidth
	d.check(state.TenantLedger + next.Meta.ID) // which servers there are
	at := "/spec/bandwidth/committed"
	if b.Committed == 0 {
		at = "/spec/bandwidth/peak"
	}
	return d.recommit(next, at, func(u ledger.Uplink) ledger.Uplink { return u.CommitTenant(b.Committed, b.Peak) })
}

// recommit changes what is committed to a tenant on each host that has a port of its. The caller has checked the ledger that
// every port which comes or goes changes. pointer is to what does not fit.
func (d *draft) recommit(t *state.Tenant, pointer string, change func(ledger.Uplink) ledger.Uplink) error {
	var short []api.Shortage
	for _, id := range slices.Sorted(maps.Keys(d.ix.hosts)) {
		h := d.ix.hosts[id].v
		u := d.onUplink(h, t)
		if u.to = change(u.from); reflect.DeepEqual(u.from, u.to) {
			continue
		}
		next, s := u.commit(d, or(d.ix.hostLedgers[id]))
		if short = append(short, s...); len(s) == 0 {
			d.check(state.Hosts + id) // what its uplink carries
			d.put(state.HostLedger+id, next)
		}
	}
	if len(short) == 0 {
		return nil
	}
	p := api.Errorf(api.CodeCapacity, "that can't be committed: %s", describe(short))
	p.Short = short
	p.Errors = []api.FieldError{{Pointer: pointer, Code: api.CodeCapacity, Message: describe(short)}}
	return p
}
