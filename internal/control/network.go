package control

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/ledger"
	"github.com/croftproject/croft/internal/state"
)

// networks are the use cases of networks.
type networks struct{ *Control }

func (c networks) Get(_ context.Context, who httpapi.Caller, tenant, name string) (*api.Network, error) {
	if err := authorize(who, tenant); err != nil {
		return nil, err
	}
	return find[api.Network](c.Control, kindNetwork, tenant, name)
}

func (c networks) List(_ context.Context, who httpapi.Caller, tenant string, o httpapi.ListOptions) (httpapi.Raw, error) {
	return c.listFor(who, kindNetwork, tenant, o)
}

func (c networks) Watch(ctx context.Context, who httpapi.Caller, tenant string, o httpapi.ListOptions, from int64) (<-chan []byte, error) {
	return c.watchFor(ctx, who, kindNetwork, tenant, o, from)
}

func (c networks) Create(ctx context.Context, who httpapi.Caller, tenant string, body httpapi.Create[api.NetworkSpec]) (*api.Network, error) {
	if err := authorize(who, tenant); err != nil {
		return nil, err
	}
	if err := c.tenantKnown(tenant); err != nil {
		return nil, err
	}
	meta := func(n *api.Network) *api.Meta { return &n.Meta }
	return once(ctx, c.Control, who, kindNetwork, tenant, body, meta, func(keep remember) (*api.Network, error) {
		id, now := c.ids.next(), c.o.Now().UTC()
		var answer api.Network
		revision, err := c.admit(ctx, func(d *draft) error {
			n := &state.Network{
				Meta: api.Meta{Name: body.Name, Tenant: tenant, ID: id, Labels: body.Labels, Created: now}, Spec: cloneNetwork(body.Spec),
			}
			if err := c.composeNetwork(d.ix, n, nil); err != nil {
				return err
			}
			short, err := d.charge(tenant, ledger.Usage{}, usageOfNetwork(&n.Spec))
			if err != nil {
				return err
			}
			if err := overQuota(short); err != nil {
				return err
			}
			d.make(state.Networks+id, n)
			d.make(state.NetworkLedger+id, ledger.Network{})
			d.name(kindNetwork, tenant, body.Name, id)
			c.event(d, who, kindNetwork, &n.Meta, "Created", "%s", n.Spec.Subnets[0].Prefix)
			answer = api.Network{Meta: n.Meta, Spec: n.Spec, Status: api.NetworkStatus{Phase: "active"}}
			keep(d, &answer)
			return nil
		})
		answer.Revision = revision
		return &answer, err
	})
}

// usageOfNetwork is what a network counts for against quotas.
func usageOfNetwork(s *api.NetworkSpec) ledger.Usage {
	return ledger.Usage{Networks: 1, Bandwidth: s.Bandwidth.Committed}
}

func cloneNetwork(s api.NetworkSpec) api.NetworkSpec {
	s.Subnets = slices.Clone(s.Subnets)
	s.DNS.Forwarders = slices.Clone(s.DNS.Forwarders)
	return s
}

// composeNetwork checks a network's name, labels and spec, and gives what was left out its default.
func (c *Control) composeNetwork(ix *index, n, old *state.Network) error {
	var f faults
	checkName(&f, n.Meta.Name)
	checkLabels(&f, n.Meta.Labels)
	s := &n.Spec
	if s.NAT == nil {
		yes := true
		s.NAT = &yes
	}
	either(&s.MTU, 1500)
	between(&f, "/spec/mtu", s.MTU, 576, 9216)
	n.Derived = nil
	if either(&s.DNS.Domain, n.Meta.Name+"."+n.Meta.Tenant+".internal") {
		n.Derived = append(n.Derived, "/spec/dns/domain")
	} else if !hostname(s.DNS.Domain) {
		f.add("/spec/dns/domain", "%s is no domain (RFC 1123)", quote(s.DNS.Domain))
	}
	for i, a := range s.DNS.Forwarders {
		// They are asked from the host's namespace: what only the host itself reaches is not a tenant's.
		if a = a.Unmap(); !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() {
			f.add(fmt.Sprintf("/spec/dns/forwarders/%d", i), "is no address of a resolver that the network could reach")
		}
	}
	if len(s.DNS.Forwarders) > 8 {
		f.add("/spec/dns/forwarders", "has %d resolvers, and may have 8", len(s.DNS.Forwarders))
	}
	checkBandwidth(&f, "/spec/bandwidth", s.Bandwidth)
	if !*s.NAT && s.Bandwidth != (api.Bandwidth{}) {
		f.add("/spec/bandwidth", "is of the way out, which a network without nat has none of")
	}
	if len(s.Subnets) > 1 {
		f.add("/spec/subnets", "has %d subnets; a network has one IPv4 subnet today", len(s.Subnets))
	}
	for i := range s.Subnets {
		checkSubnet(&f, fmt.Sprintf("/spec/subnets/%d", i), &s.Subnets[i])
	}
	if err := f.err(); err != nil {
		return err
	}
	if (old == nil || old.Meta.Name != n.Meta.Name) && ix.tables[kindNetwork].holds(n.Meta.Tenant, n.Meta.Name) {
		return taken(kindNetwork, n.Meta.Name)
	}
	if len(s.Subnets) == 0 && old != nil {
		s.Subnets = old.Spec.Subnets
	}
	if len(s.Subnets) == 0 {
		subnet, err := c.freeSubnet(ix, n.Meta.Tenant)
		s.Subnets = []api.Subnet{subnet}
		return err
	}
	return nil
}

// checkSubnet checks a subnet, and gives it its gateway where that was left out.
func checkSubnet(f *faults, at string, s *api.Subnet) {
	p := s.Prefix
	switch {
	case !p.IsValid():
		f.add(at+"/prefix", "is missing: write a prefix such as 10.7.0.0/24")
		return
	case !p.Addr().Is4():
		f.add(at+"/prefix", "%s is not IPv4, and only IPv4 is there today", p)
		return
	case p.Masked() != p:
		f.add(at+"/prefix", "%s has host bits; the prefix is %s", p, p.Masked())
		return
	case p.Bits() > 30 || p.Bits() < 32-ledger.MaxHostBits:
		f.add(at+"/prefix", "%s must have a length of %d to 30", p, 32-ledger.MaxHostBits)
		return
	}
	for _, special := range special {
		if special.Overlaps(p) {
			f.add(at+"/prefix", "%s can't be given to servers: it lies in %s (RFC 6890)", p, special)
			return
		}
	}
	first := p.Addr().Next()
	either(&s.Gateway, first)
	if !p.Contains(s.Gateway) || s.Gateway == p.Addr() || !p.Contains(s.Gateway.Next()) {
		f.add(at+"/gateway", "%s is no address for a host in %s", s.Gateway, p)
	}
}

// special are prefixes that are no unicast addresses of hosts (RFC 6890).
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("240.0.0.0/4"),
}

// freeSubnet finds a /24 of 10.0.0.0/8 that none of the tenant's networks and nothing of the host's overlaps.
func (c *Control) freeSubnet(ix *index, tenant string) (api.Subnet, error) {
	taken := slices.Clone(c.o.Avoid)
	for _, r := range ix.networks {
		if r.v.Meta.Tenant == tenant {
			for _, s := range r.v.Spec.Subnets {
				taken = append(taken, s.Prefix)
			}
		}
	}
	// The low end of the range is what everybody uses at home and at work: begin in its middle.
	for i := range 1 << 16 {
		n := (i + 64<<8) % (1 << 16)
		base := netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 0})
		if p := netip.PrefixFrom(base, 24); !overlapping(p, taken) {
			return api.Subnet{Prefix: p, Gateway: base.Next()}, nil
		}
	}
	return api.Subnet{}, api.Errorf(api.CodeCapacity, "no /24 of 10.0.0.0/8 is free; name a prefix")
}

func (c networks) Update(ctx context.Context, who httpapi.Caller, tenant, name string, u httpapi.Update[api.NetworkSpec]) (*api.Network, error) {
	if err := authorize(who, tenant); err != nil {
		return nil, err
	}
	var id string
	_, err := c.admit(ctx, func(d *draft) error {
		e := d.ix.tables[kindNetwork].named(tenant, name)
		if e == nil {
			return missing(kindNetwork, tenant, name)
		}
		id = e.meta.ID
		if err := matchRevision(kindNetwork, e.meta, u.Revision); err != nil {
			return err
		}
		old, ports := d.ix.networks[id].v, or(d.ix.networkLedgers[id]).Ports
		next := &state.Network{Meta: old.Meta, Spec: cloneNetwork(u.Spec)}
		next.Meta.Labels = u.Labels
		if u.Name != "" {
			next.Meta.Name = u.Name
		}
		if slices.Contains(old.Derived, "/spec/dns/domain") && next.Spec.DNS.Domain == old.Spec.DNS.Domain {
			next.Spec.DNS.Domain = ""
		}
		if err := c.composeNetwork(d.ix, next, old); err != nil {
			return err
		}
		renamed, moved := next.Meta.Name != old.Meta.Name, !slices.Equal(next.Spec.Subnets, old.Spec.Subnets)
		if (renamed || moved) && ports > 0 {
			return api.Errorf(api.CodeInUse, "network %s has %d ports; its name and subnets can change when it has none", old.Meta.Name, ports)
		}
		if same(next, old) {
			return nil
		}
		if next.Spec.Bandwidth.Committed != old.Spec.Bandwidth.Committed {
			if err := d.recommitNetwork(next, old); err != nil {
				return err
			}
		}
		d.put(state.Networks+id, next)
		if renamed || moved {
			d.check(state.NetworkLedger + id)
		}
		if renamed {
			d.name(kindNetwork, tenant, next.Meta.Name, id)
			d.unname(kindNetwork, tenant, old.Meta.Name)
		}
		c.event(d, who, kindNetwork, &next.Meta, "Updated", "")
		return nil
	})
	if err != nil {
		return nil, err
	}
	return shown[api.Network](c.Control, kindNetwork, id)
}

func (c networks) Delete(ctx context.Context, who httpapi.Caller, tenant, name string, o httpapi.DeleteOptions) (*api.Network, error) {
	if err := authorize(who, tenant); err != nil {
		return nil, err
	}
	var last api.Network
	_, err := c.admit(ctx, func(d *draft) error {
		e := d.ix.tables[kindNetwork].named(tenant, name)
		if e == nil {
			return missing(kindNetwork, tenant, name)
		}
		if err := matchRevision(kindNetwork, e.meta, o.Revision); err != nil {
			return err
		}
		last = *e.obj.(*api.Network)
		id := last.ID
		if ports := or(d.ix.networkLedgers[id]).Ports; ports > 0 {
			return api.Errorf(api.CodeInUse, "network %s has %d ports; delete their servers first", last.Name, ports)
		}
		if _, err := d.charge(tenant, usageOfNetwork(&d.ix.networks[id].v.Spec), ledger.Usage{}); err != nil {
			return err
		}
		d.Frees = true
		d.remove(state.Networks + id)
		d.remove(state.NetworkLedger + id)
		d.Deletes = append(d.Deletes, state.NetworkStatus+id)
		d.unname(kindNetwork, tenant, last.Name)
		c.event(d, who, kindNetwork, &last.Meta, "Deleted", "")
		return nil
	})
	last.Status.Phase = "deleting"
	return &last, err
}
