package linux

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"github.com/croftproject/croft/internal/hostnet"
)

// traced records the steps of a Host.
func traced(h *Host) *[]string {
	var steps []string
	h.trace = func(s step) { steps = append(steps, describe(s)) }
	return &steps
}

func right(t *testing.T, h *Host, n hostnet.Network) {
	t.Helper()
	diff, err := h.Check(context.Background(), n)
	must(t, err)
	for _, d := range diff {
		t.Errorf("not as it should be: %s", d)
	}
}

func TestSetLeavesAloneWhatIsRight(t *testing.T) {
	w := newWorld(t)
	h := w.daemon()
	n := describeNet("alpha", "10.7.0.0/24", 2, 1)
	set(t, h, n)
	steps := traced(h)
	for range 3 {
		set(t, h, n)
	}
	if len(*steps) > 0 {
		t.Errorf("a Set of what is there did %q", *steps)
	}
	right(t, h, n)

	n2 := clone(n)
	n2.Ports[1].Addrs = []netip.Prefix{netip.MustParsePrefix("10.7.0.77/24")}
	set(t, h, n2)
	want := []string{"setKeys in network: bridge croft", "delAddr {In:server alpha.s1 Dev:eth0 Addr:10.7.0.3/24}", "addAddr {In:server alpha.s1 Dev:eth0 Addr:10.7.0.77/24}",
		"setRoute {In:server alpha.s1 Dev:eth0 Via:10.7.0.1 Metric:100}"}
	if !slices.Equal(*steps, want) {
		t.Errorf("a changed address did %q", *steps)
	}
	right(t, h, n2)
	n2.MTU, n2.Domain, n2.NAT = 1300, "elsewhere", false
	set(t, h, n2)
	right(t, h, n2)
	g := w.guest(h, n2, 0)
	if l, _ := linkByName(g, "eth0"); l.MTU != 1300 {
		t.Errorf("MTU is %d", l.MTU)
	}
	if got := answersOf(ask(t, g, "udp", "10.7.0.1", "s0.elsewhere", dns.TypeA)); got != "10.7.0.2" {
		t.Errorf("s0.elsewhere is %q", got)
	}
	if l, _ := linkByName(h.host, legDevice(h.o.Prefix, n2.ID)); l.Kind != "" {
		t.Error("a network without translation has a way out")
	}
	n2.NAT = true
	n2.Subnets[0].Gateway = netip.MustParseAddr("10.7.0.254")
	set(t, h, n2)
	right(t, h, n2)
	if got := answersOf(ask(t, g, "udp", "10.7.0.254", "s0", dns.TypeA)); got != "10.7.0.2" {
		t.Errorf("s0 by the new gateway is %q", got)
	}
}

func TestSetMends(t *testing.T) {
	type broken struct {
		h   *Host
		n   hostnet.Network
		net *site
		srv *site
	}
	del := func(s func(b broken) *site, dev func(b broken) string) func(*testing.T, broken) {
		return func(t *testing.T, b broken) { must(t, removeLink(s(b), dev(b))) }
	}
	inNet := func(b broken) *site { return b.net }
	inSrv := func(b broken) *site { return b.srv }
	onHost := func(b broken) *site { return b.h.host }
	name := func(s string) func(broken) string { return func(broken) string { return s } }
	port := func(i int) func(broken) string { return func(b broken) string { return portDevice(b.n.Ports[i].ID) } }
	leg := func(b broken) string { return legDevice(b.h.o.Prefix, b.n.ID) }
	down := func(s *site, dev string) error {
		l, err := s.LinkByName(dev)
		if err != nil {
			return err
		}
		return s.LinkSetDown(l)
	}
	dropAddr := func(s *site, dev string) error {
		l, err := s.LinkByName(dev)
		if err != nil {
			return err
		}
		all, err := s.AddrList(l, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		return s.AddrDel(l, &all[0])
	}
	dropTable := func(s *site, t table) error {
		c, err := nftables.New(nftables.WithNetNSFd(int(s.fd)))
		if err != nil {
			return err
		}
		return t.remove(c)
	}
	for what, harm := range map[string]func(*testing.T, broken){
		"bridge":         del(inNet, name(bridgeDevice)),
		"port":           del(inNet, port(0)),
		"guest's end":    del(inSrv, name("eth0")),
		"tap":            del(inNet, port(2)),
		"leg":            del(onHost, leg),
		"port down":      func(t *testing.T, b broken) { must(t, down(b.net, port(0)(b))) },
		"guest down":     func(t *testing.T, b broken) { must(t, down(b.srv, "eth0")) },
		"bridge down":    func(t *testing.T, b broken) { must(t, down(b.net, bridgeDevice)) },
		"leg down":       func(t *testing.T, b broken) { must(t, down(b.h.host, leg(b))) },
		"gateway":        func(t *testing.T, b broken) { must(t, dropAddr(b.net, bridgeDevice)) },
		"guest address":  func(t *testing.T, b broken) { must(t, dropAddr(b.srv, "eth0")) },
		"leg address":    func(t *testing.T, b broken) { must(t, dropAddr(b.h.host, leg(b))) },
		"uplink address": func(t *testing.T, b broken) { must(t, dropAddr(b.net, uplinkDevice)) },
		"host table":     func(t *testing.T, b broken) { must(t, dropTable(b.h.host, table{Name: hostTable(b.h.o.Prefix)})) },
		"network table":  func(t *testing.T, b broken) { must(t, dropTable(b.net, table{Name: networkTable})) },
		"guard":          func(t *testing.T, b broken) { must(t, dropTable(b.net, guard(nil))) },
		"guard's key": func(t *testing.T, b broken) {
			c, err := b.net.rules()
			must(t, err)
			s := guard(b.n.Ports[:1]).Sets[1]
			must(t, s.each(s.in(&nftables.Table{Name: networkTable, Family: nftables.TableFamilyBridge}), c.SetDeleteElements))
			must(t, c.Flush())
		},
		"out of the bridge": func(t *testing.T, b broken) {
			l, err := b.net.LinkByName(port(0)(b))
			must(t, err)
			must(t, b.net.LinkSetNoMaster(l))
		},
		"server's namespace":  func(t *testing.T, b broken) { must(t, dropNetNS(b.h.serverPath(b.n.Ports[0].Server))) },
		"network's namespace": func(t *testing.T, b broken) { must(t, dropNetNS(b.h.networkPath(b.n.ID))) },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			listenTCP(t, w.outside, ":80", "outside")
			h := w.daemon()
			n := describeNet("alpha", "10.7.0.0/24", 2, 1)
			set(t, h, n)
			set(t, h, n) // what the first Set itself caused is looked at here
			b := broken{h: h, n: n, net: h.networks["alpha"].site, srv: w.guest(h, n, 0)}
			harm(t, b)
			set(t, h, n)
			right(t, h, n)
			g := w.guest(h, n, 0)
			if got := answersOf(ask(t, g, "udp", "10.7.0.1", "s1", dns.TypeA)); got != "10.7.0.3" {
				t.Errorf("s1 is %q", got)
			}
			if got, err := fetch(g, outsideAddr+":80", 5*time.Second); err != nil {
				t.Errorf("the outside: %q, %v", got, err)
			}
		})
	}
}

var errCrash = errors.New("crash")

// crashAt makes a Host fail before its i-th step.
func crashAt(i int) func(int, step) error {
	return func(at int, _ step) error {
		if at == i {
			return errCrash
		}
		return nil
	}
}

func TestCrashAtEachStep(t *testing.T) {
	w := newWorld(t)
	n := describeNet("alpha", "10.7.0.0/24", 2, 1)
	smaller := clone(n)
	smaller.Ports = smaller.Ports[1:]
	crashes := 0
	// Each round starts a daemon that dies at a step, and one that comes after and is asked for something else, or the same.
	for _, later := range []struct {
		name string
		then *hostnet.Network
	}{{"the same", &n}, {"a port fewer", &smaller}, {"removed", nil}} {
		for i := 0; ; i++ {
			h := w.daemon()
			h.fault = crashAt(i)
			err := h.Set(context.Background(), n)
			must(t, h.Close())
			if err != nil && !errors.Is(err, errCrash) {
				t.Fatalf("step %d: %v", i, err)
			}
			if err == nil && i == 0 {
				t.Fatal("there was no step")
			}
			h = w.daemon()
			if later.then != nil {
				set(t, h, *later.then)
				right(t, h, *later.then)
			}
			must(t, h.Remove(context.Background(), n.ID))
			must(t, h.Close())
			w.clean()
			if t.Failed() {
				t.Fatalf("after a crash at step %d, then %s", i, later.name)
			}
			if err == nil {
				break
			}
			crashes++
		}
	}
	t.Logf("%d crashes", crashes)
}

func TestRestartFindsWhatIsThere(t *testing.T) {
	w := newWorld(t)
	h := w.daemon()
	n := describeNet("alpha", "10.7.0.0/24", 2, 1)
	set(t, h, n)
	g := w.guest(h, n, 0)
	must(t, h.Close())
	h = w.daemon()
	ids, err := h.List(context.Background())
	if err != nil || !slices.Equal(ids, []string{"alpha"}) {
		t.Fatalf("found %q, %v", ids, err)
	}
	steps := traced(h)
	set(t, h, n)
	if len(*steps) > 0 {
		t.Errorf("the first Set after a restart did %q", *steps)
	}
	if got := answersOf(ask(t, g, "udp", "10.7.0.1", "s1", dns.TypeA)); got != "10.7.0.3" {
		t.Errorf("s1 is %q", got)
	}
	if _, err := New(w.o); err == nil {
		t.Error("a second daemon took the same run directory")
	}
}

func TestServerInTwoNetworks(t *testing.T) {
	w := newWorld(t)
	h := w.daemon()
	a, b := describeNet("alpha", "10.7.0.0/24", 1, 0), describeNet("beta", "10.8.0.0/24", 1, 0)
	b.Ports[0].Server, b.Ports[0].Guest = a.Ports[0].Server, "eth1"
	set(t, h, a)
	set(t, h, b)
	right(t, h, a)
	right(t, h, b)
	must(t, h.Remove(context.Background(), a.ID))
	right(t, h, b)
	set(t, h, b)
	right(t, h, b)
	b.Ports = nil
	set(t, h, b)
	if ok, _ := bound(h.serverPath(a.Ports[0].Server)); ok {
		t.Error("the server's namespace outlived its last port")
	}
}

func TestNeighboursAreLeftAlone(t *testing.T) {
	w := newWorld(t)
	c, err := nftables.New(nftables.WithNetNSFd(int(w.host.fd)))
	must(t, err)
	foreign := rulesOfHost("zz", "up0", netip.MustParsePrefix("192.0.2.0/24"), false)
	must(t, foreign.replace(c))
	w2 := *w
	w2.o.RunDir, w2.o.Prefix = w.dir+"/run2", "u"+w.o.Prefix[1:]
	h, h2 := w.daemon(), w2.daemon()
	n := describeNet("alpha", "10.7.0.0/24", 1, 0)
	set(t, h, n)
	set(t, h2, n)
	listenTCP(t, w.outside, ":80", "outside")
	must(t, h.Remove(context.Background(), n.ID))
	right(t, h2, n)
	set(t, h2, n)
	if got, err := fetch(w.guest(h2, n, 0), outsideAddr+":80", 5*time.Second); err != nil {
		t.Errorf("the outside, once the neighbour left: %q, %v", got, err)
	}
	got, err := ruleList(w.host, nftables.TableFamilyINet, foreign.Name)
	if err != nil || !slices.Equal(got, foreign.list()) {
		t.Errorf("the foreign table is %q, %v", got, err)
	}
	must(t, foreign.remove(c))
	must(t, h2.Remove(context.Background(), n.ID))
	must(t, w.host.sysctl([2]string{"ipv4/conf/up0/forwarding", "0"}))
}

func TestNoUplink(t *testing.T) {
	w := newWorld(t)
	must(t, removeLink(w.host, "up0"))
	must(t, removeLink(w.outside, "eth0"))
	w.o.ResolvConf = "/nonexistent"
	h := w.daemon()
	n := describeNet("alpha", "10.7.0.0/24", 2, 0)
	set(t, h, n)
	right(t, h, n)
	g := w.guest(h, n, 0)
	for name, want := range map[string]string{"s1": "10.7.0.3", "www.example.org": "REFUSED"} {
		if got := answersOf(ask(t, g, "udp", "10.7.0.1", name, dns.TypeA)); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	// clean looks at the uplink's forwarding
	at := netlink.NewLinkAttrs()
	at.Name = "up0"
	must(t, w.host.LinkAdd(&netlink.Bridge{LinkAttrs: at}))
}

func TestUplinkChanges(t *testing.T) {
	w := newWorld(t)
	other := w.namespace("other")
	at := netlink.NewLinkAttrs()
	at.Name, at.MTU = "up1", 1300
	must(t, w.host.LinkAdd(&netlink.Veth{LinkAttrs: at, PeerName: "eth0", PeerNamespace: netlink.NsFd(other.fd)}))
	must(t, addAddress(w.host, "up1", netip.MustParsePrefix("192.0.2.2/24")))
	must(t, addAddress(other, "eth0", netip.MustParsePrefix("192.0.2.1/24")))
	up(t, w.host, "up1")
	up(t, other, "eth0")
	listenTCP(t, w.outside, ":80", "outside")
	listenTCP(t, other, ":80", "other")
	h := w.daemon()
	n := describeNet("alpha", "10.7.0.0/24", 1, 0)
	set(t, h, n)
	g := w.guest(h, n, 0)
	const short = 300 * time.Millisecond
	for _, test := range []struct {
		uplink       string
		changed, bad bool
		reached, cut string
		want         string
		forwards     string
		not          string
	}{
		{"", false, false, outsideAddr, "192.0.2.1", "outside " + hostAddr, "up0", "up1"},
		{"nosuch", false, true, outsideAddr, "192.0.2.1", "outside " + hostAddr, "up0", "up1"},
		{"up1", true, false, "192.0.2.1", outsideAddr, "other 192.0.2.2", "up1", "up0"},
		{"up1", false, false, "192.0.2.1", outsideAddr, "other 192.0.2.2", "up1", "up0"},
		{"", true, false, outsideAddr, "192.0.2.1", "outside " + hostAddr, "up0", "up1"},
	} {
		changed, err := h.SetUplink(test.uplink)
		if changed != test.changed || errors.Is(err, ErrNoDevice) != test.bad {
			t.Errorf("uplink %q: changed %v, %v", test.uplink, changed, err)
		}
		set(t, h, n)
		right(t, h, n)
		if got, err := fetch(g, test.reached+":80", 5*time.Second); err != nil || got != test.want {
			t.Errorf("uplink %q: %q, %v, want %q", test.uplink, got, err, test.want)
		}
		if got, err := fetch(g, test.cut+":80", short); err == nil {
			t.Errorf("uplink %q: reached %s: %q", test.uplink, test.cut, got)
		}
		if on, err := h.host.sysctls(forwarding(test.forwards)); !on || err != nil {
			t.Errorf("uplink %q: %s does not forward (%v)", test.uplink, test.forwards, err)
		}
		if on, err := h.host.sysctls(forwarding(test.not)); on || err != nil {
			t.Errorf("uplink %q: %s forwards (%v)", test.uplink, test.not, err)
		}
	}
}

func TestConcurrentSets(t *testing.T) {
	w := newWorld(t)
	h := w.daemon()
	var wg sync.WaitGroup
	for i := range 4 {
		for range 3 {
			wg.Go(func() {
				n := describeNet(fmt.Sprintf("%c", 'a'+i), "10.7.0.0/24", 3, 1)
				if err := h.Set(context.Background(), n); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	for i := range 4 {
		right(t, h, describeNet(fmt.Sprintf("%c", 'a'+i), "10.7.0.0/24", 3, 1))
	}
	for i := range 4 {
		wg.Go(func() {
			if err := h.Remove(context.Background(), fmt.Sprintf("%c", 'a'+i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w.clean()
	if len(h.networks) > 0 {
		t.Errorf("%d networks are remembered", len(h.networks))
	}
}

func TestPortsAreDroppedTogether(t *testing.T) {
	w := newWorld(t)
	h := w.daemon()
	n := describeNet("alpha", "10.7.0.0/24", 4, 3)
	set(t, h, n)
	left := clone(n)
	left.Ports = []hostnet.Port{n.Ports[1], n.Ports[5]}
	steps := traced(h)
	set(t, h, left)
	right(t, h, left)
	if len(*steps) != 2 { // and the guard
		t.Errorf("dropping five ports did %q", *steps)
	}
	for i, p := range n.Ports[:4] {
		if ok, _ := bound(h.serverPath(p.Server)); ok != (i == 1) {
			t.Errorf("namespace of server %d is there: %v", i, ok)
		}
	}
}

// TestManyPorts reports what the first and the last of 200 ports cost.
func TestManyPorts(t *testing.T) {
	w := newWorld(t)
	h := w.daemon()
	n := describeNet("alpha", "10.7.0.0/16", 200, 0)
	var took []time.Duration
	for i := range len(n.Ports) {
		part := n
		part.Ports = n.Ports[:i+1]
		begin := time.Now()
		set(t, h, part)
		took = append(took, time.Since(begin))
	}
	median := func(d []time.Duration) time.Duration { d = slices.Clone(d); slices.Sort(d); return d[len(d)/2] }
	t.Logf("network and first port %v, ports 2 to 11 %v, ports 191 to 200 %v (medians)", took[0], median(took[1:11]), median(took[190:]))
	begin := time.Now()
	set(t, h, n)
	t.Logf("Set without a change %v", time.Since(begin))
	must(t, h.Close())
	h = w.daemon()
	begin = time.Now()
	set(t, h, n)
	t.Logf("first Set after a restart %v", time.Since(begin))
	one := n
	one.Ports = n.Ports[:199]
	begin = time.Now()
	set(t, h, one)
	t.Logf("a port removed %v", time.Since(begin))
	begin = time.Now()
	must(t, h.Remove(context.Background(), n.ID))
	t.Logf("network with 199 ports removed %v", time.Since(begin))
}

func TestDescribe(t *testing.T) {
	for _, c := range []struct {
		s    step
		want string
	}{
		{delLink{inHost, "x"}, "delLink {In:host Dev:x}"},
		{setTable{inNetwork, rulesOfNetwork()}, "setTable in network: croft"},
	} {
		if got := describe(c.s); !strings.HasPrefix(got, c.want) {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
