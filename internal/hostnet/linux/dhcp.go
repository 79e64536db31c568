package linux

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/hostnet"
)

// leaseTime is how long a client may use its address before it asks again. The answer is always the same, so nothing
// is remembered of a lease.
const leaseTime = time.Hour

// leases are what DHCP (RFC 2131) gives to whom.
type leases struct {
	mtu    uint16
	domain string
	byMAC  map[string]lease
}

type lease struct {
	addr   netip.Addr
	bits   int
	router netip.Addr // also the server, and the resolver
	name   string
}

func newLeases(n hostnet.Network) leases {
	l := leases{mtu: uint16(n.MTU), domain: n.Domain, byMAC: make(map[string]lease, len(n.Ports))}
	for _, p := range n.Ports {
		for _, s := range n.Subnets {
			for _, a := range p.Addrs {
				if a.Addr().Is4() && s.Prefix.Contains(a.Addr()) {
					if _, ok := l.byMAC[string(p.MAC)]; !ok {
						l.byMAC[string(p.MAC)] = lease{a.Addr(), s.Prefix.Bits(), s.Gateway, p.Name}
					}
				}
			}
		}
	}
	return l
}

// reply answers a message, or returns nil where there is nothing to say: to strangers, to relays, and to clients that
// speak to another server.
func (l leases) reply(m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	if m.OpCode != dhcpv4.OpcodeBootRequest || len(m.ClientHWAddr) != 6 || !unset(m.GatewayIPAddr) {
		return nil
	}
	le, ok := l.byMAC[string(m.ClientHWAddr)]
	if !ok {
		return nil
	}
	server := net.IP(le.router.AsSlice())
	if id := m.ServerIdentifier(); id != nil && !id.Equal(server) {
		return nil
	}
	// A client that says what address it has is answered there: it must be its own, not one of its choice.
	foreign := !unset(m.ClientIPAddr) && !m.ClientIPAddr.Equal(le.addr.AsSlice())
	if foreign && m.MessageType() != dhcpv4.MessageTypeRequest {
		return nil
	}
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return l.give(m, le, dhcpv4.MessageTypeOffer)
	case dhcpv4.MessageTypeInform:
		return l.give(m, le, dhcpv4.MessageTypeAck)
	case dhcpv4.MessageTypeRequest:
		asked := m.RequestedIPAddress()
		if unset(asked) {
			asked = m.ClientIPAddr
		}
		if ip, ok := netip.AddrFromSlice(asked.To4()); ok && ip == le.addr && !foreign {
			return l.give(m, le, dhcpv4.MessageTypeAck)
		}
		nak, err := dhcpv4.NewReplyFromRequest(m,
			dhcpv4.WithMessageType(dhcpv4.MessageTypeNak), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(server)))
		if err != nil {
			return nil
		}
		return nak
	}
	return nil // DECLINE, RELEASE: the address stays the port's
}

func (l leases) give(m *dhcpv4.DHCPv4, le lease, kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	router := net.IP(le.router.AsSlice())
	mods := []dhcpv4.Modifier{
		dhcpv4.WithMessageType(kind),
		dhcpv4.WithServerIP(router),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(router)),
		dhcpv4.WithOption(dhcpv4.OptSubnetMask(net.CIDRMask(le.bits, 32))),
		dhcpv4.WithOption(dhcpv4.OptRouter(router)),
		dhcpv4.WithOption(dhcpv4.OptDNS(router)),
		dhcpv4.WithOption(dhcpv4.Option{Code: dhcpv4.OptionInterfaceMTU, Value: dhcpv4.Uint16(l.mtu)}),
	}
	if l.domain != "" {
		mods = append(mods, dhcpv4.WithOption(dhcpv4.OptDomainName(l.domain)))
	}
	if le.name != "" {
		mods = append(mods, dhcpv4.WithOption(dhcpv4.OptHostName(le.name)))
	}
	if m.MessageType() != dhcpv4.MessageTypeInform {
		mods = append(mods, dhcpv4.WithYourIP(le.addr.AsSlice()),
			dhcpv4.WithOption(dhcpv4.OptIPAddressLeaseTime(leaseTime)))
	}
	r, err := dhcpv4.NewReplyFromRequest(m, mods...)
	if err != nil {
		return nil
	}
	return r
}

func unset(ip net.IP) bool { return len(ip) == 0 || ip.IsUnspecified() }

// serveDHCP answers until the socket is closed. What goes wrong with a packet, guests can bring about as often as they
// like: it is no warning.
func (s *services) serveDHCP(c *net.UDPConn) {
	buf := make([]byte, 64<<10)
	for {
		n, _, err := c.ReadFromUDP(buf)
		if ended(err) {
			return
		}
		if err != nil {
			s.log.Debug("read DHCP request", "error", err)
			continue
		}
		s.guard("DHCP", func() { s.answerDHCP(c, buf[:n]) })
	}
}

func (s *services) answerDHCP(c *net.UDPConn, b []byte) {
	m, err := dhcpv4.FromBytes(b)
	if err != nil {
		return
	}
	r := s.data.Load().dhcp.reply(m)
	if r == nil {
		return
	}
	to := s.destination(m, r)
	if _, err := c.WriteToUDP(r.ToBytes(), &net.UDPAddr{IP: to, Port: dhcpv4.ClientPort}); err != nil {
		s.log.Debug("answer DHCP", "mac", m.ClientHWAddr, "error", err)
	}
}

// destination is where an answer goes (RFC 2131, 4.1). A client that has no address yet can't answer ARP for it, so its
// address is told to the kernel.
func (s *services) destination(m, r *dhcpv4.DHCPv4) net.IP {
	switch {
	case r.MessageType() == dhcpv4.MessageTypeNak:
		return net.IPv4bcast
	case !unset(m.ClientIPAddr):
		return m.ClientIPAddr
	case m.IsBroadcast():
		return net.IPv4bcast
	}
	err := s.site.NeighSet(&netlink.Neigh{LinkIndex: s.key.bridge, Family: unix.AF_INET, State: netlink.NUD_REACHABLE,
		IP: r.YourIPAddr, HardwareAddr: m.ClientHWAddr})
	if err != nil {
		if !errors.Is(err, unix.ENODEV) {
			s.log.Debug("tell the kernel a client's address", "mac", m.ClientHWAddr, "error", err)
		}
		return net.IPv4bcast
	}
	return r.YourIPAddr
}
