package cgroup

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/croftproject/croft/api"
)

// change is one control file's new content.
type change struct {
	controller, file, value string
}

// layout is what the translation depends on.
type layout struct {
	v2       func(controller string) bool // whether a controller is in the v2 hierarchy
	swap     bool                         // whether swap is accounted
	hugePage string                       // default huge page size as in file names: "2MB"
}

const (
	defaultShares = 1024
	defaultWeight = 100
	period        = 100_000   // microseconds, cpu.cfs_period_us
	longPeriod    = 1_000_000 // for caps below quotaMin in a period
	quotaMin      = 1_000     // microseconds: the kernel's least
	noLimit       = "-1"      // in v1 files
)

// plan translates the step from one set of limits to another into writes, in an order in which each is valid. from is
// nil where it is not known; the zero Limits are those of a new group. limited are the devices that have limits.
// Control files: cgroups(7), Documentation/admin-guide/cgroup-v1/ and cgroup-v2.rst.
func (l layout) plan(from *Limits, limited []IOLimit, to Limits) []change {
	return slices.Concat(
		l.differing(l.weight, from, to),
		l.cap(from, to),
		l.differing(l.pids, from, to),
		l.differing(l.hugePages, from, to),
		l.memory(from, to),
		l.io(limited, to.IO),
	)
}

// differing is what one part of the translation would write for to, but not for from.
func (l layout) differing(part func(Limits) []change, from *Limits, to Limits) []change {
	want := part(to)
	if from == nil {
		return want
	}
	have := part(*from)
	return slices.DeleteFunc(want, func(c change) bool { return slices.Contains(have, c) })
}

// sharesV1 is cpu.shares of a portion: 1024 for a CPU, within the kernel's 2 to 2^18.
func sharesV1(thousandths int64) int64 {
	if thousandths <= 0 {
		return defaultShares
	}
	return clamp(mulDiv(thousandths, 1024, 1000), 2, 1<<18)
}

// weightV2 is cpu.weight of a portion: 100 for a CPU, so that ratios are kept, within 1 to 10000.
func weightV2(thousandths int64) int64 {
	if thousandths <= 0 {
		return defaultWeight
	}
	return clamp(mulDiv(thousandths, 1, 10), 1, 10_000)
}

// mulDiv is a*b/c to the nearest, or the greatest number where that does not fit.
func mulDiv(a, b, c int64) int64 {
	if a > (math.MaxInt64-c)/b {
		return math.MaxInt64
	}
	return (a*b + c/2) / c
}

func clamp(n, least, most int64) int64 { return max(least, min(n, most)) }

// quota is the CPU time, in microseconds, that a cap gives in a period.
func quota(limit api.MilliCPU) (quota, every int64) {
	if q := mulDiv(int64(limit), period, 1000); q >= quotaMin {
		return q, period
	}
	return max(mulDiv(int64(limit), longPeriod, 1000), quotaMin), longPeriod
}

func (l layout) weight(to Limits) []change {
	if l.v2("cpu") {
		return []change{{"cpu", "cpu.weight", number(weightV2(to.Shares))}}
	}
	return []change{{"cpu", "cpu.shares", number(sharesV1(to.Shares))}}
}

// cap limits CPU time. In v1, quota and period are two files: a new period is set without a quota, as the old quota may
// be too small for it, or more of it than the parent has.
func (l layout) cap(from *Limits, to Limits) []change {
	if l.v2("cpu") {
		return l.differing(func(to Limits) []change {
			if to.CPUCap <= 0 {
				return []change{{"cpu", "cpu.max", "max " + number(period)}}
			}
			q, every := quota(to.CPUCap)
			return []change{{"cpu", "cpu.max", number(q) + " " + number(every)}}
		}, from, to)
	}
	if from != nil && from.CPUCap == to.CPUCap {
		return nil
	}
	none := change{"cpu", "cpu.cfs_quota_us", noLimit}
	if to.CPUCap <= 0 {
		return []change{none}
	}
	q, every := quota(to.CPUCap)
	limit := change{"cpu", "cpu.cfs_quota_us", number(q)}
	if from != nil {
		if _, had := quota(from.CPUCap); had == every || from.CPUCap <= 0 && every == period {
			return []change{limit}
		}
	}
	return []change{none, {"cpu", "cpu.cfs_period_us", number(every)}, limit}
}

func (l layout) pids(to Limits) []change {
	return []change{{"pids", "pids.max", orMax(to.PIDs)}}
}

func (l layout) hugePages(to Limits) []change {
	if l.hugePage == "" {
		return nil
	}
	if l.v2("hugetlb") {
		return []change{{"hugetlb", "hugetlb." + l.hugePage + ".max", orMax(int64(to.HugePages))}}
	}
	return []change{{"hugetlb", "hugetlb." + l.hugePage + ".limit_in_bytes", orNone(to.HugePages)}}
}

// memoryV2 limits memory; guests do not swap.
func (l layout) memoryV2(to Limits) []change {
	swap := "max"
	if to.MemoryLimit > 0 {
		swap = "0"
	}
	out := []change{{"memory", "memory.low", number(int64(to.MemoryLow))}}
	if l.swap {
		out = append(out, change{"memory", "memory.swap.max", swap})
	}
	return append(out, change{"memory", "memory.max", orMax(int64(to.MemoryLimit))})
}

// memory limits memory. In v1 the limit of memory and swap together may at no time be below that of memory alone.
func (l layout) memory(from *Limits, to Limits) []change {
	if l.v2("memory") {
		return l.differing(l.memoryV2, from, to)
	}
	var out []change
	if from == nil || from.MemoryLow != to.MemoryLow {
		out = append(out, change{"memory", "memory.soft_limit_in_bytes", orNone(to.MemoryLow)})
	}
	if from != nil && from.MemoryLimit == to.MemoryLimit {
		return out
	}
	limit := change{"memory", "memory.limit_in_bytes", orNone(to.MemoryLimit)}
	both := change{"memory", "memory.memsw.limit_in_bytes", orNone(to.MemoryLimit)}
	switch {
	case !l.swap:
		return append(out, limit)
	case from == nil:
		return append(out, change{both.controller, both.file, noLimit}, limit, both)
	case above(to.MemoryLimit, from.MemoryLimit):
		return append(out, both, limit)
	}
	return append(out, limit, both)
}

// above tells whether limit a is the greater; zero is none.
func above(a, b api.Bytes) bool { return b != 0 && (a == 0 || a > b) }

// io limits devices; one that has no limit any more is reset.
func (l layout) io(had, want []IOLimit) []change {
	var out []change
	for _, d := range want {
		if !slices.Contains(had, d) {
			out = append(out, l.device(d)...)
		}
	}
	for _, d := range had {
		if !slices.ContainsFunc(want, func(w IOLimit) bool { return w.Major == d.Major && w.Minor == d.Minor }) {
			out = append(out, l.device(IOLimit{Major: d.Major, Minor: d.Minor})...)
		}
	}
	return out
}

func (l layout) device(d IOLimit) []change {
	name := fmt.Sprintf("%d:%d ", d.Major, d.Minor)
	if l.v2("io") {
		return []change{{"io", "io.max", name + "riops=" + orMax(d.ReadIOPS) + " wiops=" + orMax(d.WriteIOPS) +
			" rbps=" + orMax(int64(d.ReadRate)) + " wbps=" + orMax(int64(d.WriteRate))}}
	}
	var out []change
	for i, n := range [...]int64{d.ReadIOPS, d.WriteIOPS, int64(d.ReadRate), int64(d.WriteRate)} {
		out = append(out, change{"blkio", throttleFiles[i], name + number(n)})
	}
	return out
}

func number(n int64) string { return strconv.FormatInt(n, 10) }

func orMax(n int64) string {
	if n <= 0 {
		return "max"
	}
	return number(n)
}

func orNone(n api.Bytes) string {
	if n <= 0 {
		return noLimit
	}
	return number(int64(n))
}

// cpuList writes CPUs as cpuset(7) lists them: "0-2,5".
func cpuList(cpus []int) string {
	cpus = slices.Compact(slices.Sorted(slices.Values(cpus)))
	var parts []string
	for i := 0; i < len(cpus); {
		j := i
		for j+1 < len(cpus) && cpus[j+1] == cpus[j]+1 {
			j++
		}
		part := strconv.Itoa(cpus[i])
		if j > i {
			part += "-" + strconv.Itoa(cpus[j])
		}
		parts = append(parts, part)
		i = j + 1
	}
	return strings.Join(parts, ",")
}

// needs lists the controllers that limits can't do without.
func (l layout) needs(to Limits) []string {
	var out []string
	for _, n := range []struct {
		needed bool
		v1, v2 string
	}{
		{to.Shares > 0 || to.CPUCap > 0, "cpu", "cpu"},
		{len(to.CPUSet) > 0, "cpuset", "cpuset"},
		{to.MemoryLimit > 0 || to.MemoryLow > 0, "memory", "memory"},
		{to.HugePages > 0, "hugetlb", "hugetlb"},
		{to.PIDs > 0, "pids", "pids"},
		{len(to.IO) > 0, "blkio", "io"},
	} {
		if !n.needed {
			continue
		}
		if n.v1 != n.v2 && l.v2(n.v2) {
			out = append(out, n.v2)
		} else {
			out = append(out, n.v1)
		}
	}
	return out
}
