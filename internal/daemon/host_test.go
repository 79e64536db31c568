package daemon

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/cgroup"
	"github.com/croftproject/croft/internal/pool"
	"github.com/croftproject/croft/internal/store"
)

func TestHostSpecIsAppliedUntilItIs(t *testing.T) {
	var f followed
	for i, test := range []struct {
		reserve       api.MilliCPU
		done, applied bool
	}{
		{reserve: 100, applied: true}, // in part
		{reserve: 100, applied: true},
		{reserve: 100, done: true, applied: true},
		{reserve: 100, done: true},
		{reserve: 500, done: true, applied: true},
		{reserve: 500, done: true},
	} {
		applied := false
		f.carry(api.HostSpec{Reserve: api.Reserve{CPU: test.reserve}}, func(api.HostSpec) bool {
			applied = true
			return test.done
		})
		if applied != test.applied || f.done != test.done {
			t.Errorf("%d: applied %v, done %v", i, applied, f.done)
		}
	}
}

func TestShare(t *testing.T) {
	machine := facts{CPUs: []int{0, 1}, Memory: 8 * api.GiB}
	for _, test := range []struct {
		name    string
		reserve api.Reserve
		want    cgroup.Limits
	}{
		{"a part", api.Reserve{CPU: 500, Memory: 2 * api.GiB}, cgroup.Limits{Shares: 2048, CPUCap: 1500, MemoryLimit: 6 * api.GiB, MemoryLow: 6 * api.GiB}},
		{"everything is not no limit", api.Reserve{CPU: 2000, Memory: 8 * api.GiB}, cgroup.Limits{Shares: 2048, CPUCap: 1, MemoryLimit: 1, MemoryLow: 1}},
	} {
		if got := share(machine, test.reserve); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
		}
	}
}

func TestDiskReserve(t *testing.T) {
	var f followed
	start := time.Now()
	for i, test := range []struct {
		free  api.Bytes
		kept  bool
		since time.Duration // from start
	}{
		{free: 2 * api.GiB, kept: true, since: 0},
		{free: api.GiB, kept: true, since: 0},
		{free: api.GiB - 1, since: 2},
		{free: 0, since: 2},
		{free: 3 * api.GiB, kept: true, since: 4},
	} {
		c := f.diskReserve(test.free, api.GiB, start.Add(time.Duration(i)))
		if c.Status != test.kept || !c.Since.Equal(start.Add(test.since)) || (c.Message == "") != test.kept {
			t.Errorf("%d: %+v", i, c)
		}
	}
}

func TestResized(t *testing.T) {
	f := followed{capacity: 100 * api.GiB}
	for now, want := range map[api.Bytes]bool{
		100 * api.GiB: false, 99 * api.GiB: false, 101 * api.GiB: false, 98 * api.GiB: true, 102 * api.GiB: true, 0: true,
	} {
		if got := f.resized(now); got != want {
			t.Errorf("%s: %v", now, got)
		}
	}
}

func TestAvoid(t *testing.T) {
	prefixes := func(all ...string) (out []netip.Prefix) {
		for _, p := range all {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	for _, test := range []struct {
		name        string
		taken, want []netip.Prefix
	}{
		{"nothing", nil, nil},
		{"address, its route, resolver", prefixes("10.64.3.4/22", "10.64.0.0/22", "10.0.0.53/32"), prefixes("10.64.0.0/22", "10.0.0.53/32")},
		{"all of the range", prefixes("10.1.2.3/8", "10.0.0.0/8"), prefixes("10.1.2.0/24", "10.0.0.0/24")},
		{"IPv6 is not chosen", prefixes("fd00::2/64"), nil},
	} {
		if got := avoid(test.taken); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

func TestIOLimits(t *testing.T) {
	for _, test := range []struct {
		mode   cgroup.Mode
		major  int64
		status bool
		reason string
	}{
		{cgroup.V2, 8, true, "Kept"}, {cgroup.V1, 8, true, "DirectOnly"}, {cgroup.Hybrid, 8, true, "DirectOnly"},
		{cgroup.V2, 0, false, "NoDevice"}, {cgroup.V1, 0, false, "NoDevice"},
	} {
		if c := ioLimits(test.mode, pool.Info{Major: test.major}, time.Now()); c.Status != test.status || c.Reason != test.reason {
			t.Errorf("%s, device %d: %+v", test.mode, test.major, c)
		}
	}
}

func TestAnswers(t *testing.T) {
	s, err := store.Open(t.Context(), store.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := answers(t.Context(), s); err != nil {
		t.Error(err)
	}
	s.Close()
	if err := answers(t.Context(), s); err == nil {
		t.Error("a store that is closed answers")
	}
}
