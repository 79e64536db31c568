package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/hostnet"
	"github.com/croftproject/croft/internal/reconcile"
	"github.com/croftproject/croft/internal/state"
	"github.com/croftproject/croft/internal/store"
	"golang.org/x/sys/unix"
)

// networks keeps what the networks of this host are to be: their records, the names in them, and the ports of servers
// here. A network exists on the host while a server here has a port in it.
type networks struct {
	a        *Agent
	mu       sync.Mutex
	by       map[string]*network
	seen     chan struct{} // closed once the first list of records was taken in
	seenOnce func()
	loop     *reconcile.Loop // of the networks that are on the host, by id
	shares   *shares
	reports  *reconcile.Loop // of their statuses
}

type network struct {
	spec  *state.Network            // nil until its record was seen
	names map[string]hostnet.Record // by server id
	ports map[string]hostnet.Port   // by port id
	made  bool                      // it is, or may be, on the host

	wanted  int           // version of what is wanted
	applied int           // version that Set was last called with, successfully
	setting chan struct{} // closed when the Set under way ends; nil: none is

	revision int64         // of its record
	ready    api.Condition // where it stands; zero: it is not on the host
	told     api.Condition // as reported last
}

func newNetworks(a *Agent) *networks {
	n := &networks{a: a, by: map[string]*network{}, seen: make(chan struct{})}
	n.seenOnce = sync.OnceFunc(func() { close(n.seen) })
	n.loop = reconcile.New(n.reconcile, 8, func(id string, err error) {
		a.Logger.Error("network needs another try", "network", id, "error", err)
	})
	n.shares = newShares(n)
	n.reports = reconcile.New(n.report, 4, func(id string, err error) {
		a.Logger.Error("report a network to the store", "network", id, "error", err)
	})
	return n
}

// of finds or makes a network; n.mu is held.
func (n *networks) of(id string) *network {
	if n.by[id] == nil {
		n.by[id] = &network{names: map[string]hostnet.Record{}, ports: map[string]hostnet.Port{}}
	}
	return n.by[id]
}

// record takes a change of a network's record in.
func (n *networks) record(e store.Event) {
	id := strings.TrimPrefix(e.Key, state.Networks)
	if e.Deleted {
		n.drop(id)
		return
	}
	rec := &state.Network{}
	if err := json.Unmarshal(e.Value, rec); err != nil {
		n.a.Logger.Error("record of a network can't be read; it is left as it is", "network", id, "error", err)
		return
	}
	n.mu.Lock()
	net := n.of(id)
	net.spec, net.revision = rec, e.Revision
	net.wanted++
	n.mu.Unlock()
	n.loop.Wake(id)
	n.shares.wake()
}

// listed takes note of the networks that have no record any more.
func (n *networks) listed(ctx context.Context, records map[string]bool) {
	there, err := n.a.Net.List(ctx)
	if err != nil {
		n.a.Logger.Error("list networks of the host", "error", err)
		return
	}
	for _, id := range there {
		if !records[id] {
			n.drop(id)
		}
	}
}

// drop takes note that a network has no record.
func (n *networks) drop(id string) {
	n.mu.Lock()
	net := n.of(id)
	net.spec, net.made = nil, true
	n.mu.Unlock()
	n.loop.Wake(id)
}

// reconcile brings a network that is on the host up to date; one without a record or a port is taken off.
func (n *networks) reconcile(ctx context.Context, id string) (time.Duration, error) {
	n.mu.Lock()
	net := n.of(id)
	made, known, ports := net.made, net.spec != nil, len(net.ports)
	n.mu.Unlock()
	switch {
	case !made, !known && ports > 0:
		return 0, nil
	case ports == 0 && !known:
		if err := n.leave(ctx, id); err != nil {
			return 0, err
		}
		n.mu.Lock()
		if net.spec == nil && len(net.ports) == 0 {
			delete(n.by, id)
		}
		n.mu.Unlock()
		return 0, nil
	case ports == 0:
		return 0, nil // its last port's server takes it off, and may be about to
	}
	return 0, n.set(ctx, id)
}

// names keeps the names of servers in their networks, wherever they run. A server that comes up on this host brings its
// name with its port; for every other change the networks on the host are set.
func (n *networks) names(serverID string, before, after *state.Server, hostID string) {
	changed := map[string]bool{}
	n.mu.Lock()
	if before != nil {
		for _, p := range before.Ports {
			if net := n.by[p.NetworkID]; net != nil && net.name(serverID, hostnet.Record{}) {
				changed[p.NetworkID] = true
			}
		}
	}
	if after != nil {
		for _, p := range after.Ports {
			record := hostnet.Record{Name: label(after.Meta.Name), Addr: p.Address}
			if n.of(p.NetworkID).name(serverID, record) && (before != nil || after.HostID != hostID) {
				changed[p.NetworkID] = true
			}
		}
	}
	n.mu.Unlock()
	for id := range changed {
		n.loop.Wake(id)
	}
}

// name sets a server's name, or drops it where the record is empty, and tells whether that changed anything.
func (net *network) name(serverID string, r hostnet.Record) bool {
	if net.names[serverID] == r {
		return false
	}
	net.names[serverID] = r
	if r == (hostnet.Record{}) {
		delete(net.names, serverID)
	}
	net.wanted++
	return true
}

// port describes the i-th port of a server, and its network.
func (n *networks) port(serverID string, rec *state.Server, i int, kind engine.NICKind) (hostnet.Port, hostnet.Network, error) {
	p := rec.Ports[i]
	config, ok := n.wanted(p.NetworkID)
	if !ok {
		return hostnet.Port{}, config, fmt.Errorf("network %s is not known here yet", p.Network)
	}
	port := hostnet.Port{
		ID: p.ID, Guest: portGuest(i), Name: label(rec.Meta.Name), MAC: hardwareAddr(p.MAC),
		Addrs: []netip.Prefix{prefixOf(p)}, Server: serverID, Kind: hostnet.Namespace,
	}
	if kind == engine.NICTap {
		port.Kind = hostnet.Tap
	}
	return port, config, nil
}

// wanted is what a network is to be, without its names and ports; false where its record was not seen.
func (n *networks) wanted(id string) (hostnet.Network, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	net := n.by[id]
	if net == nil || net.spec == nil {
		return hostnet.Network{}, false
	}
	return net.outline(id), true
}

// outline describes the network without its names and ports; networks.mu is held.
func (net *network) outline(id string) hostnet.Network {
	s := net.spec.Spec
	out := hostnet.Network{ID: id, MTU: s.MTU, NAT: s.NAT == nil || *s.NAT, Domain: s.DNS.Domain, Forwarders: s.DNS.Forwarders}
	for _, sub := range s.Subnets {
		out.Subnets = append(out.Subnets, hostnet.Subnet{Prefix: sub.Prefix, Gateway: sub.Gateway})
	}
	return out
}

// config describes the network to the host; networks.mu is held.
func (net *network) config(id string) hostnet.Network {
	out := net.outline(id)
	for _, r := range net.names {
		out.Records = append(out.Records, r)
	}
	for _, p := range net.ports {
		out.Ports = append(out.Ports, p)
	}
	sort.Slice(out.Records, func(i, j int) bool { return out.Records[i].Name < out.Records[j].Name })
	sort.Slice(out.Ports, func(i, j int) bool { return out.Ports[i].ID < out.Ports[j].ID })
	return out
}

// set brings the host up to what is wanted of a network now. Callers that come while a Set is under way share the next.
func (n *networks) set(ctx context.Context, id string) error {
	n.mu.Lock()
	net := n.of(id)
	want := net.wanted
	for {
		if net.applied >= want {
			n.mu.Unlock()
			return nil
		}
		if net.setting == nil {
			break
		}
		under := net.setting
		n.mu.Unlock()
		select {
		case <-under:
		case <-ctx.Done():
			return ctx.Err()
		}
		n.mu.Lock()
	}
	if len(net.ports) == 0 { // the last port went while this waited: a Set would make what was just removed
		n.mu.Unlock()
		return n.leave(ctx, id)
	}
	if net.spec == nil {
		n.mu.Unlock()
		return fmt.Errorf("network %s is not known here yet", id)
	}
	version, done := net.wanted, make(chan struct{})
	net.setting, net.made = done, true
	config, first := net.config(id), net.applied == 0
	n.mu.Unlock()

	if first { // its first packet is to find its part of the uplink; where that fails, a network is better than none
		if err := n.shares.set(ctx); err != nil {
			n.shares.wake() // which tells, and tries again
		}
	}
	err := n.a.Net.Set(ctx, config)

	n.mu.Lock()
	if err == nil {
		net.applied = max(net.applied, version)
	}
	net.setting = nil
	n.mu.Unlock()
	close(done)
	if ctx.Err() == nil {
		if err != nil {
			n.a.metrics.networks.Inc()
		}
		n.stands(id, n.condition(config, err))
	}
	return err
}

// attachPorts makes the ports of a server.
func (a *Agent) attachPorts(ctx context.Context, m *machine, rec *state.Server) error {
	e, err := a.engine(rec.Engine)
	if err != nil {
		return err
	}
	ports := make([]hostnet.Port, len(rec.Ports))
	kept := make([]localPort, len(rec.Ports))
	for i, p := range rec.Ports {
		port, _, err := a.nets.port(m.id, rec, i, e.Traits().NIC)
		if err != nil {
			return err
		}
		ports[i], kept[i] = port, localPort{Network: p.NetworkID, ID: p.ID}
	}
	if err := m.update(func(l *local) { l.Ports = kept }); err != nil {
		return err
	}
	// An engine that wants the guest to own its namespace makes it before any Set can.
	if maker, ok := e.(engine.NetNSMaker); ok && len(ports) > 0 {
		ids := engine.IDRange{Base: m.remembered().IDBase, Size: idRange}
		if err := maker.MakeNetNS(ctx, a.netNS(m.id), ids); err != nil {
			return err
		}
	}
	a.nets.mu.Lock()
	for i, p := range rec.Ports {
		net := a.nets.of(p.NetworkID)
		net.ports[p.ID] = ports[i]
		net.wanted++
	}
	a.nets.mu.Unlock()
	for _, p := range kept {
		if err := a.nets.set(ctx, p.Network); err != nil {
			return err
		}
	}
	return nil
}

// netNS is the path of a server's own network namespace.
func (a *Agent) netNS(serverID string) string {
	return a.Net.Attachment("", hostnet.Port{Kind: hostnet.Namespace, Server: serverID}).NetNS
}

// detachPorts removes the ports that the server may have.
func (a *Agent) detachPorts(ctx context.Context, m *machine) error {
	for _, p := range m.remembered().Ports {
		a.nets.mu.Lock()
		net := a.nets.of(p.Network)
		delete(net.ports, p.ID)
		net.wanted++
		last := len(net.ports) == 0
		known := net.spec != nil
		a.nets.mu.Unlock()
		if known && !last {
			if err := a.nets.set(ctx, p.Network); err != nil {
				return err
			}
			continue
		}
		if err := a.nets.leave(ctx, p.Network); err != nil {
			return err
		}
	}
	// A namespace that was made, and got no port, is known to nobody else.
	if path := a.netNS(m.id); path != "" {
		if err := unix.Unmount(path, unix.MNT_DETACH); err == nil {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return m.update(func(l *local) { l.Ports = nil })
}

// leave takes a network off the host if no server here has a port in it.
func (n *networks) leave(ctx context.Context, id string) error {
	n.mu.Lock()
	net := n.of(id)
	for net.setting != nil {
		under := net.setting
		n.mu.Unlock()
		<-under
		n.mu.Lock()
	}
	if len(net.ports) > 0 {
		n.mu.Unlock()
		return n.set(ctx, id)
	}
	done := make(chan struct{})
	net.setting = done
	n.mu.Unlock()

	err := n.a.Net.Remove(ctx, id)

	n.mu.Lock()
	net.setting = nil
	if err == nil {
		net.made, net.applied = false, 0
		net.wanted++
	}
	n.mu.Unlock()
	close(done)
	if err == nil {
		n.stands(id, api.Condition{})
		n.shares.wake()
	}
	return err
}

// adopt takes the ports of a guest in that outlived the daemon, without making them.
func (n *networks) adopt(serverID string, rec *state.Server, kind engine.NICKind) {
	for i, p := range rec.Ports {
		port := hostnet.Port{
			ID: p.ID, Guest: portGuest(i), Name: label(rec.Meta.Name), MAC: hardwareAddr(p.MAC),
			Addrs: []netip.Prefix{prefixOf(p)}, Server: serverID, Kind: hostnet.Namespace,
		}
		if kind == engine.NICTap {
			port.Kind = hostnet.Tap
		}
		n.mu.Lock()
		net := n.of(p.NetworkID)
		net.ports[p.ID], net.made = port, true
		net.wanted++
		n.mu.Unlock()
	}
}

// SetNetworks has every network on the host set anew: what they share has changed.
func (a *Agent) SetNetworks() {
	n := a.nets
	n.mu.Lock()
	for _, net := range n.by {
		net.wanted++
	}
	n.mu.Unlock()
	n.shares.wake()
	n.adopted()
}

// adopted brings the networks of adopted guests up to date, services included.
func (n *networks) adopted() {
	n.mu.Lock()
	ids := make([]string, 0, len(n.by))
	for id, net := range n.by {
		if net.made {
			ids = append(ids, id)
		}
	}
	n.mu.Unlock()
	for _, id := range ids {
		n.loop.Wake(id)
	}
}
