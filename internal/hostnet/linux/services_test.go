package linux

import (
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/miekg/dns"

	"github.com/croftproject/croft/internal/hostnet"
)

func TestZone(t *testing.T) {
	n := describeNet("alpha", "10.7.0.0/24", 2, 0)
	n.Records = append(n.Records, hostnet.Record{Name: "s0", Addr: netip.MustParseAddr("fd00::5")})
	z := newZone(n)
	for _, c := range []struct {
		name string
		kind uint16
		want string // "forward" where the zone has no answer
	}{
		{"s0.alpha.test.internal.", dns.TypeA, "10.7.0.2"},
		{"S0.ALPHA.test.internal.", dns.TypeAAAA, "fd00::5"},
		{"s1.alpha.test.internal.", dns.TypeAAAA, ""},
		{"s0.", dns.TypeA, "10.7.0.2"},
		{"s7.", dns.TypeA, "NXDOMAIN"},
		{"a.s0.alpha.test.internal.", dns.TypeA, "NXDOMAIN"},
		{"alpha.test.internal.", dns.TypeA, ""},
		{"xalpha.test.internal.", dns.TypeA, "forward"},
		{"test.internal.", dns.TypeA, "forward"},
		{"www.example.org.", dns.TypeA, "forward"},
		{".", dns.TypeNS, "forward"},
		{"2.0.7.10.in-addr.arpa.", dns.TypePTR, "s0.alpha.test.internal."},
		{"9.0.7.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN"},
		{"1.2.0.192.in-addr.arpa.", dns.TypePTR, "forward"},
		{"5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, "s0.alpha.test.internal."},
		{"s0.alpha.test.internal.", dns.TypeAXFR, "REFUSED"},
	} {
		got := "forward"
		if r := z.answer(new(dns.Msg).SetQuestion(c.name, c.kind)); r != nil {
			got = answersOf(r)
		}
		if got != c.want {
			t.Errorf("%s %s: %q, want %q", c.name, dns.TypeToString[c.kind], got, c.want)
		}
	}
}

func TestLeases(t *testing.T) {
	n := describeNet("alpha", "10.7.0.0/24", 1, 0)
	l := newLeases(n)
	msg := func(kind dhcpv4.MessageType, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
		m, err := dhcpv4.New(append(mods, dhcpv4.WithMessageType(kind), dhcpv4.WithHwAddr(n.Ports[0].MAC))...)
		must(t, err)
		return m
	}
	asks := func(ip string) dhcpv4.Modifier {
		return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(ip)))
	}
	for _, c := range []struct {
		name string
		m    *dhcpv4.DHCPv4
		want dhcpv4.MessageType // none: silence
		addr string
	}{
		{"discover", msg(dhcpv4.MessageTypeDiscover), dhcpv4.MessageTypeOffer, "10.7.0.2"},
		{"request", msg(dhcpv4.MessageTypeRequest, asks("10.7.0.2")), dhcpv4.MessageTypeAck, "10.7.0.2"},
		{"renewal", msg(dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(net.IPv4(10, 7, 0, 2))), dhcpv4.MessageTypeAck, "10.7.0.2"},
		{"another address", msg(dhcpv4.MessageTypeRequest, asks("10.7.0.9")), dhcpv4.MessageTypeNak, "0.0.0.0"},
		{"no address", msg(dhcpv4.MessageTypeRequest), dhcpv4.MessageTypeNak, "0.0.0.0"},
		{"another server", msg(dhcpv4.MessageTypeRequest, asks("10.7.0.2"),
			dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 7, 0, 99)))), dhcpv4.MessageTypeNone, ""},
		{"inform", msg(dhcpv4.MessageTypeInform, dhcpv4.WithClientIP(net.IPv4(10, 7, 0, 2))), dhcpv4.MessageTypeAck, "0.0.0.0"},
		{"inform from elsewhere", msg(dhcpv4.MessageTypeInform, dhcpv4.WithClientIP(net.IPv4(192, 0, 2, 9))), dhcpv4.MessageTypeNone, ""},
		{"discover from elsewhere", msg(dhcpv4.MessageTypeDiscover, dhcpv4.WithClientIP(net.IPv4(192, 0, 2, 9))), dhcpv4.MessageTypeNone, ""},
		{"request from elsewhere", msg(dhcpv4.MessageTypeRequest, asks("10.7.0.2"), dhcpv4.WithClientIP(net.IPv4(192, 0, 2, 9))),
			dhcpv4.MessageTypeNak, "0.0.0.0"},
		{"release", msg(dhcpv4.MessageTypeRelease), dhcpv4.MessageTypeNone, ""},
		{"relayed", msg(dhcpv4.MessageTypeDiscover, dhcpv4.WithGatewayIP(net.IPv4(10, 7, 0, 5))), dhcpv4.MessageTypeNone, ""},
		{"stranger", msg(dhcpv4.MessageTypeDiscover, dhcpv4.WithHwAddr(net.HardwareAddr{2, 3, 4, 5, 6, 7})), dhcpv4.MessageTypeOffer, "x"},
	} {
		r := l.reply(c.m)
		switch {
		case c.name == "stranger": // WithHwAddr of msg comes last: make it one here
			c.m.ClientHWAddr = net.HardwareAddr{2, 3, 4, 5, 6, 7}
			if l.reply(c.m) != nil {
				t.Error("a stranger got an answer")
			}
		case r == nil && c.want != dhcpv4.MessageTypeNone:
			t.Errorf("%s: silence", c.name)
		case r != nil && c.want == dhcpv4.MessageTypeNone:
			t.Errorf("%s: %s", c.name, r.Summary())
		case r != nil && (r.MessageType() != c.want || r.YourIPAddr.String() != c.addr):
			t.Errorf("%s: %s", c.name, r.Summary())
		}
	}
}

func fuzzed() *services {
	n := describeNet("alpha", "10.7.0.0/24", 2, 0)
	s := &services{log: slog.New(slog.DiscardHandler)}
	s.data.Store(&answers{dhcp: newLeases(n), dns: newZone(n)})
	return s
}

func FuzzDNS(f *testing.F) {
	s := fuzzed()
	for _, name := range []string{"s0.", "s0.alpha.test.internal.", "2.0.7.10.in-addr.arpa.", "1.ip6.arpa."} {
		b, _ := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q, r := s.consider(b)
		if q == nil && r != nil {
			t.Error("an answer to no question")
		}
		if r == nil {
			return
		}
		r.Truncate(dns.MinMsgSize)
		if _, err := r.Pack(); err != nil {
			t.Errorf("an answer that can't be sent: %v", err)
		}
	})
}

func FuzzDHCP(f *testing.F) {
	s := fuzzed()
	m, err := dhcpv4.NewDiscovery(net.HardwareAddr{2, 0, 0, 'a', 0, 0})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m.ToBytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		if r := s.data.Load().dhcp.reply(m); r != nil {
			_ = r.ToBytes()
			if ip := r.YourIPAddr; !unset(ip) && !ip.Equal(net.IPv4(10, 7, 0, 2)) && !ip.Equal(net.IPv4(10, 7, 0, 3)) {
				t.Errorf("gave %s", ip)
			}
		}
	})
}
