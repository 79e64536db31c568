// Package linux makes a host's networks with the Linux kernel: network namespaces, bridges, veth and tap devices,
// routes and nftables, over netlink (rtnetlink(7), nf_tables), without commands.
//
// A network is one namespace, bound to RUNDIR/netns/n-ID, which holds the bridge br0 with the gateways' addresses and
// the router. Its way out is one veth pair: `uplink` in the namespace, PREFIX-HASH (the leg) in the host's.
// Translation happens twice, so that prefixes of networks may overlap: in the network's namespace from the servers'
// addresses to the leg's, in the host's from the leg's to the uplink's.
//
//	server netns (s-ID)        network netns (n-ID)                    host netns
//	 eth0 ───────────── pHASH ─┐
//	 virtual machine ── pHASH ─┴─ br0 ─ router, NAT ─ uplink ───────── PREFIX-HASH ─ NAT ─ uplink device
//
// Rules on the bridge hold each port to its own addresses (guard.go).
//
// Set observes, plans purely (plan.go) and does the steps one by one (steps.go). The first Set of a network after start
// observes everything; later ones observe the router and only those ports that changed, or that the kernel reported an
// event of (events.go), so the cost of a change does not grow with the number of ports.
package linux

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/hostnet"
)

// Options say where and as whom the host's networks are made.
type Options struct {
	// RunDir holds the bound namespaces and the record of what belongs to whom. It is emptied by a host reboot.
	RunDir string
	// NetNS is the path of the network namespace that is the host's; empty: the process's own.
	NetNS string
	// Prefix begins the names of everything made in the host's namespace: 1 to 6 of a-z and 0-9, unique among the
	// daemons that share the namespace.
	Prefix string
	// Uplink is the device that traffic leaves through; empty: the one with the default route at the time of a Set.
	Uplink string
	// Transit is the range that legs take their /31 (RFC 3021) from; zero: 100.64.0.0/10 (RFC 6598).
	Transit netip.Prefix
	// ResolvConf names the host's resolvers; empty: /etc/resolv.conf.
	ResolvConf string
	Logger     *slog.Logger // nil: none
}

// Host implements hostnet.Host.
type Host struct {
	o    Options
	dir  string // of bound namespaces
	log  *slog.Logger
	host *site
	res  *resolvers
	lock *os.File // one daemon per run directory

	mu       sync.Mutex
	networks map[string]*network
	closed   bool

	shared  sync.RWMutex           // held for writing while what networks share is removed
	uplink  sync.Mutex             // guards what networks share in the host's namespace, legs' addresses and via too
	speeds  map[string]api.BitRate // of devices that were the uplink, as they told last
	via     string                 // device that traffic leaves through; empty: that of the default route
	servers [64]sync.Mutex         // guard servers' namespaces, by hash of the server's id
	divider divider

	// fault, set by tests, is asked before each step; an error is as a crash there.
	fault func(i int, s step) error
	// trace, set by tests, is told each step done.
	trace func(s step)
}

// network is one network. Its lock is held through Set, Remove, Check and Counters.
type network struct {
	mu   sync.Mutex
	id   string
	uses int // callers that have it, guarded by the Host's lock
	netState
}

// netState is what is known of a network. Zero is: nothing.
type netState struct {
	site     *site // nil until opened
	events   *events
	services *services
	applied  *hostnet.Network        // of the last Set that succeeded; nil: look at everything
	ports    map[string]hostnet.Port // applied, by device
	seen     map[string]link         // devices of ports as last seen: what events are about
	bridge   int                     // interface index
	known    tables                  // rules as last seen
}

var (
	validPrefix = regexp.MustCompile(`^[a-z0-9]{1,6}$`)
	validID     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)
	errClosed   = errors.New("host networking is closed")
)

// New returns a Host. It changes nothing but RunDir; networks that exist are found when they are Set, and their
// services answer from then on.
func New(o Options) (*Host, error) {
	if !validPrefix.MatchString(o.Prefix) {
		return nil, fmt.Errorf("prefix %q: want 1 to 6 of a-z and 0-9", o.Prefix)
	}
	if !filepath.IsAbs(o.RunDir) {
		return nil, fmt.Errorf("run directory %q is not an absolute path", o.RunDir)
	}
	if !o.Transit.IsValid() {
		o.Transit = netip.MustParsePrefix("100.64.0.0/10")
	}
	if !o.Transit.Addr().Is4() || o.Transit.Bits() > 31 {
		return nil, fmt.Errorf("transit range %s: want an IPv4 prefix of at most 31 bits", o.Transit)
	}
	if o.NetNS == "" {
		o.NetNS = "/proc/self/ns/net"
	}
	if o.ResolvConf == "" {
		o.ResolvConf = "/etc/resolv.conf"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	h := &Host{o: o, dir: filepath.Join(o.RunDir, "netns"), log: o.Logger, networks: map[string]*network{}, speeds: map[string]api.BitRate{}, via: o.Uplink}
	if err := os.MkdirAll(h.dir, 0o755); err != nil {
		return nil, err
	}
	lock, err := lockDir(o.RunDir)
	if err != nil {
		return nil, err
	}
	site, err := openSite(o.NetNS)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the host's network namespace: %w", err), lock.Close())
	}
	h.host, h.lock = site, lock
	h.res = newResolvers(o.ResolvConf, site)
	return h, nil
}

// Set implements hostnet.Host.
func (h *Host) Set(ctx context.Context, want hostnet.Network) error {
	if err := validate(want); err != nil {
		return fmt.Errorf("network %s: %w", want.ID, err)
	}
	n, err := h.acquire(want.ID)
	if err != nil {
		return err
	}
	defer h.release(n)
	h.shared.RLock()
	defer h.shared.RUnlock()
	if err := h.set(ctx, n, want); err != nil {
		n.applied = nil // what was done is not known: look at everything next time
		return fmt.Errorf("network %s: %w", want.ID, err)
	}
	return nil
}

func (h *Host) set(ctx context.Context, n *network, want hostnet.Network) error {
	want = clone(want)
	a := newActor(h, n)
	defer a.close()
	have, todo, err := a.observe(want, changed)
	if err != nil {
		return fmt.Errorf("observe: %w", err)
	}
	for i, s := range plan(todo, want.Ports, have) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if h.fault != nil {
			if err := h.fault(i, s); err != nil {
				return err
			}
		}
		if err := s.do(ctx, a); err != nil {
			return fmt.Errorf("%s: %w", describe(s), err)
		}
		if h.trace != nil {
			h.trace(s)
		}
	}
	if err := a.settle(ctx, todo); err != nil {
		return err
	}
	if err := a.look(todo); err != nil {
		return err
	}
	if err := h.serve(n, want); err != nil {
		return err
	}
	n.remember(want)
	return nil
}

// Difference is something about a network that is not as it should be, told by the step that would mend it.
type Difference string

// Check looks at all of a network, changes nothing, and tells how it differs from n.
func (h *Host) Check(_ context.Context, want hostnet.Network) ([]Difference, error) {
	if err := validate(want); err != nil {
		return nil, fmt.Errorf("network %s: %w", want.ID, err)
	}
	n, err := h.acquire(want.ID)
	if err != nil {
		return nil, err
	}
	defer h.release(n)
	a := newActor(h, n)
	defer a.close()
	have, todo, err := a.observe(clone(want), everything)
	if err != nil {
		return nil, fmt.Errorf("network %s: observe: %w", want.ID, err)
	}
	var out []Difference
	for _, s := range plan(todo, want.Ports, have) {
		out = append(out, Difference(describe(s)))
	}
	return out, nil
}

// Remove implements hostnet.Host.
func (h *Host) Remove(ctx context.Context, id string) error {
	if !validID.MatchString(id) {
		return fmt.Errorf("network id %q is not valid", id)
	}
	n, err := h.acquire(id)
	if err != nil {
		return err
	}
	a := newActor(h, n)
	err = a.remove(ctx)
	a.close()
	h.release(n)
	if err != nil {
		return fmt.Errorf("remove network %s: %w", id, err)
	}
	if err := h.removeShared(); err != nil {
		return fmt.Errorf("remove what networks shared: %w", err)
	}
	return nil
}

// List implements hostnet.Host.
func (h *Host) List(context.Context) ([]string, error) {
	entries, err := os.ReadDir(h.dir)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutPrefix(e.Name(), networkFile); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Attachment implements hostnet.Host.
func (h *Host) Attachment(networkID string, p hostnet.Port) hostnet.Attachment {
	if p.Kind == hostnet.Namespace {
		return hostnet.Attachment{NetNS: h.serverPath(p.Server), Device: p.Guest}
	}
	return hostnet.Attachment{NetNS: h.networkPath(networkID), Device: portDevice(p.ID)}
}

// Counters implements hostnet.Host. What the host's end sent is what the guest received.
func (h *Host) Counters(_ context.Context, networkID, portID string) (hostnet.Counters, error) {
	if !validID.MatchString(networkID) {
		return hostnet.Counters{}, fmt.Errorf("network id %q is not valid", networkID)
	}
	n, err := h.acquire(networkID)
	if err != nil {
		return hostnet.Counters{}, err
	}
	defer h.release(n)
	if ok, err := n.open(h); err != nil || !ok {
		return hostnet.Counters{}, errors.Join(fmt.Errorf("network %s is not on this host", networkID), err)
	}
	l, err := n.site.LinkByName(portDevice(portID))
	if err != nil {
		return hostnet.Counters{}, fmt.Errorf("port %s of network %s: %w", portID, networkID, err)
	}
	s := l.Attrs().Statistics
	if s == nil {
		return hostnet.Counters{}, fmt.Errorf("port %s of network %s: the kernel gave no statistics", portID, networkID)
	}
	return hostnet.Counters{RxBytes: s.TxBytes, TxBytes: s.RxBytes, RxPackets: s.TxPackets, TxPackets: s.RxPackets,
		RxDropped: s.TxDropped, TxDropped: s.RxDropped}, nil
}

// Close implements hostnet.Host.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	all := slices.Collect(maps.Values(h.networks))
	h.mu.Unlock()
	for _, n := range all {
		n.mu.Lock()
		n.forget()
		n.mu.Unlock()
	}
	h.host.close()
	return h.lock.Close()
}

// acquire returns a network, locked.
func (h *Host) acquire(id string) (*network, error) {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil, errClosed
	}
	n := h.networks[id]
	if n == nil {
		n = &network{id: id}
		h.networks[id] = n
	}
	n.uses++
	h.mu.Unlock()
	n.mu.Lock()
	h.mu.Lock()
	closed := h.closed
	h.mu.Unlock()
	if closed {
		h.release(n)
		return nil, errClosed
	}
	return n, nil
}

// release unlocks a network, and forgets one that is not on this host.
func (h *Host) release(n *network) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n.uses--
	if n.uses == 0 && n.site == nil && h.networks[n.id] == n {
		delete(h.networks, n.id)
	}
	n.mu.Unlock()
}

func (h *Host) server(id string) *sync.Mutex {
	sum := fnv.New32a()
	_, _ = io.WriteString(sum, id)
	return &h.servers[sum.Sum32()%uint32(len(h.servers))]
}

// remember keeps what a Set made so.
func (n *network) remember(want hostnet.Network) {
	n.applied = &want
	gone := n.ports
	n.ports = make(map[string]hostnet.Port, len(want.Ports))
	for _, p := range want.Ports {
		n.ports[portDevice(p.ID)] = p
	}
	for dev := range gone {
		if _, ok := n.ports[dev]; !ok {
			delete(n.seen, dev)
		}
	}
}

// forget stops the services and closes what is open of a network.
func (n *network) forget() {
	n.services.stop()
	n.events.close()
	n.site.close()
	n.netState = netState{}
}

// settleTime is how long a device may take to be up once both its ends are.
const settleTime = 5 * time.Second
