package linux

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/croftproject/croft/internal/hostnet"
)

// observed is what there is of a network on the host. Zero values are things that are not there.
type observed struct {
	Namespace  bool
	Loopback   bool // up
	Forwarding bool // both sysctls of the namespace are as they should be
	Bridge     link
	BridgeNets []netip.Prefix
	Uplink     link // the leg's end in the namespace
	UplinkNets []netip.Prefix
	Default    netip.Addr // next hop of the namespace's default route
	Rules      []string   // of the namespace's table
	Guard      []string   // of its table of the bridge family
	Host       hostState
	Ports      map[string]portState // by device; only those that were looked at
}

// link is a network device.
type link struct {
	Kind   string // "veth", "bridge", "tuntap"; empty: there is none
	Index  int
	Peer   int // index of a veth's other end, in its namespace
	PeerNS int // the id by which the link's namespace knows the peer's, -1 for none
	Master int
	MTU    int
	MAC    string
	Up     bool
	Snoop  bool // of a bridge
	Groups bool // of a bridge: it takes some groups' frames for itself
}

// hostState is what there is in the host's namespace that concerns a network.
type hostState struct {
	Prefix     string       // of names
	Transit    netip.Prefix // range of legs' addresses
	Uplink     string       // device; empty: the host has no way out
	UplinkMTU  int
	Forwarding bool // of the uplink device
	Closed     bool // it forwards only because the daemon had it to
	Rules      []string
	Leg        link
	LegNets    []netip.Prefix
	LegForward bool // forwards, and has no IPv6
}

// portState is what there is of a port.
type portState struct {
	Link   link   // end in the network's namespace
	Marked bool   // recorded as belonging to Server
	Server string // whose namespace the guest end is in
	Guest  guestState
}

// guestState is what there is in a server's namespace of one port.
type guestState struct {
	Namespace bool
	Loopback  bool // up
	Link      link
	Addrs     []netip.Prefix
	Routers   []netip.Addr // next hops of the default routes through the device
}

// plan tells the steps that make a network as wanted from what there is. It is pure. Ports that are in neither are as
// they should be; those in have only are removed; all are those of the network, whether they were looked at or not.
func plan(want hostnet.Network, all []hostnet.Port, have observed) []step {
	steps := planBridge(want, have)
	steps = append(steps, planRouter(want, have)...)
	steps = append(steps, planTable(inNetwork, guard(all), have.Guard)...) // before a port is in the bridge
	return append(steps, planPorts(want, have)...)
}

func planBridge(want hostnet.Network, have observed) []step {
	var steps []step
	if !have.Namespace {
		steps = append(steps, makeNamespace{inNetwork})
	}
	if !have.Loopback {
		steps = append(steps, setLink{In: inNetwork, Dev: "lo", Up: true})
	}
	if !have.Forwarding {
		steps = append(steps, setForwarding{In: inNetwork})
	}
	br, nets := have.Bridge, have.BridgeNets
	if br.Kind != "" && (br.Kind != "bridge" || br.Snoop || br.Groups) {
		steps = append(steps, delLink{inNetwork, bridgeDevice})
		br, nets = link{}, nil
	}
	if br.Kind == "" {
		steps = append(steps, makeBridge{MAC: bridgeMAC(want.ID), MTU: want.MTU})
		br = link{Up: false, MAC: bridgeMAC(want.ID), MTU: want.MTU}
	}
	steps = append(steps, change(inNetwork, bridgeDevice, br, want.MTU, bridgeMAC(want.ID))...)
	var gateways []netip.Prefix
	for _, s := range want.Subnets {
		gateways = append(gateways, netip.PrefixFrom(s.Gateway, s.Prefix.Bits()))
	}
	set, _ := addresses(inNetwork, bridgeDevice, nets, gateways)
	return append(steps, set...)
}

// change mends a device's properties. Empty ones are not cared about.
func change(in place, dev string, l link, mtu int, mac string) []step {
	s := setLink{In: in, Dev: dev}
	if mtu != 0 && l.MTU != mtu {
		s.MTU = mtu
	}
	if mac != "" && l.MAC != mac {
		s.MAC = mac
	}
	s.Up = !l.Up
	if s == (setLink{In: in, Dev: dev}) {
		return nil
	}
	return []step{s}
}

// addresses makes a device's addresses those wanted. IPv6 link-local addresses are the kernel's affair. With an address
// the kernel may take others of its subnet (those added after it) and the device's routes; lost tells that it may have.
func addresses(in place, dev string, have, want []netip.Prefix) (steps []step, lost bool) {
	gone := map[netip.Prefix]bool{}
	for _, a := range have {
		if !slices.Contains(want, a) && !(a.Addr().Is6() && a.Addr().IsLinkLocalUnicast()) {
			steps = append(steps, delAddr{in, dev, a})
			gone[a.Masked()] = true
		}
	}
	for _, a := range want {
		if !slices.Contains(have, a) || gone[a.Masked()] {
			steps = append(steps, addAddr{in, dev, a})
		}
	}
	return steps, len(gone) > 0
}

// planRouter plans a network's way out: the leg, its routes, and the rules of both namespaces.
func planRouter(want hostnet.Network, have observed) []step {
	leg := legDevice(have.Host.Prefix, want.ID)
	if !want.NAT || have.Host.Uplink == "" {
		return planNoWayOut(leg, have)
	}
	var steps []step
	host := have.Host
	joined := host.Leg.Kind == "veth" && have.Uplink.Kind == "veth" &&
		host.Leg.Peer == have.Uplink.Index && have.Uplink.Peer == host.Leg.Index
	near, far, ok := legAddresses(have, joined)
	if !joined || !ok {
		if host.Leg.Kind != "" {
			steps = append(steps, delLink{inHost, leg})
		}
		if have.Uplink.Kind != "" && !joined {
			steps = append(steps, delLink{inNetwork, uplinkDevice})
		}
		steps = append(steps, makeLeg{Dev: leg, MTU: host.UplinkMTU})
	} else {
		steps = append(steps, change(inHost, leg, host.Leg, host.UplinkMTU, "")...)
		steps = append(steps, change(inNetwork, uplinkDevice, have.Uplink, host.UplinkMTU, "")...)
		set, _ := addresses(inHost, leg, host.LegNets, []netip.Prefix{near})
		steps = append(steps, set...)
		set, lost := addresses(inNetwork, uplinkDevice, have.UplinkNets, []netip.Prefix{far})
		steps = append(steps, set...)
		if !host.LegForward {
			steps = append(steps, setForwarding{In: inHost, Dev: leg})
		}
		if lost || have.Default != near.Addr() {
			steps = append(steps, setRoute{In: inNetwork, Dev: uplinkDevice, Via: near.Addr()})
		}
	}
	steps = append(steps, planTable(inNetwork, rulesOfNetwork(), have.Rules)...)
	rules := rulesOfHost(host.Prefix, host.Uplink, host.Transit, host.Closed || !host.Forwarding)
	steps = append(steps, planTable(inHost, rules, host.Rules)...)
	if !host.Forwarding {
		steps = append(steps, setForwarding{In: inHost, Dev: host.Uplink})
	}
	return steps
}

// planTable plans a table from what its list is: a few keys more or less don't cost what all of it would.
func planTable(in place, want table, have []string) []step {
	if slices.Equal(want.list(), have) {
		return nil
	}
	change := setKeys{In: in, Table: want}
	rest := have
	for _, s := range want.Sets {
		wanted := make(map[string][]byte, len(s.Keys))
		for _, k := range s.Keys {
			wanted[s.line(k)] = k
		}
		var del [][]byte
		rest = slices.DeleteFunc(slices.Clone(rest), func(line string) bool {
			key, ok := s.parse(line)
			if _, there := wanted[line]; there {
				delete(wanted, line)
			} else if ok {
				del = append(del, key)
			}
			return ok
		})
		if len(del) > 0 {
			change.Del = append(change.Del, keys{Name: s.Name, Key: s.Key, Keys: del})
		}
		if len(wanted) > 0 {
			add := slices.Collect(maps.Values(wanted))
			slices.SortFunc(add, bytes.Compare)
			change.Add = append(change.Add, keys{Name: s.Name, Key: s.Key, Keys: add})
		}
	}
	if len(want.Sets) == 0 || !slices.Equal(want.without().list(), rest) {
		return []step{setTable{in, want}}
	}
	return []step{change}
}

// planNoWayOut takes a leg away. Rules that name it are harmless and go with the network.
func planNoWayOut(leg string, have observed) []step {
	switch {
	case have.Host.Leg.Kind != "":
		return []step{delLink{inHost, leg}} // with its other end
	case have.Uplink.Kind != "":
		return []step{delLink{inNetwork, uplinkDevice}}
	}
	return nil
}

// legAddresses tells a leg's two addresses from what is left of them.
func legAddresses(have observed, joined bool) (near, far netip.Prefix, ok bool) {
	if !joined {
		return
	}
	for _, a := range slices.Concat(have.Host.LegNets, have.UplinkNets) {
		if a.Addr().Is4() && a.Bits() == 31 && have.Host.Transit.Contains(a.Addr()) {
			near = a.Masked()
			return near, netip.PrefixFrom(near.Addr().Next(), 31), true
		}
	}
	return
}

// freeTransit finds a /31 in a range that overlaps nothing taken. It begins at a place that the seed gives, so that
// daemons that don't know of each other rarely meet.
func freeTransit(transit netip.Prefix, seed uint32, taken []netip.Prefix) (netip.Prefix, bool) {
	pairs := uint32(1) << (31 - transit.Bits())
	base := transit.Masked().Addr().As4()
	first := uint32(base[0])<<24 | uint32(base[1])<<16 | uint32(base[2])<<8 | uint32(base[3])
	used := map[uint32]bool{}
	var wide []netip.Prefix
	for _, t := range taken {
		if !t.Addr().Is4() || !t.Overlaps(transit) {
			continue
		}
		if t.Bits() < 31 {
			wide = append(wide, t)
			continue
		}
		b := t.Addr().As4()
		used[(uint32(b[0])<<24|uint32(b[1])<<16|uint32(b[2])<<8|uint32(b[3]))&^1] = true
	}
	for i := range pairs {
		a := first + ((seed+i)%pairs)*2
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)}), 31)
		if !used[a] && !slices.ContainsFunc(wide, p.Overlaps) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

func planPorts(want hostnet.Network, have observed) []step {
	var steps []step
	wanted := make(map[string]bool, len(want.Ports))
	for _, p := range want.Ports {
		wanted[portDevice(p.ID)] = true
	}
	var gone []string
	for dev := range have.Ports {
		if !wanted[dev] {
			gone = append(gone, dev)
		}
	}
	slices.Sort(gone)
	var drop dropPorts
	for _, dev := range gone {
		drop.Ports = append(drop.Ports, droppedPort{dev, have.Ports[dev].Server})
	}
	if len(gone) > 0 {
		steps = append(steps, drop)
	}
	bridge := have.Bridge.Index
	if have.Bridge.Kind != "bridge" || have.Bridge.Snoop || have.Bridge.Groups {
		bridge = -1 // made anew: no port is in it yet
	}
	for _, p := range want.Ports {
		s := have.Ports[portDevice(p.ID)]
		if p.Kind == hostnet.Tap {
			steps = append(steps, planTap(want, p, s, bridge)...)
		} else {
			steps = append(steps, planVeth(want, p, s, bridge)...)
		}
	}
	return steps
}

func planTap(want hostnet.Network, p hostnet.Port, have portState, bridge int) []step {
	var steps []step
	dev := portDevice(p.ID)
	if have.Marked || have.Link.Kind != "" && have.Link.Kind != "tuntap" {
		steps = append(steps, dropPorts{[]droppedPort{{dev, have.Server}}})
		have = portState{}
	}
	if have.Link.Kind == "" {
		steps = append(steps, makeTap{dev})
	}
	return append(steps, joinBridge(dev, have.Link, want.MTU, bridge)...)
}

// joinBridge puts a port's end, once it is up, into the bridge.
func joinBridge(dev string, l link, mtu, bridge int) []step {
	steps := change(inNetwork, dev, l, mtu, "")
	if l.Kind == "" || l.Master != bridge {
		steps = append(steps, enslave{dev})
	}
	return steps
}

func planVeth(want hostnet.Network, p hostnet.Port, have portState, bridge int) []step {
	var steps []step
	dev, in, mac := portDevice(p.ID), place(p.Server), p.MAC.String()
	if have.Marked && have.Server != p.Server || have.Link.Kind != "" && have.Link.Kind != "veth" {
		steps = append(steps, dropPorts{[]droppedPort{{dev, have.Server}}})
		have = portState{}
	}
	if !have.Marked {
		steps = append(steps, markPort{dev, p.Server})
	}
	g := have.Guest
	if have.Link.Kind == "" || g.Link.Kind != "veth" || have.Link.Peer != g.Link.Index || g.Link.Peer != have.Link.Index {
		if have.Link.Kind != "" {
			steps = append(steps, delLink{inNetwork, dev})
		}
		steps = append(steps, makeVeth{Dev: dev, Server: p.Server, Guest: p.Guest, MAC: mac, MTU: want.MTU})
		have.Link, g = link{MTU: want.MTU, Up: true}, guestState{Loopback: g.Loopback && g.Namespace, Link: link{MTU: want.MTU, MAC: mac}}
	}
	if !g.Loopback {
		steps = append(steps, setLink{In: in, Dev: "lo", Up: true})
	}
	steps = append(steps, change(in, p.Guest, g.Link, want.MTU, mac)...)
	set, lost := addresses(in, p.Guest, g.Addrs, p.Addrs)
	steps = append(steps, set...)
	for _, s := range want.Subnets {
		inside := func(a netip.Prefix) bool { return s.Prefix.Contains(a.Addr()) }
		if slices.ContainsFunc(p.Addrs, inside) && (lost || !slices.Contains(g.Routers, s.Gateway)) {
			steps = append(steps, setRoute{In: in, Dev: p.Guest, Via: s.Gateway, Metric: metric(p.Guest)})
		}
	}
	return append(steps, joinBridge(dev, have.Link, want.MTU, bridge)...)
}

// metric makes a server's first device the one that its default route prefers, without conflict between networks that
// don't know of each other.
func metric(guest string) int {
	n, err := strconv.Atoi(guest[len(strings.TrimRight(guest, "0123456789")):])
	if err != nil || n > 1<<16 {
		return 100
	}
	return 100 + n
}
