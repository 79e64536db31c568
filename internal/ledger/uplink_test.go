package ledger

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/croftproject/croft/api"
)

const mbit api.BitRate = 1e6

var linesOfAcme = Lines{Uplink: "the uplink of h1", Tenant: "tenant acme", Network: func(id string) string { return "network " + id }}

func TestUplinkShortages(t *testing.T) {
	port := func(network string, rate api.BitRate) Commitment {
		return Commitment{Network: network, OfThisPort: rate * mbit}
	}
	of := func(own api.BitRate, networks map[string]NetworkUplink) Uplink {
		for id, n := range networks {
			networks[id] = NetworkUplink{Own: n.Own * mbit, Ports: n.Ports, Sum: n.Sum * mbit}
		}
		return Uplink{Own: own * mbit, Networks: networks}
	}
	short := func(where, asked, free, short string) api.Shortage {
		return api.Shortage{Resource: "bandwidth", Where: where, Asked: asked, Free: free, Short: short}
	}
	type networks = map[string]NetworkUplink
	known := Room{Name: "h1", Uplink: 1000 * mbit, Committable: 80} // 800 Mbit
	for _, c := range []struct {
		name   string
		room   Room
		others api.BitRate // Mbit committed to other tenants
		from   Uplink
		change func(Uplink) Uplink
		want   []api.Shortage
	}{
		{"the last there is", known, 700, Uplink{}, func(u Uplink) Uplink { return u.Attach(port("corp", 100)) }, nil},
		{"more than there is", known, 700, Uplink{}, func(u Uplink) Uplink { return u.Attach(port("corp", 150)) },
			[]api.Shortage{short("the uplink of h1", "150Mbit", "100Mbit", "50Mbit")}},
		{"only what grows is asked for", known, 700, of(0, networks{"corp": {Ports: 1, Sum: 50}}),
			func(u Uplink) Uplink { return u.Attach(port("corp", 60)) },
			[]api.Shortage{short("the uplink of h1", "60Mbit", "50Mbit", "10Mbit")}},
		{"a tenant's first port brings its rate", known, 700, Uplink{}, func(u Uplink) Uplink {
			return u.Attach(Commitment{Network: "corp", OfTenant: 300 * mbit, OfNetwork: 200 * mbit, OfThisPort: mbit})
		}, []api.Shortage{short("the uplink of h1", "300Mbit", "100Mbit", "200Mbit")}},
		{"a network's first port brings its rate", known, 700, of(0, networks{"corp": {Ports: 1, Sum: 50}}), func(u Uplink) Uplink {
			return u.Attach(Commitment{Network: "lab", OfNetwork: 70 * mbit})
		}, []api.Shortage{short("the uplink of h1", "70Mbit", "50Mbit", "20Mbit")}},
		{"over-committed: nothing is free", known, 900, Uplink{}, func(u Uplink) Uplink { return u.Attach(port("corp", 10)) },
			[]api.Shortage{short("the uplink of h1", "10Mbit", "0bit", "10Mbit")}},

		{"ports have what their network has", known, 0, of(0, networks{"corp": {Own: 100, Ports: 1, Sum: 70}}), func(u Uplink) Uplink {
			return u.Attach(Commitment{Network: "corp", OfNetwork: 100 * mbit, OfThisPort: 30 * mbit})
		}, nil},
		{"ports exceed their network", known, 0, of(0, networks{"corp": {Own: 100, Ports: 1, Sum: 70}}), func(u Uplink) Uplink {
			return u.Attach(Commitment{Network: "corp", OfNetwork: 100 * mbit, OfThisPort: 50 * mbit})
		}, []api.Shortage{short("network corp on the uplink of h1", "50Mbit", "30Mbit", "20Mbit")}},
		{"networks exceed their tenant", known, 0, of(100, networks{"corp": {Own: 60, Ports: 1}}), func(u Uplink) Uplink {
			return u.Attach(Commitment{Network: "lab", OfTenant: 100 * mbit, OfNetwork: 50 * mbit})
		}, []api.Shortage{short("tenant acme on the uplink of h1", "50Mbit", "40Mbit", "10Mbit")}},
		{"networks exceed their tenant's peak", known, 0, of(0, networks{"corp": {Own: 60, Ports: 1}}), func(u Uplink) Uplink {
			return u.Attach(Commitment{Network: "lab", TenantPeak: 100 * mbit, OfNetwork: 50 * mbit})
		}, []api.Shortage{short("tenant acme on the uplink of h1", "50Mbit", "40Mbit", "10Mbit")}},
		{"a tenant's peak below its networks", known, 0, of(0, networks{"corp": {Own: 60, Ports: 1}}),
			func(u Uplink) Uplink { return u.CommitTenant(0, 50*mbit) },
			[]api.Shortage{short("tenant acme on the uplink of h1", "60Mbit", "50Mbit", "10Mbit")}},
		{"ports of a network without a rate exceed their tenant", known, 0, of(100, networks{"corp": {Own: 60, Ports: 1}}), func(u Uplink) Uplink {
			return u.Attach(Commitment{Network: "lab", OfTenant: 100 * mbit, OfThisPort: 41 * mbit})
		}, []api.Shortage{short("tenant acme on the uplink of h1", "41Mbit", "40Mbit", "1Mbit")}},
		{"a network's rate exceeds its tenant's", known, 0, of(100, networks{"corp": {Own: 60, Ports: 1}, "lab": {Ports: 1, Sum: 20}}),
			func(u Uplink) Uplink { return u.CommitNetwork("corp", 100*mbit) },
			[]api.Shortage{short("tenant acme on the uplink of h1", "40Mbit", "20Mbit", "20Mbit")}},

		{"a network's rate lowered below its ports'", known, 0, of(0, networks{"corp": {Own: 100, Ports: 2, Sum: 70}}),
			func(u Uplink) Uplink { return u.CommitNetwork("corp", 40*mbit) },
			[]api.Shortage{short("network corp on the uplink of h1", "70Mbit", "40Mbit", "30Mbit")}},
		{"a network's first rate is below its ports'", known, 0, of(0, networks{"corp": {Ports: 2, Sum: 70}}),
			func(u Uplink) Uplink { return u.CommitNetwork("corp", 40*mbit) },
			[]api.Shortage{short("network corp on the uplink of h1", "70Mbit", "40Mbit", "30Mbit")}},
		{"a port comes, and its network's rate is below what the others have", known, 0, of(0, networks{"corp": {Own: 100, Ports: 2, Sum: 70}}), func(u Uplink) Uplink {
			return u.Attach(Commitment{Network: "corp", OfNetwork: 40 * mbit, OfThisPort: 10 * mbit})
		}, []api.Shortage{short("network corp on the uplink of h1", "80Mbit", "40Mbit", "40Mbit")}},
		{"a tenant's rate lowered below its networks'", known, 0, of(200, networks{"corp": {Own: 100, Ports: 1}, "lab": {Ports: 1, Sum: 20}}),
			func(u Uplink) Uplink { return u.CommitTenant(110*mbit, 0) },
			[]api.Shortage{short("tenant acme on the uplink of h1", "120Mbit", "110Mbit", "10Mbit")}},

		{"everything that is short is told", known, 700, of(0, networks{"corp": {Ports: 1, Sum: 50}, "lab": {Own: 10, Ports: 1, Sum: 10}}), func(u Uplink) Uplink {
			u = u.Attach(Commitment{Network: "lab", OfTenant: 150 * mbit, OfNetwork: 10 * mbit, OfThisPort: 5 * mbit})
			return u.CommitNetwork("corp", 145*mbit).Attach(Commitment{Network: "corp", OfTenant: 150 * mbit, OfNetwork: 145 * mbit, OfThisPort: 100 * mbit})
		}, []api.Shortage{
			short("network corp on the uplink of h1", "100Mbit", "95Mbit", "5Mbit"),
			short("network lab on the uplink of h1", "5Mbit", "0bit", "5Mbit"),
			short("tenant acme on the uplink of h1", "95Mbit", "90Mbit", "5Mbit"),
			short("the uplink of h1", "90Mbit", "40Mbit", "50Mbit"),
		}},

		{"over-committed: a port goes", known, 900, of(0, networks{"corp": {Ports: 2, Sum: 70}}),
			func(u Uplink) Uplink { return u.Detach(port("corp", 20)) }, nil},
		{"over-committed: the last port goes", known, 900, of(90, networks{"corp": {Own: 80, Ports: 1, Sum: 70}}),
			func(u Uplink) Uplink { return u.Detach(port("corp", 70)) }, nil},
		{"over-committed: a network's rate is lowered", known, 900, of(0, networks{"corp": {Own: 100, Ports: 1, Sum: 70}}),
			func(u Uplink) Uplink { return u.CommitNetwork("corp", 70*mbit) }, nil},
		{"over-committed: a tenant's rate is taken back", known, 900, of(200, networks{"corp": {Own: 100, Ports: 1}}),
			func(u Uplink) Uplink { return u.CommitTenant(0, 0) }, nil},
		{"over-committed: a port of what its network has", known, 900, of(0, networks{"corp": {Own: 100, Ports: 1, Sum: 70}}), func(u Uplink) Uplink {
			return u.Attach(Commitment{Network: "corp", OfNetwork: 100 * mbit, OfThisPort: 30 * mbit})
		}, nil},
		{"over-committed: a port with nothing committed", known, 900, Uplink{}, func(u Uplink) Uplink { return u.Attach(port("corp", 0)) }, nil},

		{"unknown rate: nothing is committed", Room{Name: "h1", Committable: 80}, 0, Uplink{}, func(u Uplink) Uplink { return u.Attach(port("corp", 1)) },
			[]api.Shortage{short("the uplink of h1", "1Mbit", "0bit", "1Mbit")}},
		{"unknown rate: a port with nothing committed", Room{Name: "h1", Committable: 80}, 0, Uplink{},
			func(u Uplink) Uplink { return u.Attach(port("corp", 0)) }, nil},

		{"the rate of a network without a port", known, 800, of(0, networks{"corp": {Ports: 1}}),
			func(u Uplink) Uplink { return u.CommitNetwork("lab", 100*mbit) }, nil},
		{"the rate of a tenant without a port", known, 800, Uplink{}, func(u Uplink) Uplink { return u.CommitTenant(100*mbit, 0) }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := Host{Servers: 3, Bandwidth: c.others*mbit + c.from.Need()}
			to := c.change(c.from)
			next, got := h.Commit(c.room, linesOfAcme, c.from, to)
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
			want := h // what is refused changes nothing
			if c.want == nil {
				want.Bandwidth = c.others*mbit + to.Need()
			}
			if d := cmp.Diff(want, next); d != "" {
				t.Error(d)
			}
		})
	}
}

// accounts are the ports and rates of a host's tenants as their owners know them, and what the ledger has of them.
type accounts struct {
	room    Room
	host    Host
	own     map[string]api.BitRate // of tenants and networks, whether or not they have a port on the host
	ports   map[string][]Commitment
	uplinks map[string]Uplink
}

func (a *accounts) attach(tenant, network string, rate api.BitRate) Commitment {
	return Commitment{Network: network, OfTenant: a.own[tenant], OfNetwork: a.own[network], OfThisPort: rate}
}

// commit asks the ledger for a change, and tells whether it is taken.
func (a *accounts) commit(t *rapid.T, tenant string, change func(Uplink) Uplink) bool {
	from, host := a.uplinks[tenant], a.host
	before := Uplink{Own: from.Own, Networks: maps.Clone(from.Networks)}
	to := change(from)
	asked := Uplink{Own: to.Own, Networks: maps.Clone(to.Networks)}
	next, short := host.Commit(a.room, linesOfAcme, from, to)
	if d := cmp.Diff(before, from) + cmp.Diff(asked, to) + cmp.Diff(a.host, host); d != "" {
		t.Fatalf("an old value was changed: %s", d)
	}
	if len(short) == 0 {
		a.host, a.uplinks[tenant] = next, to
		return true
	}
	if d := cmp.Diff(host, next); d != "" {
		t.Fatalf("what is refused changes the ledger: %s", d)
	}
	for _, s := range short {
		asked, _ := api.ParseBitRate(s.Asked)
		free, _ := api.ParseBitRate(s.Free)
		if by, err := api.ParseBitRate(s.Short); err != nil || by <= 0 || asked-free != by {
			t.Fatalf("a shortage that is none: %+v", s)
		}
	}
	return false
}

// check compares the ledger with the sum of what its owners know.
func (a *accounts) check(t *rapid.T) {
	var all api.BitRate
	for tenant, u := range a.uplinks {
		var want Uplink
		var parts api.BitRate
		for _, p := range a.ports[tenant] {
			if want.Networks == nil {
				want = Uplink{Own: a.own[tenant], Networks: map[string]NetworkUplink{}}
			}
			n := want.Networks[p.Network]
			want.Networks[p.Network] = NetworkUplink{Own: a.own[p.Network], Ports: n.Ports + 1, Sum: n.Sum + p.OfThisPort}
		}
		if d := cmp.Diff(want, u); d != "" {
			t.Fatalf("%s: ledger and ports differ: %s", tenant, d)
		}
		for id, n := range u.Networks {
			if n.Own > 0 && n.Sum > n.Own {
				t.Fatalf("%s: the ports have %s of %s", id, n.Sum, n.Own)
			}
			parts += n.Need()
		}
		if u.Own > 0 && parts > u.Own {
			t.Fatalf("%s: the networks have %s of %s", tenant, parts, u.Own)
		}
		all += u.Need()
	}
	if d := cmp.Diff(Host{Bandwidth: all}, a.host); d != "" {
		t.Fatalf("ledger and tenants differ: %s", d)
	}
	if all > a.committable() {
		t.Fatalf("%s are committed of %d%% of %s", all, a.room.Committable, a.room.Uplink)
	}
}

func (a *accounts) committable() api.BitRate {
	return a.room.Uplink / 100 * api.BitRate(a.room.Committable)
}

// rate is often nothing, and often just what is left.
func (a *accounts) rate(t *rapid.T) api.BitRate {
	left := a.committable() - a.host.Bandwidth
	return rapid.OneOf(
		rapid.Just(api.BitRate(0)),
		rapid.SampledFrom([]api.BitRate{left, left + 1, a.room.Uplink}),
		rapid.Custom(func(t *rapid.T) api.BitRate {
			return api.BitRate(rapid.Int64Range(0, int64(a.room.Uplink)/6).Draw(t, "part"))
		}),
	).Draw(t, "rate")
}

// Whatever ports come and go, and whatever becomes of the rates of their networks and tenants: nothing is committed
// twice, the ledger is the sum of what is committed, and it is empty when all are gone.
func TestUplinkProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := &accounts{
			room: Room{Name: "h1", Uplink: 100 * api.BitRate(rapid.SampledFrom([]int64{0, 1, 1e4, 1e7, 4e9}).Draw(t, "uplink")),
				Committable: rapid.IntRange(0, 100).Draw(t, "committable")},
			own: map[string]api.BitRate{}, ports: map[string][]Commitment{}, uplinks: map[string]Uplink{},
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			tenant := rapid.SampledFrom([]string{"acme", "beta", "corp"}).Draw(t, "tenant")
			network := fmt.Sprintf("%s.%d", tenant, rapid.IntRange(0, 2).Draw(t, "network"))
			switch rapid.SampledFrom([]string{"attach", "attach", "attach", "detach", "network", "tenant"}).Draw(t, "step") {
			case "attach":
				p := a.attach(tenant, network, a.rate(t))
				if a.commit(t, tenant, func(u Uplink) Uplink { return u.Attach(p) }) {
					a.ports[tenant] = append(a.ports[tenant], p)
				}
			case "detach":
				if len(a.ports[tenant]) == 0 {
					continue
				}
				i := rapid.IntRange(0, len(a.ports[tenant])-1).Draw(t, "port")
				a.detach(t, tenant, i)
			case "network":
				if rate := a.rate(t); a.commit(t, tenant, func(u Uplink) Uplink { return u.CommitNetwork(network, rate) }) {
					a.own[network] = rate
				}
			case "tenant":
				if rate := a.rate(t); a.commit(t, tenant, func(u Uplink) Uplink { return u.CommitTenant(rate, 0) }) {
					a.own[tenant] = rate
				}
			}
			a.check(t)
		}
		a.room.Uplink = 0 // nothing that goes is held back by what the uplink is by now
		for tenant := range a.ports {
			for len(a.ports[tenant]) > 0 {
				a.detach(t, tenant, 0)
			}
			if d := cmp.Diff(Uplink{}, a.uplinks[tenant]); d != "" {
				t.Fatalf("%s is not empty at the end: %s", tenant, d)
			}
		}
		if d := cmp.Diff(Host{}, a.host); d != "" {
			t.Fatalf("not empty at the end: %s", d)
		}
	})
}

func (a *accounts) detach(t *rapid.T, tenant string, i int) {
	p := a.ports[tenant][i]
	if !a.commit(t, tenant, func(u Uplink) Uplink { return u.Detach(p) }) {
		t.Fatalf("a port of %s can't go: %+v", tenant, p)
	}
	a.ports[tenant] = slices.Delete(a.ports[tenant], i, i+1)
}
