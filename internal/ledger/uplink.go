package ledger

import (
	"cmp"
	"maps"
	"slices"

	"github.com/croftproject/croft/api"
)

// Uplink is what is committed to one tenant on one host's uplink, as a tree: tenant, networks, ports. Rates hold for each
// direction by itself. The zero Uplink is a tenant without a port on the host, to whom nothing is committed there.
//
// A tenant or a network with a committed rate of its own has that, whatever its parts have, and they have it between them:
// their sum never exceeds it. One without has what its parts have, and they no more than its peak rate.
type Uplink struct {
	Own      api.BitRate              `json:"own,omitempty"`
	Peak     api.BitRate              `json:"peak,omitempty"`     // of the tenant's own; zero: none
	Networks map[string]NetworkUplink `json:"networks,omitempty"` // by id; those with ports on the host
}

// NetworkUplink is what is committed to a network's ports on one host's uplink.
type NetworkUplink struct {
	Own   api.BitRate `json:"own,omitempty"`
	Ports int         `json:"ports"`
	Sum   api.BitRate `json:"sum,omitempty"` // of the ports' committed rates
}

// Need is the rate that the network takes of its tenant.
func (n NetworkUplink) Need() api.BitRate { return need(n.Own, n.Sum) }

// Need is the rate that the tenant takes of the uplink.
func (u Uplink) Need() api.BitRate { return need(u.Own, u.sum()) }

func need(own, parts api.BitRate) api.BitRate {
	if own > 0 {
		return own
	}
	return parts
}

func (u Uplink) sum() (sum api.BitRate) {
	for _, n := range u.Networks {
		sum += n.Need()
	}
	return sum
}

// Commitment is the committed rates on the way from a tenant to a port. A rate of zero commits nothing.
type Commitment struct {
	Network                         string // id
	OfTenant, OfNetwork, OfThisPort api.BitRate
	TenantPeak                      api.BitRate // zero: none
}

// Attach adds a port. It brings the rates of its network and tenant with it, where it is the first of theirs on the host.
func (u Uplink) Attach(c Commitment) Uplink {
	n := u.Networks[c.Network]
	n.Ports++
	n.Sum += c.OfThisPort
	n.Own = c.OfNetwork
	u = u.with(c.Network, n)
	u.Own, u.Peak = c.OfTenant, c.TenantPeak
	return u
}

// Detach takes a port away, and with the last of a network or a tenant what is committed to that.
func (u Uplink) Detach(c Commitment) Uplink {
	n := u.Networks[c.Network]
	n.Ports--
	n.Sum -= c.OfThisPort
	return u.with(c.Network, n)
}

// CommitNetwork changes the committed rate of a network's own. One without a port on the host has none there.
func (u Uplink) CommitNetwork(id string, rate api.BitRate) Uplink {
	n, ok := u.Networks[id]
	if !ok {
		return u
	}
	n.Own = rate
	return u.with(id, n)
}

// CommitTenant changes the committed and the peak rate of the tenant's own. One without a port on the host has none there.
func (u Uplink) CommitTenant(rate, peak api.BitRate) Uplink {
	if len(u.Networks) > 0 {
		u.Own, u.Peak = rate, peak
	}
	return u
}

// with replaces a network, and drops it with its last port.
func (u Uplink) with(id string, n NetworkUplink) Uplink {
	next := maps.Clone(u.Networks)
	if n.Ports <= 0 {
		delete(next, id)
	} else {
		if next == nil {
			next = map[string]NetworkUplink{}
		}
		next[id] = n
	}
	u.Networks = next
	if len(next) == 0 {
		return Uplink{}
	}
	return u
}

// Lines name what is on an uplink, for people.
type Lines struct {
	Uplink  string                 // of a host: "the uplink of h1"
	Tenant  string                 // "tenant acme"
	Network func(id string) string // "network corp"
}

// Commit replaces what is committed to a tenant on the host's uplink, or tells everything that is short: of the uplink,
// and of a tenant or network whose parts would have more than it has itself. What does not grow is not short of the
// uplink, whatever that has by now.
func (h Host) Commit(r Room, l Lines, from, to Uplink) (Host, []api.Shortage) {
	var short []api.Shortage
	for _, id := range slices.Sorted(maps.Keys(to.Networks)) {
		was, n := from.Networks[id], to.Networks[id]
		short = append(short, within(l.Network(id)+" on "+l.Uplink, n.Own, was.Sum, n.Sum)...)
	}
	short = append(short, within(l.Tenant+" on "+l.Uplink, cmp.Or(to.Own, to.Peak), from.sum(), to.sum())...)
	rest, all := h.Bandwidth-from.Need(), r.Promisable()
	if asked := to.Need(); exceeds(rest, asked, all) && asked > from.Need() {
		// Of a rate that grows only the rest is asked for.
		short = append(short, Short("bandwidth", l.Uplink, asked-from.Need(), all-h.Bandwidth))
	}
	if len(short) > 0 {
		return h, short
	}
	h.Bandwidth = rest + to.Need()
	return h, nil
}

// within tells what parts are short of where their whole has a rate of its own.
func within(where string, own, before, now api.BitRate) []api.Shortage {
	switch {
	case own == 0 || now <= own:
		return nil
	case now > before && before <= own: // the parts have grown
		return []api.Shortage{Short("bandwidth", where, now-before, own-before)}
	}
	return []api.Shortage{Short("bandwidth", where, now, own)}
}
