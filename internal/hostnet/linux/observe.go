package linux

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/croftproject/croft/internal/hostnet"
)

// scope is how much of a network is looked at.
type scope int

const (
	changed    scope = iota // the router, ports that are to change, and those that something happened to
	everything              // every port
)

// actor is one run over one network: what observes and what steps act on.
type actor struct {
	h      *Host
	n      *network
	server string // whose namespace is open in guest
	guest  *site
	events taken
}

type taken struct {
	all        bool
	link, peer map[int]bool
}

func newActor(h *Host, n *network) *actor { return &actor{h: h, n: n} }

func (a *actor) close() {
	a.guest.close()
	a.guest, a.server = nil, ""
}

// open opens a network's namespace if there is one. One that was replaced since is opened anew.
func (n *network) open(h *Host) (bool, error) {
	path := h.networkPath(n.id)
	if n.site != nil && n.site.is(path) {
		return true, nil
	}
	n.forget()
	if ok, err := bound(path); !ok || err != nil {
		return false, err
	}
	s, err := openSite(path)
	if err != nil {
		return false, err
	}
	e, err := listen(s)
	if err != nil {
		s.close()
		return false, err
	}
	n.site, n.events = s, e
	return true, nil
}

// site returns the namespace that a step acts in. A server's stays open until another's is asked for.
func (a *actor) site(p place) (*site, error) {
	switch p {
	case inHost:
		return a.h.host, nil
	case inNetwork:
		ok, err := a.n.open(a.h)
		if err == nil && !ok {
			err = fmt.Errorf("network namespace %s is gone", a.h.networkPath(a.n.id))
		}
		return a.n.site, err
	}
	if a.guest != nil && a.server == string(p) {
		return a.guest, nil
	}
	a.close()
	s, err := openSite(a.h.serverPath(string(p)))
	if err != nil {
		return nil, err
	}
	a.guest, a.server = s, string(p)
	return s, nil
}

// observe looks at a network. It returns, beside what there is, the wanted network with only those ports that a plan
// is to be made for.
func (a *actor) observe(want hostnet.Network, how scope) (observed, hostnet.Network, error) {
	o := observed{Ports: map[string]portState{}}
	var err error
	if o.Namespace, err = a.n.open(a.h); err != nil {
		return o, want, err
	}
	if o.Namespace {
		if err := a.n.events.read(); err != nil {
			return o, want, err
		}
		a.events.all, a.events.link, a.events.peer = a.n.events.take()
		if err := a.observeRouter(&o); err != nil {
			return o, want, err
		}
	}
	if err := a.observeHost(&o.Host); err != nil {
		return o, want, err
	}
	todo, err := a.observePorts(&o, want, how)
	return o, todo, err
}

func (a *actor) observeRouter(o *observed) (err error) {
	s := a.n.site
	var lo link
	if lo, err = linkByName(s, "lo"); err != nil {
		return err
	}
	o.Loopback = lo.Up
	if o.Bridge, err = linkByName(s, bridgeDevice); err != nil {
		return err
	}
	if o.Uplink, err = linkByName(s, uplinkDevice); err != nil {
		return err
	}
	nets, err := addressesOf(s)
	if err != nil {
		return err
	}
	o.BridgeNets, o.UplinkNets = nets[o.Bridge.Index], nets[o.Uplink.Index]
	if o.Uplink.Kind != "" {
		routers, err := defaultsVia(s, o.Uplink.Index, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		if len(routers) == 1 {
			o.Default = routers[0]
		}
	}
	if o.Rules, err = a.n.known.of(ofNetwork, s, nftables.TableFamilyINet, networkTable); err != nil {
		return err
	}
	if o.Guard, err = a.n.known.of(ofGuard, s, nftables.TableFamilyBridge, networkTable); err != nil {
		return err
	}
	if a.n.applied != nil { // sysctls send no events, and nobody else writes these
		o.Forwarding = true
		return nil
	}
	o.Forwarding, err = s.sysctls(routing...)
	return err
}

func (a *actor) observeHost(o *hostState) error {
	a.h.uplink.Lock()
	defer a.h.uplink.Unlock()
	s := a.h.host
	o.Prefix, o.Transit = a.h.o.Prefix, a.h.o.Transit
	up, err := a.h.uplinkOf()
	if err != nil {
		return err
	}
	o.Uplink, o.UplinkMTU = up.name, up.mtu
	leg := legDevice(o.Prefix, a.n.id)
	if o.Leg, err = linkByName(s, leg); err != nil {
		return err
	}
	if o.Uplink == "" {
		return nil
	}
	if o.Leg.Kind != "" {
		nets, err := addressesOf(s)
		if err != nil {
			return err
		}
		o.LegNets = nets[o.Leg.Index]
	}
	if o.Rules, err = a.n.known.of(ofHost, s, nftables.TableFamilyINet, hostTable(o.Prefix)); err != nil {
		return err
	}
	if o.Forwarding, err = s.sysctls(forwarding(o.Uplink)); err != nil {
		return err
	}
	if o.Closed, err = a.h.forwardsForUs(o.Uplink); err != nil {
		return err
	}
	o.LegForward = o.Leg.Kind != ""
	if o.LegForward && a.n.applied == nil {
		o.LegForward, err = s.sysctls(forwarding(leg), noIPv6(leg))
	}
	return err
}

// observePorts looks at ports: all of them, or those that may differ from what was applied.
func (a *actor) observePorts(o *observed, want hostnet.Network, how scope) (hostnet.Network, error) {
	n := a.n
	full := how == everything || n.applied == nil || a.events.all || o.Bridge.Index != n.bridge ||
		n.applied.MTU != want.MTU || !sameSubnets(n.applied.Subnets, want.Subnets)
	n.bridge = o.Bridge.Index
	if full {
		return want, a.observeAll(o, want)
	}
	todo := want
	todo.Ports = nil
	wanted := make(map[string]bool, len(want.Ports))
	for _, p := range want.Ports {
		dev := portDevice(p.ID)
		wanted[dev] = true
		l := n.seen[dev]
		touched := l.Kind == "" || a.events.link[l.Index] || l.PeerNS >= 0 && a.events.peer[l.PeerNS]
		if old, ok := n.ports[dev]; ok && !touched && samePort(old, p) {
			// Unbinding a namespace sends no event.
			if ok, err := a.h.guestBound(p); ok || err != nil {
				if err != nil {
					return todo, err
				}
				continue
			}
		}
		todo.Ports = append(todo.Ports, p)
	}
	for dev, p := range n.ports {
		if !wanted[dev] && p.Kind == hostnet.Namespace {
			o.Ports[dev] = portState{Marked: true, Server: p.Server}
		} else if !wanted[dev] {
			o.Ports[dev] = portState{}
		}
	}
	for _, p := range todo.Ports {
		dev := portDevice(p.ID)
		l, err := linkByName(n.site, dev)
		if err != nil {
			return todo, err
		}
		if o.Ports[dev], err = a.observePort(dev, l, p); err != nil {
			return todo, err
		}
	}
	return todo, nil
}

// guestBound tells whether the namespace that a port's guest end is in is where it should be.
func (h *Host) guestBound(p hostnet.Port) (bool, error) {
	if p.Kind != hostnet.Namespace {
		return true, nil
	}
	return bound(h.serverPath(p.Server))
}

// observeAll looks at every port: those that are wanted, those recorded, and those whose device is there.
func (a *actor) observeAll(o *observed, want hostnet.Network) error {
	marks, err := a.h.marks(a.n.id)
	if err != nil {
		return err
	}
	links := map[string]link{}
	a.n.seen = nil
	if o.Namespace {
		all, err := dump(a.n.site.LinkList)
		if err != nil {
			return fmt.Errorf("list devices: %w", err)
		}
		for _, l := range all {
			if isPortDevice(l.Attrs().Name) {
				links[l.Attrs().Name] = toLink(l)
			}
		}
	}
	for _, p := range want.Ports {
		dev := portDevice(p.ID)
		if o.Ports[dev], err = a.observePort(dev, links[dev], p); err != nil {
			return err
		}
		delete(links, dev)
		delete(marks, dev)
	}
	for dev, server := range marks {
		o.Ports[dev] = portState{Marked: true, Server: server, Link: links[dev]}
		delete(links, dev)
	}
	for dev, l := range links {
		o.Ports[dev] = portState{Link: l}
	}
	return nil
}

func (a *actor) observePort(dev string, l link, p hostnet.Port) (portState, error) {
	s := portState{Link: l}
	var err error
	if s.Server, s.Marked, err = a.h.mark(a.n.id, dev); err != nil {
		return s, err
	}
	a.n.see(dev, l)
	if p.Kind == hostnet.Tap {
		return s, nil
	}
	s.Guest, err = a.observeGuest(p.Server, p.Guest)
	return s, err
}

// see remembers which events are about a port.
func (n *network) see(dev string, l link) {
	if n.seen == nil {
		n.seen = map[string]link{}
	}
	n.seen[dev] = l
}

func (a *actor) observeGuest(server, dev string) (g guestState, err error) {
	if g.Namespace, err = bound(a.h.serverPath(server)); !g.Namespace || err != nil {
		return g, err
	}
	s, err := a.site(place(server))
	if err != nil {
		return g, err
	}
	lo, err := linkByName(s, "lo")
	if err != nil {
		return g, err
	}
	g.Loopback = lo.Up
	if g.Link, err = linkByName(s, dev); err != nil || g.Link.Kind == "" {
		return g, err
	}
	nets, err := addressesOf(s)
	if err != nil {
		return g, err
	}
	g.Addrs = nets[g.Link.Index]
	g.Routers, err = defaultsVia(s, g.Link.Index, netlink.FAMILY_V4, netlink.FAMILY_V6)
	return g, err
}

// settle waits until the ports and the way out that a plan was made for can carry traffic: the kernel tells a bridge of
// a device's carrier a moment after the device is up.
func (a *actor) settle(ctx context.Context, todo hostnet.Network) error {
	until := time.Now().Add(settleTime)
	await := []string{}
	for _, p := range todo.Ports {
		if p.Kind == hostnet.Namespace {
			await = append(await, portDevice(p.ID))
		}
	}
	if len(await) > 0 {
		await = append(await, bridgeDevice)
	}
	await = append(await, uplinkDevice)
	for _, dev := range await {
		for {
			l, err := a.n.site.LinkByName(dev)
			if errors.As(err, new(netlink.LinkNotFoundError)) && dev == uplinkDevice {
				break
			}
			if err != nil {
				return fmt.Errorf("wait for %s: %w", dev, err)
			}
			if s := l.Attrs().OperState; s == netlink.OperUp || s == netlink.OperUnknown {
				break
			}
			if time.Now().After(until) {
				return fmt.Errorf("%s is not up after %s", dev, settleTime)
			}
			if err := errors.Join(ctx.Err(), a.n.events.wait()); err != nil {
				return err
			}
		}
	}
	return nil
}

// look remembers the devices that a plan was made for as they are now, for the events of the time to come.
func (a *actor) look(todo hostnet.Network) error {
	for _, p := range todo.Ports {
		dev := portDevice(p.ID)
		l, err := linkByName(a.n.site, dev)
		if err != nil {
			return err
		}
		a.n.see(dev, l)
	}
	l, err := linkByName(a.n.site, bridgeDevice)
	a.n.bridge = l.Index
	return err
}
