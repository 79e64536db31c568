package linux

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/hostnet"
	"github.com/croftproject/croft/internal/ledger"
)

func TestTree(t *testing.T) {
	const kbit, mbit, gbit, tbit api.BitRate = 1e3, 1e6, 1e9, 1e12
	type tenant = hostnet.TenantShare
	type networks = []hostnet.NetworkShare
	type profile = hostnet.Profile
	minors := map[string]uint16{"t/acme": 0x10, "n/corp": 0x11, "n/lab": 0x12, "t/beta": 0x20, "n/web": 0x21, "n/dev": 0x22}
	for _, c := range []struct {
		name   string
		shares hostnet.Shares
		want   []class
	}{
		{"nobody but the host", hostnet.Shares{Rate: gbit, Reserved: 50 * mbit}, []class{
			{Minor: 1, Parent: 0, Rate: gbit, Ceil: gbit, Burst: 250_000, Cburst: 250_000},
			{Minor: 2, Parent: 1, Rate: 50 * mbit, Ceil: gbit, Burst: 64 << 10, Cburst: 250_000, Quantum: 64 << 10, Queue: 1 << 20},
		}},
		{"two tenants", hostnet.Shares{Rate: gbit, Reserved: 50 * mbit, Tenants: []tenant{
			{ID: "acme", Profile: profile{Committed: 200 * mbit}, Networks: networks{ // what the tenant has is enough for both
				{ID: "corp", Profile: profile{Committed: 100 * mbit, Peak: 300 * mbit, Burst: 1 << 20}},
				{ID: "lab"},
			}},
			{ID: "beta", Profile: profile{Peak: 50 * mbit}, Networks: networks{ // it has what its networks have
				{ID: "web", Profile: profile{Committed: 20 * mbit, Peak: 2 * gbit}},
				{ID: "dev", Profile: profile{Peak: 5 * mbit}},
			}},
		}}, []class{
			{Minor: 1, Parent: 0, Rate: gbit, Ceil: gbit, Burst: 250_000, Cburst: 250_000},
			// Of its 50 Mbit one kbit is lent to dev.
			{Minor: 2, Parent: 1, Rate: 49_999 * kbit, Ceil: gbit, Burst: 64 << 10, Cburst: 250_000, Quantum: 320 << 10, Queue: 1 << 20},
			{Minor: 0x10, Parent: 1, Rate: 200 * mbit, Ceil: gbit, Burst: 64 << 10, Cburst: 250_000},
			{Minor: 0x11, Parent: 0x10, Rate: 100 * mbit, Ceil: 300 * mbit, Burst: 1 << 20, Cburst: 1 << 20, Quantum: 640 << 10, Queue: 1_250_000},
			{Minor: 0x12, Parent: 0x10, Rate: kbit, Ceil: gbit, Burst: 25_000, Cburst: 250_000, Quantum: 64 << 10, Queue: 1 << 20},
			{Minor: 0x20, Parent: 1, Rate: 20_001 * kbit, Ceil: 50 * mbit, Burst: 64 << 10, Cburst: 64 << 10},
			{Minor: 0x21, Parent: 0x20, Rate: 20 * mbit, Ceil: 50 * mbit, Burst: 64 << 10, Cburst: 64 << 10, Quantum: 128 << 10, Queue: 1 << 20},
			{Minor: 0x22, Parent: 0x20, Rate: kbit, Ceil: 5 * mbit, Burst: 25_000, Cburst: 64 << 10, Quantum: 64 << 10, Queue: 1 << 20},
		}},
		{"a tenant's peak is below what its network has", hostnet.Shares{Rate: gbit, Reserved: 50 * mbit, Tenants: []tenant{
			{ID: "acme", Profile: profile{Peak: 10 * mbit}, Networks: networks{{ID: "corp", Profile: profile{Committed: 20 * mbit, Peak: 40 * mbit}}}},
		}}, []class{
			{Minor: 1, Parent: 0, Rate: gbit, Ceil: gbit, Burst: 250_000, Cburst: 250_000},
			{Minor: 2, Parent: 1, Rate: 50 * mbit, Ceil: gbit, Burst: 64 << 10, Cburst: 250_000, Quantum: 320 << 10, Queue: 1 << 20},
			{Minor: 0x10, Parent: 1, Rate: 20 * mbit, Ceil: 20 * mbit, Burst: 64 << 10, Cburst: 64 << 10},
			{Minor: 0x11, Parent: 0x10, Rate: 20 * mbit, Ceil: 20 * mbit, Burst: 64 << 10, Cburst: 64 << 10, Quantum: 128 << 10, Queue: 1 << 20},
		}},
		{"unknown rate: only peaks", hostnet.Shares{Tenants: []tenant{
			{ID: "acme", Networks: networks{{ID: "corp", Profile: profile{Peak: 300 * mbit}}, {ID: "lab"}}},
		}}, []class{
			{Minor: 1, Parent: 0, Rate: 10 * tbit, Ceil: 10 * tbit, Burst: 2_500_000_000, Cburst: 2_500_000_000},
			{Minor: 2, Parent: 1, Rate: kbit, Ceil: 10 * tbit, Burst: 25_000, Cburst: 2_500_000_000, Quantum: 64 << 10, Queue: 1 << 20},
			{Minor: 0x10, Parent: 1, Rate: 2 * kbit, Ceil: 10 * tbit, Burst: 50_000, Cburst: 2_500_000_000},
			{Minor: 0x11, Parent: 0x10, Rate: kbit, Ceil: 300 * mbit, Burst: 25_000, Cburst: 75_000, Quantum: 64 << 10, Queue: 1 << 20},
			{Minor: 0x12, Parent: 0x10, Rate: kbit, Ceil: 10 * tbit, Burst: 25_000, Cburst: 2_500_000_000, Quantum: 64 << 10, Queue: 1 << 20},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.want, tree(c.shares, minors)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestTreeQuantum(t *testing.T) {
	for _, c := range []struct {
		name                string
		committed, smallest api.BitRate
		want                int
	}{
		{"nothing is committed to it", 0, 1e6, packet},
		{"nothing is committed to anybody", 1e6, 0, packet},
		{"the smallest", 1e6, 1e6, 2 * packet},
		{"half as much again", 1.5e6, 1e6, 3 * packet},
		{"the host's, less than the smallest", 1e5, 1e6, packet},
		{"the most", 128e6, 1e6, mostQuantum},
		{"more than the most", 4e11, 1, mostQuantum},
	} {
		if got := quantum(c.committed, c.smallest); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

// admitted is tenants with ports on an uplink, as the ledger lets them come.
func admitted(t *rapid.T, room ledger.Room) map[string]ledger.Uplink {
	var host ledger.Host
	uplinks := map[string]ledger.Uplink{}
	lines := ledger.Lines{Network: func(id string) string { return id }}
	committable := room.Uplink * api.BitRate(room.Committable) / 100
	tenants := rapid.IntRange(1, 12).Draw(t, "tenants")
	for range rapid.IntRange(0, 80).Draw(t, "steps") {
		tenant := fmt.Sprintf("t%d", rapid.IntRange(1, tenants).Draw(t, "tenant"))
		network := fmt.Sprintf("%s.%d", tenant, rapid.IntRange(1, 48/tenants).Draw(t, "network"))
		rate := rapid.OneOf(
			rapid.Just(api.BitRate(0)),
			rapid.Just(committable-host.Bandwidth), // all that is left
			rapid.Map(rapid.Int64Range(1, 3*int64(leastRate)), func(r int64) api.BitRate { return api.BitRate(r) }),
			rapid.Map(rapid.Int64Range(0, int64(room.Uplink)/8), func(r int64) api.BitRate { return api.BitRate(r) }),
		).Draw(t, "rate")
		from := uplinks[tenant]
		var to ledger.Uplink
		switch rapid.SampledFrom([]string{"port", "port", "network", "tenant"}).Draw(t, "step") {
		case "port":
			to = from.Attach(ledger.Commitment{Network: network, OfTenant: from.Own, OfNetwork: from.Networks[network].Own, OfThisPort: rate})
		case "network":
			to = from.CommitNetwork(network, rate)
		case "tenant":
			to = from.CommitTenant(rate, 0)
		}
		if next, short := host.Commit(room, lines, from, to); len(short) == 0 {
			host, uplinks[tenant] = next, to
		}
	}
	maps.DeleteFunc(uplinks, func(_ string, u ledger.Uplink) bool { return len(u.Networks) == 0 })
	return uplinks
}

// profiled has what is committed, and a peak that is none, or no less.
func profiled(t *rapid.T, committed, rate api.BitRate) hostnet.Profile {
	p := hostnet.Profile{Committed: committed}
	switch rapid.SampledFrom([]string{"no peak", "no more", "some more", "more than there is"}).Draw(t, "peak") {
	case "no more":
		p.Peak = committed
	case "some more":
		p.Peak = committed + api.BitRate(rapid.Int64Range(0, int64(rate)/4).Draw(t, "more"))
	case "more than there is":
		p.Peak = rate + 1
	}
	if rapid.Bool().Draw(t, "bursts") {
		p.Burst = api.Bytes(rapid.Int64Range(1, 16<<20).Draw(t, "burst"))
	}
	return p
}

// shared describes to the network what the ledger let in.
func shared(t *rapid.T, room ledger.Room, uplinks map[string]ledger.Uplink) hostnet.Shares {
	s := hostnet.Shares{Rate: room.Uplink, Reserved: room.Uplink * api.BitRate(100-room.Committable) / 100}
	for _, id := range slices.Sorted(maps.Keys(uplinks)) {
		u := uplinks[id]
		// Whether or not a tenant without a rate of its own is said to have what its networks have makes no difference.
		committed := rapid.SampledFrom([]api.BitRate{u.Own, u.Need()}).Draw(t, "committed")
		share := hostnet.TenantShare{ID: id, Profile: profiled(t, committed, room.Uplink)}
		for _, network := range slices.Sorted(maps.Keys(u.Networks)) {
			share.Networks = append(share.Networks, hostnet.NetworkShare{ID: network, Profile: profiled(t, u.Networks[network].Need(), room.Uplink)})
		}
		s.Tenants = append(s.Tenants, share)
	}
	return s
}

// What the ledger lets in, the tree guarantees: whatever is committed is had by its class, and no class has less than
// its parts have between them.
func TestTreeGuarantees(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		scale := rapid.SampledFrom([]int64{1e6, 1e7, 1e8, 1e9, 1e10, 1e11}).Draw(t, "scale")
		room := ledger.Room{
			Uplink:      api.BitRate(rapid.Int64Range(scale, 4*scale).Draw(t, "uplink")),
			Committable: rapid.IntRange(1, 95).Draw(t, "committable"),
		}
		uplinks := admitted(t, room)
		s := shared(t, room, uplinks)
		minors, ok := number(s, nil)
		if !ok {
			t.Fatal("there are no numbers")
		}
		classes := checkShape(t, s, tree(s, minors))
		for _, share := range s.Tenants {
			u := uplinks[share.ID]
			c := classes[minors[tenantKey(share.ID)]]
			checkClass(t, share.ID, c, wholeClass, u.Need(), share.Peak)
			for _, n := range share.Networks {
				checkClass(t, n.ID, classes[minors[networkKey(n.ID)]], c.Minor, u.Networks[n.ID].Need(), n.Peak)
			}
		}
		checkQuanta(t, s, minors, classes)
	})
}

// checkShape checks what any bucket must be, whatever its classes are for. It returns them by number.
func checkShape(t *rapid.T, s hostnet.Shares, list []class) map[uint16]class {
	classes, parts, lent := map[uint16]class{}, map[uint16]api.BitRate{}, leastRate
	for i, c := range list {
		if _, twice := classes[c.Minor]; twice || c.Minor == 0 {
			t.Fatalf("number %#x twice, or none: %+v", c.Minor, list)
		}
		parent, ok := classes[c.Parent]
		if ok != (i > 0) || ok != (c.Parent != 0) {
			t.Fatalf("before its parent: %+v", c)
		}
		if c.Rate < leastRate || c.Ceil < c.Rate || ok && c.Ceil > parent.Ceil || c.Burst <= 0 || c.Cburst <= 0 {
			t.Fatalf("%+v in %+v", c, parent)
		}
		classes[c.Minor] = c
		parts[c.Parent] += c.Rate
	}
	for minor, c := range classes {
		sum, inner := parts[minor]
		if sum > c.Rate {
			t.Fatalf("parts have %d of %+v", sum, c)
		}
		if !inner && (c.Quantum <= 0 || c.Queue <= 0) {
			t.Fatalf("a class without parts sends nothing: %+v", c)
		}
	}
	for _, tenant := range s.Tenants {
		lent += leastRate * api.BitRate(len(tenant.Networks))
	}
	if whole := classes[wholeClass]; whole.Rate != s.Rate || whole.Ceil != s.Rate {
		t.Fatalf("of %s: %+v", s.Rate, whole)
	}
	if host := classes[hostClass]; host.Parent != wholeClass || host.Rate < s.Reserved-lent || host.Rate > max(leastRate, s.Reserved) {
		t.Fatalf("the host has %+v of %s", host, s.Reserved)
	}
	return classes
}

func checkClass(t *rapid.T, name string, c class, parent uint16, committed, peak api.BitRate) {
	if !usable(c.Minor) || c.Parent != parent {
		t.Fatalf("%s has a class of something else's: %+v", name, c)
	}
	if c.Rate < committed {
		t.Fatalf("%s doesn't have its %d: %+v", name, committed, c)
	}
	if peak > 0 && c.Ceil > max(peak, c.Rate) {
		t.Fatalf("%s has more than its %d: %+v", name, peak, c)
	}
}

// checkQuanta checks that what is spare is shared in proportion to what is committed.
func checkQuanta(t *rapid.T, s hostnet.Shares, minors map[string]uint16, classes map[uint16]class) {
	var committed []api.BitRate
	var quanta []int
	for _, tenant := range s.Tenants {
		for _, n := range tenant.Networks {
			committed, quanta = append(committed, n.Committed), append(quanta, classes[minors[networkKey(n.ID)]].Quantum)
		}
	}
	for i, q := range quanta {
		if q < packet || q > mostQuantum {
			t.Fatalf("%d in a turn", q)
		}
		for j, other := range quanta {
			if committed[i] < committed[j] && q > other {
				t.Fatalf("%d has more in a turn than %d: %d, %d", committed[i], committed[j], q, other)
			}
			if committed[i] == 0 || committed[j] == 0 || q == mostQuantum || other == mostQuantum {
				continue
			}
			want := float64(committed[i]) / float64(committed[j])
			if got := float64(q) / float64(other); math.Abs(got/want-1) > 1e-5 { // they are whole bytes
				t.Fatalf("%d and %d share by %d and %d", committed[i], committed[j], q, other)
			}
		}
	}
}

// named is tenants and networks of few names, so that those of two draws are often the same.
func named(t *rapid.T, label string) hostnet.Shares {
	var s hostnet.Shares
	for _, id := range rapid.SliceOfNDistinct(rapid.IntRange(0, 3), 0, 4, rapid.ID[int]).Draw(t, label) {
		tenant := hostnet.TenantShare{ID: fmt.Sprint(id)} // a network may be called as its tenant
		for _, n := range rapid.SliceOfNDistinct(rapid.IntRange(0, 3), 0, 4, rapid.ID[int]).Draw(t, "networks") {
			tenant.Networks = append(tenant.Networks, hostnet.NetworkShare{ID: fmt.Sprint(4*id + n)})
		}
		s.Tenants = append(s.Tenants, tenant)
	}
	return s
}

// Whoever had a number keeps it, and nobody has another's.
func TestTreeNumbers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// What was read of a bucket that others may have touched: numbers that are none of ours, or somebody else's too.
		had, _ := number(named(t, "had"), nil)
		for _, key := range slices.Sorted(maps.Keys(had)) {
			if rapid.IntRange(0, 3).Draw(t, "odd") == 0 {
				had[key] = rapid.OneOf(rapid.Uint16(), rapid.Uint16Range(0, firstClass+4)).Draw(t, "number")
			}
		}
		holders := map[uint16][]string{}
		before := maps.Clone(had)
		s := named(t, "wanted")
		wanted := map[string]bool{}
		for _, tenant := range s.Tenants {
			wanted["t/"+tenant.ID] = true
			for _, n := range tenant.Networks {
				wanted["n/"+n.ID] = true
			}
		}
		for key, minor := range had {
			if wanted[key] && usable(minor) {
				holders[minor] = append(holders[minor], key)
			}
		}
		got, ok := number(s, had)
		if !ok || len(got) != len(wanted) {
			t.Fatalf("%v for %v", got, wanted)
		}
		if d := cmp.Diff(before, had); d != "" {
			t.Fatalf("the old numbers were changed: %s", d)
		}
		whose := map[uint16]string{}
		for key, minor := range got {
			if other, twice := whose[minor]; twice || !usable(minor) || !wanted[key] {
				t.Fatalf("%s has %#x, and %q too", key, minor, other)
			}
			whose[minor] = key
		}
		for minor, keys := range holders {
			if len(keys) == 1 && whose[minor] != keys[0] {
				t.Fatalf("%s had %#x, and has %#x", keys[0], minor, got[keys[0]])
			}
		}
		again, ok := number(s, got)
		if d := cmp.Diff(got, again); d != "" || !ok {
			t.Fatalf("the same once more differs: %s", d)
		}
	})
}

// Half of the numbers up to the last are usable, but for the eight below the first.
func TestTreeNumbersEnd(t *testing.T) {
	const most = (lastClass+1)/2 - 8
	s := hostnet.Shares{Tenants: []hostnet.TenantShare{{ID: "t"}}}
	for i := range most - 1 {
		s.Tenants[0].Networks = append(s.Tenants[0].Networks, hostnet.NetworkShare{ID: fmt.Sprint(i)})
	}
	had, ok := number(s, nil)
	if !ok || len(had) != most {
		t.Fatalf("%d of %d have a number", len(had), most)
	}
	s.Tenants[0].Networks[7].ID = "new"
	if got, ok := number(s, had); !ok || got["n/new"] != had["n/7"] {
		t.Errorf("the number that is free is %#x, not %#x", had["n/7"], got["n/new"])
	}
	s.Tenants = append(s.Tenants, hostnet.TenantShare{ID: "one too many"})
	if got, ok := number(s, had); ok {
		t.Errorf("%d have a number", len(got))
	}
}
