package ledger

import (
	"errors"
	"maps"
	"math"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/croftproject/croft/api"
)

func room(cpus int) Room {
	r := Room{
		Name:       "h1",
		Capacity:   api.Resources{CPU: api.MilliCPU(cpus) * api.CPU1, Memory: 8 * api.GiB, HugePages: 2 * api.GiB, Disk: 100 * api.GiB},
		Reserve:    api.Reserve{CPU: 100, Memory: 512 * api.MiB, Disk: api.GiB},
		Overcommit: api.Overcommit{CPU: 100, Memory: 100, Disk: 200},
	}
	for i := range cpus {
		r.CPUs = append(r.CPUs, i)
	}
	return r
}

func TestShortages(t *testing.T) {
	ask := Ask{Server: "a", CPU: 3 * api.CPU1, Memory: 9 * api.GiB, HugePages: 1536 * api.MiB, Disk: 199 * api.GiB}
	_, _, short := Host{CPU: 400, HugePages: api.GiB}.Change(room(2), Ask{}, ask)
	want := []api.Shortage{
		{Resource: "cpu", Where: "h1", Asked: "3", Free: "1500m", Short: "1500m"},
		{Resource: "memory", Where: "h1", Asked: "9GiB", Free: "7680MiB", Short: "1536MiB"},
		{Resource: "huge-pages", Where: "h1", Asked: "1536MiB", Free: "1GiB", Short: "512MiB"},
		{Resource: "disk", Where: "h1", Asked: "199GiB", Free: "198GiB", Short: "1GiB"},
	}
	if d := cmp.Diff(want, short); d != "" {
		t.Error(d)
	}
}

func TestDedicated(t *testing.T) {
	r := room(4) // 3 whole CPUs beside the reserve
	h, cpus, short := Host{}.Change(r, Ask{}, Ask{Server: "a", CPU: 2000, Dedicated: 2})
	if short != nil || !cmp.Equal(cpus, []int{2, 3}) {
		t.Fatalf("%v %v", cpus, short)
	}
	if _, _, short := h.Change(r, Ask{}, Ask{Server: "b", CPU: 2000, Dedicated: 2}); len(short) == 0 || short[0].Resource != "host-cpu" || short[0].Short != "1" {
		t.Fatalf("short %v", short)
	}
	if _, _, short := h.Change(r, Ask{}, Ask{Server: "b", CPU: 1901}); len(short) != 1 || short[0].Short != "1m" {
		t.Fatalf("shared servers get what dedicated ones leave: %v", short)
	}
	// One more CPU, and the two that it has stay.
	h, cpus, short = h.Change(r, Ask{Server: "a", CPU: 2000, Dedicated: 2}, Ask{Server: "a", CPU: 3000, Dedicated: 3, Held: cpus})
	if short != nil || !cmp.Equal(cpus, []int{1, 2, 3}) {
		t.Fatalf("%v %v", cpus, short)
	}
	if h.Allocated().CPU != 3000 || h.Servers != 1 {
		t.Fatalf("%+v", h)
	}
	// What does not grow is never short, whatever the host has by now.
	reserved, fewer := r, room(2)
	reserved.Reserve.CPU = 3500
	for name, tc := range map[string]struct {
		room Room
		want int
		cpus []int
	}{
		"as it was, more reserved":  {reserved, 3, []int{1, 2, 3}},
		"as it was, fewer CPUs":     {fewer, 3, []int{1, 2, 3}},
		"fewer, more reserved":      {reserved, 2, []int{1, 2}},
		"none, more reserved":       {reserved, 0, nil},
		"one more, more reserved":   {reserved, 4, nil},
		"one more, of fewer CPUs":   {fewer, 4, nil},
		"one more than may be used": {r, 4, nil},
	} {
		to := Ask{Server: "a", CPU: api.MilliCPU(tc.want) * api.CPU1, Dedicated: tc.want, Held: []int{1, 2, 3}}
		next, got, short := h.Change(tc.room, Ask{Server: "a", CPU: 3000, Dedicated: 3, Held: []int{1, 2, 3}}, to)
		if (short == nil) != (tc.want < 4) || !cmp.Equal(got, tc.cpus, cmpopts.EquateEmpty()) || (short == nil && len(next.CPUs) != tc.want) {
			t.Errorf("%s: %v, %v, short %v", name, got, next, short)
		}
	}
}

func TestShrinkOnAFullHost(t *testing.T) {
	r := room(1)
	big := Ask{Server: "a", CPU: 5000, Memory: 64 * api.GiB, HugePages: 4 * api.GiB}
	small := Ask{Server: "a", CPU: 4000, Memory: 64 * api.GiB, HugePages: 4 * api.GiB}
	h := Host{Servers: 1, CPU: 5000, Memory: 64 * api.GiB, HugePages: 4 * api.GiB}
	if _, _, short := h.Change(r, big, small); short != nil {
		t.Errorf("shrinking is refused: %v", short)
	}
	if _, _, short := h.Change(r, small, big); len(short) != 1 || short[0].Resource != "cpu" {
		t.Errorf("short of %v", short)
	}
}

func asks(t *rapid.T, label string) Ask {
	a := Ask{
		CPU:    api.MilliCPU(rapid.Int64Range(0, 3000).Draw(t, label+" cpu")),
		Memory: api.Bytes(rapid.OneOf(rapid.Int64Range(0, int64(4*api.GiB)), rapid.Int64Range(0, math.MaxInt64)).Draw(t, label+" memory")),
		Disk:   api.Bytes(rapid.Int64Range(0, int64(60*api.GiB)).Draw(t, label+" disk")),
	}
	if rapid.IntRange(0, 4).Draw(t, label+" pages") == 0 {
		a.HugePages = api.Bytes(rapid.Int64Range(0, int64(3*api.GiB)).Draw(t, label+" huge"))
	}
	if rapid.IntRange(0, 4).Draw(t, label+" kind") == 0 {
		a.Dedicated = rapid.IntRange(1, 3).Draw(t, label+" dedicated")
		a.CPU = api.MilliCPU(a.Dedicated) * api.CPU1
	}
	return a
}

// Whatever servers come, change and go: what is promised never exceeds what may be, no CPU is dedicated twice, the
// ledger is the sum of the promises, and it is empty when all are gone.
func TestHostProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := room(rapid.IntRange(1, 8).Draw(t, "cpus"))
		r.Overcommit.CPU = rapid.IntRange(0, 400).Draw(t, "overcommit")
		h := Host{}
		held := map[string]Ask{}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			name := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"}).Draw(t, "server")
			from := held[name]
			to := Ask{}
			if rapid.Bool().Draw(t, "keep") {
				to = asks(t, "to")
				to.Server, to.Held = name, from.Held
			}
			before := h
			before.CPUs = maps.Clone(h.CPUs)
			next, cpus, short := h.Change(r, from, to)
			if d := cmp.Diff(before, h); d != "" {
				t.Fatalf("the old ledger was changed: %s", d)
			}
			if len(short) > 0 {
				if to.Server == "" {
					t.Fatalf("a release is short of %v", short)
				}
				continue
			}
			h = next
			to.Held = cpus
			if len(cpus) != to.Dedicated {
				t.Fatalf("%v for %d", cpus, to.Dedicated)
			}
			if held[name] = to; to.Server == "" {
				delete(held, name)
			}
			checkHost(t, r, h, held)
		}
		for _, a := range held {
			h, _, _ = h.Change(r, a, Ask{})
		}
		if d := cmp.Diff(Host{}, h); d != "" {
			t.Fatalf("not empty at the end: %s", d)
		}
	})
}

func checkHost(t *rapid.T, r Room, h Host, held map[string]Ask) {
	want := Host{Servers: len(held)}
	for name, a := range held {
		if a.Dedicated == 0 {
			want.CPU += a.CPU
		}
		want.Memory += a.Memory
		want.HugePages += a.HugePages
		want.Disk += a.Disk
		for _, cpu := range a.Held {
			if want.CPUs == nil {
				want.CPUs = map[int]string{}
			}
			if other, taken := want.CPUs[cpu]; taken {
				t.Fatalf("CPU %d is dedicated to %s and %s", cpu, name, other)
			}
			want.CPUs[cpu] = name
		}
	}
	if d := cmp.Diff(want, h); d != "" {
		t.Fatalf("ledger and promises differ: %s", d)
	}
	all := r.Allocatable()
	if h.Memory > all.Memory || h.HugePages > all.HugePages || h.Disk > all.Disk || h.Memory < 0 {
		t.Fatalf("%+v exceeds %+v", h, all)
	}
	if len(h.CPUs) > 0 && r.Overcommit.CPU == 100 && h.Allocated().CPU > all.CPU {
		t.Fatalf("CPU: %v exceeds %v", h.Allocated(), all)
	}
	if h.CPU > h.sharedCPU(r, 0) {
		t.Fatalf("shared CPU: %+v exceeds %v", h, h.sharedCPU(r, 0))
	}
}

func TestTenantProperties(t *testing.T) {
	limit := func(n int64) *api.Bytes { b := api.Bytes(n); return &b }
	rapid.Check(t, func(t *rapid.T) {
		q := api.Quota{Memory: limit(rapid.Int64Range(0, math.MaxInt64).Draw(t, "limit"))}
		var tenant Tenant
		var held []Usage
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			u := Usage{Resources: api.Resources{Servers: 1, Memory: api.Bytes(rapid.Int64Range(0, math.MaxInt64).Draw(t, "memory"))}}
			next, short := tenant.Change("t", q, Usage{}, u)
			if len(short) == 0 {
				tenant, held = next, append(held, u)
			}
			if tenant.Memory > *q.Memory || tenant.Memory < 0 {
				t.Fatalf("%v exceeds %v", tenant.Memory, *q.Memory)
			}
		}
		for _, u := range held {
			tenant, _ = tenant.Change("t", q, u, Usage{})
		}
		if !tenant.Empty() {
			t.Fatalf("not empty: %+v", tenant)
		}
	})
}

func TestAddresses(t *testing.T) {
	s := api.Subnet{Prefix: netip.MustParsePrefix("10.7.0.0/29"), Gateway: netip.MustParseAddr("10.7.0.1")}
	var n Network
	for _, tc := range []struct {
		want string
		err  error
	}{
		{"10.7.0.0", ErrReserved}, {"10.7.0.1", ErrReserved}, {"10.7.0.7", ErrReserved}, {"10.7.0.8", ErrOutside},
		{"::1", ErrOutside}, {"10.7.0.3", nil}, {"10.7.0.3", ErrTaken},
	} {
		var err error
		n, _, err = n.Take(s, netip.MustParseAddr(tc.want))
		if !errors.Is(err, tc.err) {
			t.Errorf("%s: %v, want %v", tc.want, err, tc.err)
		}
	}
	for _, want := range []string{"10.7.0.2", "10.7.0.4", "10.7.0.5", "10.7.0.6"} {
		var got netip.Addr
		var err error
		if n, got, err = n.Take(s, netip.Addr{}); err != nil || got.String() != want {
			t.Errorf("got %s, %v; want %s", got, err, want)
		}
	}
	if _, _, err := n.Take(s, netip.Addr{}); !errors.Is(err, ErrFull) {
		t.Errorf("full: %v", err)
	}
	for i := range 8 {
		n = n.Give(s, nth(s.Prefix, i))
		n = n.Give(s, nth(s.Prefix, i))
	}
	if d := cmp.Diff(Network{}, n); d != "" {
		t.Error(d)
	}
}

func TestWideSubnet(t *testing.T) {
	s := api.Subnet{Prefix: netip.MustParsePrefix("10.7.0.0/16"), Gateway: netip.MustParseAddr("10.7.0.1")}
	var n Network
	seen := map[netip.Addr]bool{}
	for range 600 {
		var a netip.Addr
		var err error
		if n, a, err = n.Take(s, netip.Addr{}); err != nil || seen[a] || !s.Prefix.Contains(a) {
			t.Fatalf("%s, %v", a, err)
		}
		seen[a] = true
	}
	if last := netip.MustParseAddr("10.7.2.89"); !seen[last] {
		t.Errorf("600 addresses don't end at %s", last)
	}
}
