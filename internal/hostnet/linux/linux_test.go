package linux

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/hostnet"
)

var _ hostnet.Host = (*Host)(nil)

func TestServersReachEachOtherByName(t *testing.T) {
	w := newWorld(t)
	h := w.daemon()
	n := describeNet("alpha", "10.7.0.0/24", 2, 1)
	set(t, h, n)
	a, b := w.guest(h, n, 0), w.guest(h, n, 1)
	listenTCP(t, b, ":80", "hello")
	for _, name := range []string{"s1.alpha.test.internal", "s1", "S1.Alpha.Test.Internal"} {
		r := ask(t, a, "udp", "10.7.0.1", name, dns.TypeA)
		if got := answersOf(r); got != "10.7.0.3" || !r.Authoritative {
			t.Errorf("%s is %q (authoritative: %v)", name, got, r.Authoritative)
		}
	}
	got, err := fetch(a, "10.7.0.3:80", 5*time.Second)
	if err != nil || got != "hello 10.7.0.2" {
		t.Errorf("fetch: %q, %v", got, err)
	}
	for name, want := range map[string]string{"s9.alpha.test.internal": "NXDOMAIN", "nosuch": "NXDOMAIN", "3.0.7.10.in-addr.arpa": "s1.alpha.test.internal."} {
		kind := dns.TypeA
		if strings.HasSuffix(name, "arpa") {
			kind = dns.TypePTR
		}
		if got := answersOf(ask(t, a, "tcp", "10.7.0.1", name, kind)); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	c, err := h.Counters(context.Background(), n.ID, n.Ports[0].ID)
	must(t, err)
	if c.RxPackets == 0 || c.TxPackets == 0 || c.TxBytes == 0 {
		t.Errorf("counters: %+v", c)
	}
}

func TestWayOut(t *testing.T) {
	w := newWorld(t)
	listenTCP(t, w.outside, ":80", "outside")
	listenTCP(t, w.host, ":80", "host")
	forwarded := make(chan string, 16)
	resolver(t, w.outside, func(q *dns.Msg) *dns.Msg {
		forwarded <- q.Question[0].Name
		r := new(dns.Msg).SetReply(q)
		rr, _ := dns.NewRR(q.Question[0].Name + " 60 IN A 192.0.2.80")
		r.Answer = []dns.RR{rr}
		return r
	})
	h := w.daemon()
	one, two := describeNet("alpha", "10.7.0.0/24", 1, 0), describeNet("beta", "10.7.0.0/24", 1, 0)
	set(t, h, one)
	set(t, h, two)
	for _, n := range []hostnet.Network{one, two} {
		g := w.guest(h, n, 0)
		listenTCP(t, g, ":80", n.ID)
		got, err := fetch(g, outsideAddr+":80", 5*time.Second)
		if err != nil || got != "outside "+hostAddr {
			t.Errorf("%s to the outside: %q, %v", n.ID, got, err)
		}
		if got := answersOf(ask(t, g, "udp", "10.7.0.1", "www.example.org", dns.TypeA)); got != "192.0.2.80" {
			t.Errorf("forwarded name: %q", got)
		}
		if name := <-forwarded; name != "www.example.org." {
			t.Errorf("forwarded %s", name)
		}
		answersOf(ask(t, g, "udp", "10.7.0.1", "x.y."+n.Domain, dns.TypeA))
	}
	if len(forwarded) > 0 {
		t.Errorf("forwarded a name of its own: %s", <-forwarded)
	}
	t.Run("no way out", func(t *testing.T) {
		n := describeNet("gamma", "10.7.0.0/24", 1, 0)
		n.NAT = false
		set(t, h, n)
		g := w.guest(h, n, 0)
		if r := ask(t, g, "udp", "10.7.0.1", "data.example.org", dns.TypeA); r.Rcode != dns.RcodeRefused || len(forwarded) > 0 {
			t.Errorf("a question left the network: %v", r)
		}
		n.Forwarders = []netip.Addr{netip.MustParseAddr(outsideAddr)}
		set(t, h, n)
		if got := answersOf(ask(t, g, "udp", "10.7.0.1", "www.example.org", dns.TypeA)); got != "192.0.2.80" {
			t.Errorf("a resolver of its own answers %q", got)
		}
	})
	t.Run("isolation", func(t *testing.T) {
		const short = 300 * time.Millisecond
		g := w.guest(h, one, 0)
		other, err := openSite(h.networkPath("beta"))
		must(t, err)
		t.Cleanup(other.close)
		o, _ := addressesOf(other)
		l, _ := linkByName(other, uplinkDevice)
		listenTCP(t, other, ":81", "the other router")
		leg := o[l.Index][0]
		must(t, setDefault(w.outside, "eth0", netip.MustParseAddr(hostAddr), 0))
		for _, c := range []struct {
			from *site
			to   string
		}{
			{g, hostAddr + ":80"},                     // the host
			{g, leg.Masked().Addr().String() + ":80"}, // the host, by its end of the other's leg
			{g, leg.Addr().String() + ":81"},          // the other network
			{w.outside, leg.Addr().String() + ":81"},  // a leg from outside
			{w.outside, "10.7.0.2:80"},                // a server from outside
		} {
			if got, err := fetch(c.from, c.to, short); err == nil {
				t.Errorf("reached %s: %s", c.to, got)
			}
		}
	})
}

// resolver answers DNS questions in a namespace.
func resolver(t *testing.T, s *site, f func(*dns.Msg) *dns.Msg) {
	t.Helper()
	var c net.PacketConn
	must(t, s.run(func() (err error) { c, err = net.ListenPacket("udp", ":53"); return err }))
	srv := &dns.Server{PacketConn: c, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		if r := f(q); r != nil {
			_ = w.WriteMsg(r)
		}
	})}
	done := make(chan error, 1)
	ready := make(chan struct{})
	srv.NotifyStartedFunc = func() { close(ready) }
	go func() { done <- srv.ActivateAndServe() }()
	<-ready
	t.Cleanup(func() { _ = srv.Shutdown(); <-done })
}

func TestDHCP(t *testing.T) {
	w := newWorld(t)
	h := w.daemon()
	n := describeNet("alpha", "10.7.0.0/24", 1, 0)
	set(t, h, n)
	g := w.guest(h, n, 0)
	lease := func(mac net.HardwareAddr, mods ...dhcpv4.Modifier) (*nclient4.Lease, error) {
		var c *nclient4.Client
		must(t, g.run(func() (err error) {
			c, err = nclient4.New("eth0", nclient4.WithHWAddr(mac), nclient4.WithTimeout(time.Second), nclient4.WithRetry(2))
			return err
		}))
		defer func() { _ = c.Close() }()
		return c.Request(context.Background(), mods...)
	}
	for _, mods := range [][]dhcpv4.Modifier{nil, {dhcpv4.WithBroadcast(true)}} {
		l, err := lease(n.Ports[0].MAC, mods...)
		must(t, err)
		a := l.ACK
		if a.YourIPAddr.String() != "10.7.0.2" || a.Router()[0].String() != "10.7.0.1" || a.DNS()[0].String() != "10.7.0.1" ||
			a.DomainName() != n.Domain || a.HostName() != "s0" || a.IPAddressLeaseTime(0) != time.Hour ||
			a.SubnetMask().String() != "ffffff00" || string(a.Options.Get(dhcpv4.OptionInterfaceMTU)) != "\x05\xdc" {
			t.Errorf("ACK: %s", a.Summary())
		}
	}
	if l, err := lease(net.HardwareAddr{2, 9, 9, 9, 9, 9}); err == nil {
		t.Errorf("a stranger was given %s", l.ACK.YourIPAddr)
	}
}

func TestTapOpensWithAndWithoutVnetHeader(t *testing.T) {
	w := newWorld(t)
	h := w.daemon()
	n := describeNet("alpha", "10.7.0.0/24", 0, 1)
	set(t, h, n)
	at := h.Attachment(n.ID, n.Ports[0])
	s := w.guest(h, n, 0)
	for _, flags := range []uint16{unix.IFF_VNET_HDR, 0, unix.IFF_VNET_HDR} {
		fd, err := openTap(s, at.Device, flags)
		must(t, err)
		must(t, unix.Close(fd))
	}
	l, err := linkByName(s, at.Device)
	must(t, err)
	br, err := linkByName(s, bridgeDevice)
	must(t, err)
	if l.Kind != "tuntap" || !l.Up || l.Master != br.Index || l.MTU != 1500 {
		t.Errorf("tap is %+v", l)
	}
}

func TestIPv6Subnet(t *testing.T) {
	w := newWorld(t)
	h := w.daemon()
	n := describeNet("alpha", "10.7.0.0/24", 2, 0)
	p := netip.MustParsePrefix("fd07::/64")
	n.Subnets = append(n.Subnets, hostnet.Subnet{Prefix: p, Gateway: netip.MustParseAddr("fd07::1")})
	for i, a := range []string{"fd07::2", "fd07::3"} {
		n.Ports[i].Addrs = append(n.Ports[i].Addrs, netip.PrefixFrom(netip.MustParseAddr(a), 64))
		n.Records = append(n.Records, hostnet.Record{Name: n.Ports[i].Name, Addr: netip.MustParseAddr(a)})
	}
	set(t, h, n)
	if diff, err := h.Check(context.Background(), n); err != nil || len(diff) > 0 {
		t.Errorf("differs: %q, %v", diff, err)
	}
	a, b := w.guest(h, n, 0), w.guest(h, n, 1)
	listenTCP(t, b, ":80", "hello")
	if got, err := fetch(a, "[fd07::3]:80", 5*time.Second); err != nil || got != "hello fd07::2" {
		t.Errorf("fetch: %q, %v", got, err)
	}
	if got := answersOf(ask(t, a, "udp", "fd07::1", "s1", dns.TypeAAAA)); got != "fd07::3" {
		t.Errorf("s1 is %q", got)
	}
}

func TestRemoveDoesNotWaitForResolvers(t *testing.T) {
	w := newWorld(t)
	asked := make(chan struct{}, 1)
	resolver(t, w.outside, func(*dns.Msg) *dns.Msg { // never answers
		select {
		case asked <- struct{}{}:
		default:
		}
		return nil
	})
	h := w.daemon()
	n := describeNet("alpha", "10.7.0.0/24", 1, 0)
	set(t, h, n)
	g := w.guest(h, n, 0)
	var c net.Conn
	must(t, g.run(func() (err error) { c, err = net.Dial("udp", "10.7.0.1:53"); return err }))
	defer func() { _ = c.Close() }()
	must(t, (&dns.Conn{Conn: c}).WriteMsg(new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA)))
	<-asked
	begin := time.Now()
	must(t, h.Remove(context.Background(), n.ID))
	if took := time.Since(begin); took > forwardTimeout/2 {
		t.Errorf("took %v", took)
	}
}
