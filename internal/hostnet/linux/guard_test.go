package linux

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/hostnet"
)

// frames are what a guest may send, and what it may try: Ethernet frames from the first of three ports.
type frames struct {
	own, other hostnet.Port
	gateway    net.HardwareAddr
}

func (f frames) ether(src net.HardwareAddr, kind uint16, payload ...byte) []byte {
	dst := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	return slices.Concat(dst, src, binary.BigEndian.AppendUint16(nil, kind), payload, make([]byte, 40))
}

func (f frames) arp(sender, claims net.HardwareAddr, ip, target netip.Addr) []byte {
	return f.ether(sender, unix.ETH_P_ARP, slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, 2}, claims, ip.AsSlice(), make([]byte, 6), target.AsSlice())...)
}

// to is a frame with another destination.
func to(dst net.HardwareAddr, frame []byte) []byte { return slices.Concat(dst, frame[6:]) }

// dhcp is a request (RFC 2131) of a client.
func (f frames) dhcp(src netip.Addr, client net.HardwareAddr) []byte {
	return f.ipv4(src, 68, 67, slices.Concat([]byte{1, 1, 6, 0}, make([]byte, 24), client)...)
}

func (f frames) ipv4(src netip.Addr, sport, dport uint16, payload ...byte) []byte {
	head := []byte{0x45, 0, 0, 68, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	head = slices.Concat(head, src.AsSlice(), []byte{255, 255, 255, 255})
	var sum uint32
	for i := 0; i < len(head); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(head[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(head[10:], ^uint16(sum+sum>>16))
	return f.ether(f.own.MAC, unix.ETH_P_IP, slices.Concat(head, ports(sport, dport), []byte{0, 48, 0, 0}, payload)...)
}

func ports(sport, dport uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, sport), dport)
}

func (f frames) ipv6(src netip.Addr, next byte, payload ...byte) []byte {
	all := netip.MustParseAddr("ff02::1")
	head := []byte{0x60, 0, 0, 0, 0, 40, next, 255}
	return f.ether(f.own.MAC, unix.ETH_P_IPV6, slices.Concat(head, src.AsSlice(), all.AsSlice(), payload)...)
}

func (f frames) tagged(frame []byte) []byte {
	return slices.Concat(frame[:12], []byte{0x81, 0, 0, 5}, frame[12:])
}

// A guest reaches nobody with what it forges, whether it is of the host's kernel or has one of its own; and with what is
// its own it does.
func TestGuestsCannotForge(t *testing.T) {
	w := newWorld(t)
	h := w.daemon()
	n := describeNet("alpha", "10.7.0.0/24", 2, 1)
	set(t, h, n)
	tap := h.Attachment(n.ID, n.Ports[2])
	network, err := openSite(tap.NetNS)
	must(t, err)
	t.Cleanup(network.close)
	fd, err := openTap(network, tap.Device, 0)
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	set(t, h, n)

	inject := injector(t, w.guest(h, n, 0), n.Ports[0].Guest)
	for _, from := range []struct {
		name string
		own  hostnet.Port
		send func(t *testing.T, frame []byte)
	}{
		{"namespace", n.Ports[0], inject},
		{"tap", n.Ports[2], func(t *testing.T, b []byte) { _, err := unix.Write(fd, b); must(t, err) }},
	} {
		t.Run(from.name, func(t *testing.T) {
			f := frames{own: from.own, other: n.Ports[1]}
			testForging(t, f, w.guest(h, n, 1), from.send)
		})
	}
}

func testForging(t *testing.T, f frames, receiver *site, send func(*testing.T, []byte)) {
	own, other := f.own.Addrs[0].Addr(), f.other.Addrs[0].Addr()
	unset, gateway := netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("10.7.0.1")
	local, foreign := linkLocal(f.own.MAC), linkLocal(f.other.MAC)
	icmp := func(kind byte, target netip.Addr) []byte {
		return slices.Concat([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice())
	}
	const probe = 9 // discard (RFC 863)
	group := func(last byte) net.HardwareAddr { return net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, last} }
	heard := listenRaw(t, receiver, f.other.Guest)
	send(t, to(group(0x03), f.ether(f.other.MAC, 0x888e))) // before anything was learnt
	for _, c := range []struct {
		name  string
		frame []byte
		pass  bool
	}{
		{"its own IPv4", f.ipv4(own, probe, probe), true},
		{"a DHCP request", f.dhcp(unset, f.own.MAC), true},
		{"a DHCP renewal", f.dhcp(own, f.own.MAC), true},
		{"its own ARP", f.arp(f.own.MAC, f.own.MAC, own, other), true},
		{"an ARP probe", f.arp(f.own.MAC, f.own.MAC, unset, own), true},
		{"its own IPv6", f.ipv6(local, unix.IPPROTO_UDP, ports(probe, probe)...), true},
		{"its own neighbour advertisement", f.ipv6(local, unix.IPPROTO_ICMPV6, icmp(136, local)...), true},
		{"duplicate address detection", f.ipv6(netip.IPv6Unspecified(), unix.IPPROTO_ICMPV6, icmp(135, local)...), true},
		{"its own TCP by IPv6", f.ipv6(local, unix.IPPROTO_TCP, ports(probe, probe)...), true},
		{"a later fragment", f.ipv6(local, unix.IPPROTO_FRAGMENT, unix.IPPROTO_UDP, 0, 0, 8, 0, 0, 0, 1), true},
		{"a router solicitation", f.ipv6(local, unix.IPPROTO_ICMPV6, icmp(133, local)...), true},

		{"another's MAC", f.ether(f.other.MAC, unix.ETH_P_IP, f.ipv4(own, probe, probe)[14:]...), false},
		{"a MAC of nobody", f.ether(net.HardwareAddr{2, 9, 9, 9, 9, 9}, unix.ETH_P_IP, f.ipv4(own, probe, probe)[14:]...), false},
		{"another's IPv4", f.ipv4(other, probe, probe), false},
		{"the gateway's IPv4", f.ipv4(gateway, probe, probe), false},
		{"an IPv4 of elsewhere", f.ipv4(netip.MustParseAddr("192.0.2.1"), probe, probe), false},
		{"no IPv4", f.ipv4(unset, probe, probe), false},
		{"an ARP for another's address", f.arp(f.own.MAC, f.own.MAC, other, other), false},
		{"an ARP for the gateway's", f.arp(f.own.MAC, f.own.MAC, gateway, gateway), false},
		{"an ARP that names another's MAC", f.arp(f.own.MAC, f.other.MAC, own, own), false},
		{"an ARP probe for another's address", f.arp(f.own.MAC, f.own.MAC, unset, other), false},
		{"a DHCP answer", f.ipv4(own, 67, 68), false},
		{"a DHCP answer of another port", f.ipv4(own, 1067, 68), false},
		{"a DHCP request for another", f.dhcp(unset, f.other.MAC), false},
		{"a DHCP renewal for another", f.dhcp(own, f.other.MAC), false},
		{"another's link-local IPv6", f.ipv6(foreign, unix.IPPROTO_UDP, ports(probe, probe)...), false},
		{"a global IPv6", f.ipv6(netip.MustParseAddr("2001:db8::1"), unix.IPPROTO_UDP, ports(probe, probe)...), false},
		{"no IPv6", f.ipv6(netip.IPv6Unspecified(), unix.IPPROTO_UDP, ports(probe, probe)...), false},
		{"a router advertisement", f.ipv6(local, unix.IPPROTO_ICMPV6, icmp(134, local)...), false},
		{"a redirect", f.ipv6(local, unix.IPPROTO_ICMPV6, icmp(137, local)...), false},
		{"an advertisement of another's address", f.ipv6(local, unix.IPPROTO_ICMPV6, icmp(136, foreign)...), false},
		{"detection of another's address", f.ipv6(netip.IPv6Unspecified(), unix.IPPROTO_ICMPV6, icmp(135, foreign)...), false},
		{"a DHCPv6 answer", f.ipv6(local, unix.IPPROTO_UDP, ports(547, 546)...), false},
		{"a DHCPv6 answer of another port", f.ipv6(local, unix.IPPROTO_UDP, ports(1547, 546)...), false},
		// The first fragment ends in options of 2048 bytes: what follows, say a router advertisement, can't be told (RFC 7113).
		{"a chain of headers that is cut", f.ipv6(local, unix.IPPROTO_FRAGMENT, unix.IPPROTO_DSTOPTS, 0, 0, 1, 0, 0, 0, 1, unix.IPPROTO_ICMPV6, 255), false},
		{"a VLAN tag", f.tagged(f.ipv4(own, probe, probe)), false},
		{"a protocol of its own", f.ether(f.own.MAC, 0x88b5), false}, // IEEE 802, local experiments
		// To groups that a bridge takes for itself; were it to learn from them, what is another's would come here.
		{"another's MAC to a group", to(group(0x0e), f.ether(f.other.MAC, 0x88cc)), false},
		{"another's MAC to STP's group", to(group(0x00), f.ether(f.other.MAC, 0x88cc)), false},
		{"another's MAC to LACP's group", to(group(0x02), f.ether(f.other.MAC, 0x88cc)), false},
		{"another's IPv4 to a group", to(group(0x0e), f.ipv4(other, probe, probe)), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			// A frame to the other alone follows, and passes: what came before it was dropped if it is not heard by then.
			mark := to(f.other.MAC, f.arp(f.own.MAC, f.own.MAC, own, other))
			mark = append(mark, []byte(c.name)...)
			send(t, c.frame)
			send(t, mark)
			got := false
			for {
				b := heard(t)
				if slices.Equal(b, mark) {
					break
				}
				got = got || slices.Equal(b, c.frame)
			}
			if got != c.pass {
				t.Errorf("it was heard: %v, want %v", got, c.pass)
			}
		})
	}
}

// injector returns what sends frames from a device, in the order that it is called.
func injector(t *testing.T, s *site, dev string) func(t *testing.T, frame []byte) {
	t.Helper()
	l, err := s.LinkByName(dev)
	must(t, err)
	frames, sent := make(chan []byte), make(chan error)
	t.Cleanup(func() { close(frames) })
	go func() {
		err := s.run(func() error { // on one thread: a processor's queue keeps the order
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			var all, one unix.CPUSet
			_ = unix.SchedGetaffinity(0, &all)
			for cpu := 0; one.Count() == 0; cpu++ {
				if all.IsSet(cpu) {
					one.Set(cpu)
				}
			}
			if err := unix.SchedSetaffinity(0, &one); err != nil {
				return err
			}
			for frame := range frames {
				sent <- unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index})
			}
			return nil
		})
		if err != nil {
			sent <- err
		}
	}()
	return func(t *testing.T, frame []byte) {
		t.Helper()
		select {
		case frames <- frame:
			must(t, <-sent)
		case err := <-sent:
			t.Fatal(err)
		}
	}
}

// listenRaw hears all that a device receives. What it returns waits for the next frame.
func listenRaw(t *testing.T, s *site, dev string) func(t *testing.T) []byte {
	t.Helper()
	l, err := s.LinkByName(dev)
	must(t, err)
	var fd int
	must(t, s.run(func() (err error) {
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
			return err
		}
		// The kernel takes a tag off what it receives and keeps it aside (packet(7), PACKET_AUXDATA): such a frame is put together again.
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index, Protocol: all})
	}))
	t.Cleanup(func() { _ = unix.Close(fd) })
	buf, oob := make([]byte, 4096), make([]byte, 256)
	return func(t *testing.T) []byte {
		t.Helper()
		n, o, _, _, err := unix.Recvmsg(fd, buf, oob, 0)
		must(t, err)
		return untag(buf[:n], oob[:o])
	}
}

// untag puts a VLAN tag back that the kernel has taken off a frame.
func untag(frame, oob []byte) []byte {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) == 0 || len(msgs[0].Data) < 20 {
		return slices.Clone(frame)
	}
	aux := msgs[0].Data // struct tpacket_auxdata: status first, tp_vlan_tci at 16
	const vlanValid = 0x10
	if binary.NativeEndian.Uint32(aux)&vlanValid == 0 {
		return slices.Clone(frame)
	}
	tci := binary.NativeEndian.Uint16(aux[16:])
	return slices.Concat(frame[:12], []byte{0x81, 0}, binary.BigEndian.AppendUint16(nil, tci), frame[12:])
}

// The guard stays with its network: a port that comes is its own at once, one that goes leaves nothing, and what somebody
// removes is put back.
func TestGuardFollowsPorts(t *testing.T) {
	w := newWorld(t)
	h := w.daemon()
	n := describeNet("alpha", "10.7.0.0/24", 3, 0)
	all := n.Ports
	for _, count := range []int{1, 3, 2} {
		n.Ports = all[:count]
		set(t, h, n)
		if have := w.guardOf(h, n); !slices.Equal(have, guard(n.Ports).list()) {
			t.Errorf("with %d ports the guard is\n%q", count, have)
		}
	}
	s, err := openSite(h.networkPath(n.ID))
	must(t, err)
	defer s.close()
	c, err := s.rules()
	must(t, err)
	must(t, guard(nil).remove(c))
	set(t, h, n)
	if have := w.guardOf(h, n); !slices.Equal(have, guard(n.Ports).list()) {
		t.Errorf("mended, the guard is\n%q", have)
	}
}

func (w *world) guardOf(h *Host, n hostnet.Network) []string {
	w.t.Helper()
	s, err := openSite(h.networkPath(n.ID))
	must(w.t, err)
	defer s.close()
	list, err := ruleList(s, guard(nil).Family, networkTable)
	must(w.t, err)
	return list
}

// More keys than one message of netlink holds.
func TestGuardOfManyPorts(t *testing.T) {
	w := newWorld(t)
	s := w.namespace("many")
	n := describeNet("alpha", "10.7.0.0/16", 0, 3000)
	c, err := s.rules()
	must(t, err)
	begun := time.Now()
	must(t, guard(n.Ports).replace(c))
	t.Logf("%d ports in %v", len(n.Ports), time.Since(begun))
	have, err := ruleList(s, guard(nil).Family, networkTable)
	must(t, err)
	if want := guard(n.Ports).list(); !slices.Equal(have, want) {
		t.Errorf("%d lines, want %d", len(have), len(want))
	}
}

func TestLinkLocal(t *testing.T) {
	mac, _ := net.ParseMAC("52:54:00:12:34:56")
	if got := fmt.Sprint(linkLocal(mac)); got != "fe80::5054:ff:fe12:3456" {
		t.Error(got)
	}
}
