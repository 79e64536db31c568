package linux

import (
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/hostnet"
)

// guard holds each port to what is its own: what it sends bears its MAC address, and says to come from one of its
// addresses, in Ethernet, ARP (RFC 826), IPv4, IPv6 and its neighbour discovery (RFC 4861); it is no DHCP server, no
// DHCPv6 server and no router to the others. What is none of these protocols, VLAN tags included, is dropped.
//
// Frames to the groups of IEEE 802.1D (01:80:c2:00:00:0x) come to the same rules as all others (groupForward): the bridge would
// take those for itself before any rule, and learn from them where their sender is.
//
// The rules are the same for every network, and their sets are hashed: what a frame costs does not depend on how many
// ports there are. An IPv6 link-local address is the port's own where it was made of the MAC address (RFC 4291, A).
func guard(ports []hostnet.Port) table {
	var macs, v4, v6 [][]byte
	for _, p := range ports {
		dev := exactly(portDevice(p.ID))
		key := func(field []byte) []byte { return slices.Concat(dev, field, make([]byte, (4-len(field)%4)%4)) }
		macs = append(macs, key(p.MAC))
		v6 = append(v6, key(linkLocal(p.MAC).AsSlice()))
		for _, a := range p.Addrs {
			if a.Addr().Is4() {
				v4 = append(v4, key(a.Addr().AsSlice()))
			} else if a.Addr() != linkLocal(p.MAC) {
				v6 = append(v6, key(a.Addr().AsSlice()))
			}
		}
	}
	sets := []keys{
		{Name: "macs", Key: []nftables.SetDatatype{nftables.TypeIFName, nftables.TypeEtherAddr}, Keys: macs},
		{Name: "ipv4", Key: []nftables.SetDatatype{nftables.TypeIFName, nftables.TypeIPAddr}, Keys: v4},
		{Name: "ipv6", Key: []nftables.SetDatatype{nftables.TypeIFName, nftables.TypeIP6Addr}, Keys: v6},
	}
	return table{Name: networkTable, Family: nftables.TableFamilyBridge, Sets: sets, Chains: []chain{
		{"prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRef(-300), slices.Concat(
			[]rule{{"ether saddr foreign drop", slices.Concat(sender(etherSource, "macs", false), drop)}},
			guardARP(), guardIPv4(), guardIPv6(),
			[]rule{{"other drop", drop}},
		)},
		// What is for the bridge itself by IEEE 802.1D, and can't be forwarded, comes by here (groupForward).
		{"input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityRef(-300), []rule{
			{"ether daddr group drop", slices.Concat(is(field{link3, 0, 5}, 0x01, 0x80, 0xc2, 0, 0), drop)},
		}},
	}}
}

// field is a part of a frame.
type field struct {
	base        expr.PayloadBase
	offset, len uint32
}

const (
	link3      = expr.PayloadBaseLLHeader
	network3   = expr.PayloadBaseNetworkHeader
	transport4 = expr.PayloadBaseTransportHeader
)

var (
	etherSource = field{link3, 6, 6}
	etherType   = field{link3, 12, 2} // of a tagged frame, that of the tag

	arpSenderMAC  = field{network3, 8, 6}
	arpSenderIPv4 = field{network3, 14, 4}
	arpTargetIPv4 = field{network3, 24, 4}

	ipv4Source = field{network3, 12, 4}
	ipv6Source = field{network3, 8, 16}

	sourcePort  = field{transport4, 0, 2}
	targetPort  = field{transport4, 2, 2}
	icmpv6Type  = field{transport4, 0, 1}
	ndTarget    = field{transport4, 8, 16} // of neighbour discovery
	dhcpClient  = field{transport4, 36, 6} // chaddr (RFC 2131)
	arp         = is(etherType, 0x08, 0x06)
	ipv4        = is(etherType, 0x08, 0x00)
	ipv6        = is(etherType, 0x86, 0xdd)
	udp, icmpv6 = match(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_UDP}), match(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_ICMPV6})
)

// is matches a field that has a value.
func is(f field, value ...byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: f.base, Offset: f.offset, Len: f.len},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value},
	}
}

// sender matches frames whose field, with the device that they come from, is in a set, or is not.
func sender(f field, set string, in bool) []expr.Any {
	const first, second = unix.NFT_REG_1, unix.NFT_REG_2 // a device's name fills the first
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: first},
		&expr.Payload{DestRegister: second, Base: f.base, Offset: f.offset, Len: f.len},
		&expr.Lookup{SourceRegister: first, SetName: set, Invert: !in},
	}
}

func guardARP() []rule {
	return []rule{
		{"arp saddr ether foreign drop", slices.Concat(arp, sender(arpSenderMAC, "macs", false), drop)},
		{"arp saddr ip own accept", slices.Concat(arp, sender(arpSenderIPv4, "ipv4", true), accept)},
		// RFC 5227, 2.1.1: to probe for another's address would be to claim it.
		{"arp probe own accept", slices.Concat(arp, is(arpSenderIPv4, 0, 0, 0, 0), sender(arpTargetIPv4, "ipv4", true), accept)},
	}
}

// guardIPv4 lets no answer of DHCP pass, from whatever port (clients look at the port that it goes to), and no request
// that another client's hardware address is in: the server would answer that one.
func guardIPv4() []rule {
	from := func(port ...byte) []expr.Any { return slices.Concat(ipv4, udp, is(sourcePort, port...)) }
	to := func(port ...byte) []expr.Any { return slices.Concat(ipv4, udp, is(targetPort, port...)) }
	client := sender(dhcpClient, "macs", true)
	return []rule{
		{"udp sport 67 drop", slices.Concat(from(0, 67), drop)},
		{"udp dport 68 drop", slices.Concat(to(0, 68), drop)},
		{"ip saddr own udp dport 67 own client accept", slices.Concat(to(0, 67), client, sender(ipv4Source, "ipv4", true), accept)},
		{"ip saddr unset udp dport 67 own client accept", slices.Concat(to(0, 67), client, is(ipv4Source, 0, 0, 0, 0), accept)},
		{"udp dport 67 drop", slices.Concat(to(0, 67), drop)},
		{"ip saddr own accept", slices.Concat(ipv4, sender(ipv4Source, "ipv4", true), accept)},
	}
}

// guardIPv6 accepts what it could read whole: a rule that can't read its field, as in a fragment, does not match, so what
// is to be dropped is what remains.
func guardIPv6() []rule {
	const routerAdvertisement, neighbourSolicitation, neighbourAdvertisement, redirect, listenerReport = 134, 135, 136, 137, 143
	icmp := func(kind byte) []expr.Any { return slices.Concat(ipv6, icmpv6, is(icmpv6Type, kind)) }
	own, target := sender(ipv6Source, "ipv6", true), sender(ndTarget, "ipv6", true)
	unset := is(ipv6Source, make([]byte, 16)...)
	read := func(f field) []expr.Any { return is(f)[:1] }
	isNot := func(protocol byte) []expr.Any {
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{protocol}}}
	}
	laterFragment := []expr.Any{
		&expr.Exthdr{DestRegister: 1, Type: unix.IPPROTO_FRAGMENT, Offset: 2, Len: 2, Op: expr.ExthdrOpIpv6},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0xff, 0xf8}, Xor: []byte{0, 0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0}},
	}
	return []rule{
		{"icmpv6 router advertisement drop", slices.Concat(icmp(routerAdvertisement), drop)},
		{"icmpv6 redirect drop", slices.Concat(icmp(redirect), drop)},
		{"icmpv6 own advertisement accept", slices.Concat(icmp(neighbourAdvertisement), target, own, accept)},
		{"icmpv6 advertisement drop", slices.Concat(icmp(neighbourAdvertisement), drop)},
		{"udp sport 547 drop", slices.Concat(ipv6, udp, is(sourcePort, 547>>8, 547&0xff), drop)},
		{"udp dport 546 drop", slices.Concat(ipv6, udp, is(targetPort, 546>>8, 546&0xff), drop)},
		{"ip6 saddr own icmpv6 accept", slices.Concat(ipv6, icmpv6, read(icmpv6Type), own, accept)},
		{"ip6 saddr own udp accept", slices.Concat(ipv6, udp, read(targetPort), own, accept)},
		{"ip6 saddr own other accept", slices.Concat(ipv6, isNot(unix.IPPROTO_ICMPV6), isNot(unix.IPPROTO_UDP), own, accept)},
		{"ip6 saddr own later fragment accept", slices.Concat(ipv6, laterFragment, own, accept)},
		// A host that does not know yet whether its address is its own (RFC 4862, 5.4.2).
		{"ip6 saddr unset own solicitation accept", slices.Concat(icmp(neighbourSolicitation), unset, target, accept)},
		{"ip6 saddr unset listener report accept", slices.Concat(icmp(listenerReport), unset, accept)},
	}
}

// linkLocal is the IPv6 link-local address that is made of a MAC address.
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}
