package linux

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/croftproject/croft/internal/hostnet"
)

// made is what there is of a network once a plan was carried out, as far as plans care.
func made(n hostnet.Network) observed {
	up := func(l link) link { l.Up = true; return l }
	near := netip.MustParsePrefix("100.64.0.4/31")
	o := observed{Namespace: true, Loopback: true, Forwarding: true, Rules: rulesOfNetwork().list(), Guard: guard(n.Ports).list(),
		Bridge:     up(link{Kind: "bridge", Index: 2, MTU: n.MTU, MAC: bridgeMAC(n.ID)}),
		Uplink:     up(link{Kind: "veth", Index: 3, Peer: 9, MTU: 1400}),
		UplinkNets: []netip.Prefix{netip.MustParsePrefix("100.64.0.5/31")}, Default: near.Addr(),
		Ports: map[string]portState{}}
	transit := netip.MustParsePrefix("100.64.0.0/10")
	o.Host = hostState{Prefix: "t", Transit: transit, Uplink: "up0", UplinkMTU: 1400, Forwarding: true, Closed: true,
		Rules: rulesOfHost("t", "up0", transit, true).list(), LegForward: true, LegNets: []netip.Prefix{near},
		Leg: up(link{Kind: "veth", Index: 9, Peer: 3, MTU: 1400})}
	for _, s := range n.Subnets {
		o.BridgeNets = append(o.BridgeNets, netip.PrefixFrom(s.Gateway, s.Prefix.Bits()))
	}
	for i, p := range n.Ports {
		s := portState{Link: up(link{Kind: "tuntap", Index: 20 + i, Master: 2, MTU: n.MTU})}
		if p.Kind == hostnet.Namespace {
			s.Link.Kind, s.Link.Peer = "veth", 2
			s.Marked, s.Server = true, p.Server
			s.Guest = guestState{Namespace: true, Loopback: true, Addrs: p.Addrs, Routers: []netip.Addr{n.Subnets[0].Gateway},
				Link: up(link{Kind: "veth", Index: 2, Peer: 20 + i, MTU: n.MTU, MAC: p.MAC.String()})}
		}
		o.Ports[portDevice(p.ID)] = s
	}
	return o
}

func TestPlan(t *testing.T) {
	n := describeNet("alpha", "10.7.0.0/24", 1, 1)
	veth, tap := portDevice(n.Ports[0].ID), portDevice(n.Ports[1].ID)
	leg := legDevice("t", n.ID)
	for _, c := range []struct {
		name   string
		change func(o *observed, n *hostnet.Network)
		want   []string
	}{
		{"nothing differs", func(*observed, *hostnet.Network) {}, nil},
		{"nothing is there", func(o *observed, _ *hostnet.Network) {
			*o = observed{Host: hostState{Prefix: "t", Transit: o.Host.Transit, Uplink: "up0", UplinkMTU: 1400}}
		}, []string{
			"makeNamespace {In:network}", "setLink {In:network Dev:lo MTU:0 MAC: Up:true}", "setForwarding {In:network Dev:}",
			"makeBridge {MAC:" + bridgeMAC("alpha") + " MTU:1500}", "setLink {In:network Dev:br0 MTU:0 MAC: Up:true}",
			"addAddr {In:network Dev:br0 Addr:10.7.0.1/24}", "makeLeg {Dev:" + leg + " MTU:1400}",
			"setTable in network: croft", "setTable in host: croft-t", "setForwarding {In:host Dev:up0}", "setTable in network: bridge croft",
			"markPort {Dev:" + veth + " Server:alpha.s0}",
			"makeVeth {Dev:" + veth + " Server:alpha.s0 Guest:eth0 MAC:02:00:00:61:00:00 MTU:1500}",
			"setLink {In:server alpha.s0 Dev:lo MTU:0 MAC: Up:true}", "setLink {In:server alpha.s0 Dev:eth0 MTU:0 MAC: Up:true}",
			"addAddr {In:server alpha.s0 Dev:eth0 Addr:10.7.0.2/24}", "setRoute {In:server alpha.s0 Dev:eth0 Via:10.7.0.1 Metric:100}",
			"enslave {Dev:" + veth + "}",
			"makeTap {Dev:" + tap + "}", "setLink {In:network Dev:" + tap + " MTU:1500 MAC: Up:true}", "enslave {Dev:" + tap + "}",
		}},
		{"no uplink", func(o *observed, _ *hostnet.Network) { o.Host.Uplink = "" }, []string{"delLink {In:host Dev:" + leg + "}"}},
		{"a host that others made a router", func(o *observed, _ *hostnet.Network) { o.Host.Closed = false }, []string{"setTable in host: croft-t"}},
		{"another uplink", func(o *observed, _ *hostnet.Network) { o.Host.Uplink, o.Host.Forwarding = "up1", false },
			[]string{"setTable in host: croft-t", "setForwarding {In:host Dev:up1}"}},
		{"leg of another network namespace", func(o *observed, _ *hostnet.Network) { o.Uplink = link{} },
			[]string{"delLink {In:host Dev:" + leg + "}", "makeLeg {Dev:" + leg + " MTU:1400}"}},
		{"kind changed", func(_ *observed, n *hostnet.Network) { n.Ports[0].Kind = hostnet.Tap }, []string{
			"dropPorts {Ports:[{Dev:" + veth + " Server:alpha.s0}]}", "makeTap {Dev:" + veth + "}",
			"setLink {In:network Dev:" + veth + " MTU:1500 MAC: Up:true}", "enslave {Dev:" + veth + "}"}},
		{"port gone", func(_ *observed, n *hostnet.Network) { n.Ports = n.Ports[1:] },
			[]string{"setKeys in network: bridge croft", "dropPorts {Ports:[{Dev:" + veth + " Server:alpha.s0}]}"}},
		{"MAC changed", func(_ *observed, n *hostnet.Network) { n.Ports[0].MAC[5] = 9 },
			[]string{"setKeys in network: bridge croft", "setLink {In:server alpha.s0 Dev:eth0 MTU:0 MAC:02:00:00:61:00:09 Up:false}"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, n := made(n), clone(n)
			c.change(&o, &n)
			var got []string
			for _, s := range plan(n, n.Ports, o) {
				got = append(got, describe(s))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got\n%q\nwant\n%q", got, c.want)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	good := describeNet("alpha", "10.7.0.0/24", 1, 1)
	must(t, validate(good))
	for name, spoil := range map[string]func(n *hostnet.Network){
		"path as id":        func(n *hostnet.Network) { n.ID = "../x" },
		"host bits":         func(n *hostnet.Network) { n.Subnets[0].Prefix = netip.MustParsePrefix("10.7.0.9/24") },
		"gateway outside":   func(n *hostnet.Network) { n.Subnets[0].Gateway = netip.MustParseAddr("10.8.0.1") },
		"MTU":               func(n *hostnet.Network) { n.MTU = 10 },
		"MAC twice":         func(n *hostnet.Network) { n.Ports[1].MAC = n.Ports[0].MAC },
		"multicast MAC":     func(n *hostnet.Network) { n.Ports[0].MAC[0] = 1 },
		"port twice":        func(n *hostnet.Network) { n.Ports[1].ID = n.Ports[0].ID },
		"path as server":    func(n *hostnet.Network) { n.Ports[0].Server = "a/b" },
		"long device":       func(n *hostnet.Network) { n.Ports[0].Guest = "a123456789012345" },
		"gateway's address": func(n *hostnet.Network) { n.Ports[0].Addrs = []netip.Prefix{netip.MustParsePrefix("10.7.0.1/24")} },
		"dotted record":     func(n *hostnet.Network) { n.Records[0].Name = "a.b" },
		"bad name":          func(n *hostnet.Network) { n.Ports[0].Name = "a b" },
	} {
		n := clone(good)
		spoil(&n)
		if validate(n) == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestFreeTransit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		transit := netip.PrefixFrom(netip.MustParseAddr("100.64.0.0"), rapid.IntRange(24, 31).Draw(t, "bits"))
		var taken []netip.Prefix
		pairs := 1 << (31 - transit.Bits())
		for i := range pairs + 1 { // every pair, and then there is none
			p, ok := freeTransit(transit, rapid.Uint32().Draw(t, "seed"), taken)
			if ok != (i < pairs) {
				t.Fatalf("pair %d of %d: %v", i, pairs, ok)
			}
			if !ok {
				break
			}
			if !transit.Contains(p.Addr()) || p != p.Masked() || slices.ContainsFunc(taken, p.Overlaps) {
				t.Fatalf("%s is not free in %s", p, transit)
			}
			taken = append(taken, p)
		}
	})
	if _, ok := freeTransit(netip.MustParsePrefix("100.64.0.0/16"), 7, []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}); ok {
		t.Error("found a pair in a range that the host has a route to")
	}
}
