package cgroup

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/croftproject/croft/api"
)

var (
	testV1 = layout{v2: func(string) bool { return false }, swap: true, hugePage: "2MB"}
	testV2 = layout{v2: func(string) bool { return true }, swap: true, hugePage: "2MB"}
)

// full has every limit but the CPU set, which is no plain write.
var full = Limits{
	Shares: 1500, CPUCap: 300, MemoryLimit: 256 * api.MiB, MemoryLow: 64 * api.MiB, HugePages: 4 * api.MiB, PIDs: 100,
	IO: []IOLimit{{Major: 8, Minor: 16, ReadIOPS: 100, WriteRate: api.MiB}},
}

func TestPlan(t *testing.T) {
	zero := &Limits{}
	with := func(f func(*Limits)) Limits {
		l := full
		f(&l)
		return l
	}
	for name, test := range map[string]struct {
		layout  layout
		from    *Limits
		limited []IOLimit
		to      Limits
		want    []change
	}{
		"v1 new": {testV1, zero, nil, full, []change{
			{"cpu", "cpu.shares", "1536"},
			{"cpu", "cpu.cfs_quota_us", "30000"},
			{"pids", "pids.max", "100"},
			{"hugetlb", "hugetlb.2MB.limit_in_bytes", "4194304"},
			{"memory", "memory.soft_limit_in_bytes", "67108864"},
			{"memory", "memory.limit_in_bytes", "268435456"},
			{"memory", "memory.memsw.limit_in_bytes", "268435456"},
			{"blkio", "blkio.throttle.read_iops_device", "8:16 100"},
			{"blkio", "blkio.throttle.write_iops_device", "8:16 0"},
			{"blkio", "blkio.throttle.read_bps_device", "8:16 0"},
			{"blkio", "blkio.throttle.write_bps_device", "8:16 1048576"},
		}},
		"v2 new": {testV2, zero, nil, full, []change{
			{"cpu", "cpu.weight", "150"},
			{"cpu", "cpu.max", "30000 100000"},
			{"pids", "pids.max", "100"},
			{"hugetlb", "hugetlb.2MB.max", "4194304"},
			{"memory", "memory.low", "67108864"},
			{"memory", "memory.swap.max", "0"},
			{"memory", "memory.max", "268435456"},
			{"io", "io.max", "8:16 riops=100 wiops=max rbps=max wbps=1048576"},
		}},
		"v1 new without limits": {testV1, zero, nil, Limits{}, nil},
		"v2 new without limits": {testV2, zero, nil, Limits{}, nil},
		"v1 unchanged":          {testV1, &full, full.IO, full, nil},
		"v2 unchanged":          {testV2, &full, full.IO, full, nil},
		"v1 limits away": {testV1, &full, full.IO, Limits{}, []change{
			{"cpu", "cpu.shares", "1024"},
			{"cpu", "cpu.cfs_quota_us", "-1"},
			{"pids", "pids.max", "max"},
			{"hugetlb", "hugetlb.2MB.limit_in_bytes", "-1"},
			{"memory", "memory.soft_limit_in_bytes", "-1"},
			{"memory", "memory.memsw.limit_in_bytes", "-1"},
			{"memory", "memory.limit_in_bytes", "-1"},
			{"blkio", "blkio.throttle.read_iops_device", "8:16 0"},
			{"blkio", "blkio.throttle.write_iops_device", "8:16 0"},
			{"blkio", "blkio.throttle.read_bps_device", "8:16 0"},
			{"blkio", "blkio.throttle.write_bps_device", "8:16 0"},
		}},
		"v2 limits away": {testV2, &full, full.IO, Limits{}, []change{
			{"cpu", "cpu.weight", "100"},
			{"cpu", "cpu.max", "max 100000"},
			{"pids", "pids.max", "max"},
			{"hugetlb", "hugetlb.2MB.max", "max"},
			{"memory", "memory.low", "0"},
			{"memory", "memory.swap.max", "max"},
			{"memory", "memory.max", "max"},
			{"io", "io.max", "8:16 riops=max wiops=max rbps=max wbps=max"},
		}},
		"v1 not known": {testV1, nil, []IOLimit{{Major: 7, Minor: 0}}, Limits{Shares: 1000, MemoryLimit: 4096}, []change{
			{"cpu", "cpu.shares", "1024"},
			{"cpu", "cpu.cfs_quota_us", "-1"},
			{"pids", "pids.max", "max"},
			{"hugetlb", "hugetlb.2MB.limit_in_bytes", "-1"},
			{"memory", "memory.soft_limit_in_bytes", "-1"},
			{"memory", "memory.memsw.limit_in_bytes", "-1"},
			{"memory", "memory.limit_in_bytes", "4096"},
			{"memory", "memory.memsw.limit_in_bytes", "4096"},
			{"blkio", "blkio.throttle.read_iops_device", "7:0 0"},
			{"blkio", "blkio.throttle.write_iops_device", "7:0 0"},
			{"blkio", "blkio.throttle.read_bps_device", "7:0 0"},
			{"blkio", "blkio.throttle.write_bps_device", "7:0 0"},
		}},
		"v1 more memory": {testV1, &full, full.IO, with(func(l *Limits) { l.MemoryLimit *= 2 }), []change{
			{"memory", "memory.memsw.limit_in_bytes", "536870912"},
			{"memory", "memory.limit_in_bytes", "536870912"},
		}},
		"v1 less memory": {testV1, &full, full.IO, with(func(l *Limits) { l.MemoryLimit /= 2 }), []change{
			{"memory", "memory.limit_in_bytes", "134217728"},
			{"memory", "memory.memsw.limit_in_bytes", "134217728"},
		}},
		"v1 more CPU": {testV1, &full, full.IO, with(func(l *Limits) { l.CPUCap = 2500 }), []change{
			{"cpu", "cpu.cfs_quota_us", "250000"},
		}},
		"v1 hardly any CPU": {testV1, &full, full.IO, with(func(l *Limits) { l.CPUCap = 5 }), []change{
			{"cpu", "cpu.cfs_quota_us", "-1"},
			{"cpu", "cpu.cfs_period_us", "1000000"},
			{"cpu", "cpu.cfs_quota_us", "5000"},
		}},
		"v2 hardly any CPU": {testV2, &full, full.IO, with(func(l *Limits) { l.CPUCap = 5 }), []change{
			{"cpu", "cpu.max", "5000 1000000"},
		}},
		"v1 another disk": {testV1, &full, full.IO, with(func(l *Limits) { l.IO = []IOLimit{{Major: 9, WriteIOPS: 5}} }), []change{
			{"blkio", "blkio.throttle.read_iops_device", "9:0 0"},
			{"blkio", "blkio.throttle.write_iops_device", "9:0 5"},
			{"blkio", "blkio.throttle.read_bps_device", "9:0 0"},
			{"blkio", "blkio.throttle.write_bps_device", "9:0 0"},
			{"blkio", "blkio.throttle.read_iops_device", "8:16 0"},
			{"blkio", "blkio.throttle.write_iops_device", "8:16 0"},
			{"blkio", "blkio.throttle.read_bps_device", "8:16 0"},
			{"blkio", "blkio.throttle.write_bps_device", "8:16 0"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got := test.layout.plan(test.from, test.limited, test.to)
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(change{})); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPortions(t *testing.T) {
	for _, test := range []struct{ thousandths, shares, weight int64 }{
		{0, 1024, 100}, {1, 2, 1}, {10, 10, 1}, {500, 512, 50}, {1000, 1024, 100}, {1500, 1536, 150},
		{100_000, 102_400, 10_000}, {1_000_000, 1 << 18, 10_000}, {math.MaxInt64, 1 << 18, 10_000},
	} {
		if got := sharesV1(test.thousandths); got != test.shares {
			t.Errorf("sharesV1(%d) = %d, want %d", test.thousandths, got, test.shares)
		}
		if got := weightV2(test.thousandths); got != test.weight {
			t.Errorf("weightV2(%d) = %d, want %d", test.thousandths, got, test.weight)
		}
	}
}

func TestCPUList(t *testing.T) {
	for _, test := range []struct {
		cpus []int
		want string
	}{{nil, ""}, {[]int{3}, "3"}, {[]int{2, 0, 1, 5, 5}, "0-2,5"}, {[]int{0, 2, 3}, "0,2-3"}} {
		if got := cpuList(test.cpus); got != test.want {
			t.Errorf("cpuList(%v) = %q, want %q", test.cpus, got, test.want)
		}
	}
}

func TestParseMounts(t *testing.T) {
	const hybrid = `31 23 0:28 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:10 - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
50 31 0:29 / /mnt/a\040copy rw,relatime - cgroup cgroup rw,cpu,cpuacct
`
	const v2 = `35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
`
	for name, test := range map[string]struct {
		table string
		mode  Mode
		all   []hierarchy
	}{
		"hybrid": {hybrid, Hybrid, []hierarchy{
			{root: "/sys/fs/cgroup/cpu,cpuacct", controllers: []string{"cpu", "cpuacct"}},
			{root: "/sys/fs/cgroup/systemd"},
			{root: "/sys/fs/cgroup/unified", unified: true},
		}},
		"v2":   {v2, V2, []hierarchy{{root: "/sys/fs/cgroup", unified: true}}},
		"none": {"", 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			m := parseMounts(test.table)
			if diff := cmp.Diff(test.all, m.all, cmp.AllowUnexported(hierarchy{})); diff != "" {
				t.Errorf("hierarchies (-want +got):\n%s", diff)
			}
			if got := m.detect(); got != test.mode {
				t.Errorf("mode %v, want %v", got, test.mode)
			}
		})
	}
}
