package linux

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"

	"github.com/croftproject/croft/internal/hostnet"
)

// services answer DHCP and DNS on a network's gateways. What they answer with is swapped by each Set; their sockets stay.
type services struct {
	key  serviceKey
	data atomic.Pointer[answers]
	log  *slog.Logger
	site *site
	res  *resolvers

	life    context.Context // ends with the services
	end     context.CancelFunc
	slots   chan struct{} // forwarded questions under way
	clients chan struct{} // open TCP connections
	sockets []interface{ Close() error }
	mu      sync.Mutex
	conns   map[net.Conn]bool // open TCP connections; nil once stopped
	running sync.WaitGroup
}

// serviceKey is what the sockets depend on.
type serviceKey struct {
	bridge   int    // interface index: a socket is bound to the device, not to its name
	gateways string // addresses
}

// answers are what a network's services say.
type answers struct {
	dhcp leases
	dns  zone
}

// serve starts a network's services, or tells those that run what to answer from now on.
func (h *Host) serve(n *network, want hostnet.Network) error {
	var gateways []netip.Addr
	for _, s := range want.Subnets {
		gateways = append(gateways, s.Gateway)
	}
	key := serviceKey{n.bridge, fmt.Sprint(gateways)}
	if n.services != nil && n.services.key != key {
		n.services.stop()
		n.services = nil
	}
	data := &answers{dhcp: newLeases(want), dns: newZone(want)}
	if n.services != nil {
		n.services.data.Store(data)
		return nil
	}
	s := &services{key: key, site: n.site, res: h.res, log: h.log.With("network", n.id), conns: map[net.Conn]bool{},
		slots: make(chan struct{}, maxForwards), clients: make(chan struct{}, maxClients)}
	s.life, s.end = context.WithCancel(context.Background())
	s.data.Store(data)
	if err := s.start(gateways); err != nil {
		s.stop()
		return fmt.Errorf("start services: %w", err)
	}
	n.services = s
	return nil
}

func (s *services) start(gateways []netip.Addr) error {
	var dhcp *net.UDPConn
	var udp []*net.UDPConn
	var tcp []*net.TCPListener
	err := s.site.run(func() (err error) { // sockets belong to the namespace of the thread that makes them
		if slices.ContainsFunc(gateways, netip.Addr.Is4) {
			if dhcp, err = server4.NewIPv4UDPConn(bridgeDevice, &net.UDPAddr{Port: dhcpv4.ServerPort}); err != nil {
				return fmt.Errorf("DHCP: %w", err)
			}
			s.sockets = append(s.sockets, dhcp)
		}
		for _, g := range gateways {
			at := netip.AddrPortFrom(g, 53)
			u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
			if err != nil {
				return fmt.Errorf("DNS: %w", err)
			}
			s.sockets, udp = append(s.sockets, u), append(udp, u)
			t, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
			if err != nil {
				return fmt.Errorf("DNS: %w", err)
			}
			s.sockets, tcp = append(s.sockets, t), append(tcp, t)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if dhcp != nil {
		s.running.Go(func() { s.serveDHCP(dhcp) })
	}
	for _, u := range udp {
		s.running.Go(func() { s.serveUDP(u) })
	}
	for _, t := range tcp {
		s.running.Go(func() { s.serveTCP(t) })
	}
	return nil
}

// stop ends the services and waits for what they do.
func (s *services) stop() {
	if s == nil {
		return
	}
	s.end()
	for _, c := range s.sockets {
		_ = c.Close()
	}
	s.mu.Lock()
	conns := s.conns
	s.conns = nil
	s.mu.Unlock()
	for c := range conns {
		_ = c.Close()
	}
	s.running.Wait()
}

// guard calls f, which handles what a guest sent: whatever is wrong with that must not end the daemon.
func (s *services) guard(what string, f func()) {
	defer func() {
		if r := recover(); r != nil {
			s.log.Error("dropped a packet that its handler failed on", "service", what, "panic", r)
		}
	}()
	f()
}

// ended tells whether a read error is the end of the socket.
func ended(err error) bool { return errors.Is(err, net.ErrClosed) }
