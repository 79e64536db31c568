// Package ledger counts what is promised: of hosts, to tenants, and the addresses of networks. It is pure: a change
// takes the ledger as it is and returns the ledger as it would be, or says exactly what is short. The values are the
// store's records; whoever commits one checks that the record is still what the change started from.
package ledger

import (
	"fmt"
	"maps"
	"math"
	"math/bits"
	"slices"

	"github.com/croftproject/croft/api"
)

// Host is what is promised of one host.
type Host struct {
	Servers   int            `json:"servers"`
	CPU       api.MilliCPU   `json:"cpu"`    // entitlements, without dedicated CPUs
	Memory    api.Bytes      `json:"memory"` // without huge pages
	HugePages api.Bytes      `json:"hugePages,omitempty"`
	Disk      api.Bytes      `json:"disk"`
	Bandwidth api.BitRate    `json:"bandwidth,omitempty"` // committed on the uplink, to all tenants
	CPUs      map[int]string `json:"cpus,omitempty"`      // dedicated CPUs, and the servers that have them
}

// MaxServers is how many servers a host takes at most: each has 65,536 user ids of its own, of the 4,294,967,296 there are,
// and the host and its users have some too.
const MaxServers = 16384

// Room is what a host has, and how much of it may be promised.
type Room struct {
	Name       string        // of the host
	Capacity   api.Resources // Servers is unused
	CPUs       []int         // the host's CPUs that can be dedicated
	Reserve    api.Reserve
	Overcommit api.Overcommit // percent
	// Uplink is the rate that the host's uplink carries in each direction; zero: it is not known, and nothing is committed.
	// Committable is how much of it may be, in percent.
	Uplink      api.BitRate
	Committable int
}

// Promisable is the rate that may be committed on the uplink.
func (r Room) Promisable() api.BitRate { return times(r.Uplink, r.Committable) }

// Ask is what a server is to be promised. The zero Ask is nothing.
type Ask struct {
	Server    string
	CPU       api.MilliCPU // entitlement; of a server with dedicated CPUs, 1000 for each
	Memory    api.Bytes    // with the engine's overhead, without huge pages
	HugePages api.Bytes
	Disk      api.Bytes
	// Dedicated is how many CPUs the server is to have for itself. Held are those that it has already.
	Dedicated int
	Held      []int
}

// shared is what is promised of the CPUs that are not dedicated.
func (a Ask) shared() api.MilliCPU {
	if a.Dedicated > 0 {
		return 0
	}
	return a.CPU
}

// Allocatable is what may be promised in all: capacity less reserve, times overcommit. Huge pages are as many as there
// are: the host's own work has none, and the kernel can't swap them.
func (r Room) Allocatable() api.Resources {
	return api.Resources{
		Servers:   MaxServers,
		CPU:       times(r.Capacity.CPU-r.Reserve.CPU, r.Overcommit.CPU),
		Memory:    times(r.Capacity.Memory-r.Reserve.Memory, r.Overcommit.Memory),
		HugePages: r.Capacity.HugePages,
		Disk:      times(r.Capacity.Disk-r.Reserve.Disk, r.Overcommit.Disk),
	}
}

// Allocated is what is promised in all.
func (h Host) Allocated() api.Resources {
	return api.Resources{
		Servers: h.Servers, CPU: h.CPU + api.MilliCPU(len(h.CPUs))*api.CPU1, Memory: h.Memory,
		HugePages: h.HugePages, Disk: h.Disk,
	}
}

// Free is what can still be promised to servers without dedicated CPUs; never negative.
func (h Host) Free(r Room) api.Resources {
	all := r.Allocatable()
	return api.Resources{
		Servers:   max(0, MaxServers-h.Servers),
		CPU:       max(0, h.sharedCPU(r, 0)-h.CPU),
		Memory:    max(0, all.Memory-h.Memory),
		HugePages: max(0, all.HugePages-h.HugePages),
		Disk:      max(0, all.Disk-h.Disk),
	}
}

// sharedCPU is what may be promised of the CPUs that are not dedicated, were more of them to be. Dedicated CPUs are
// never promised twice over.
func (h Host) sharedCPU(r Room, more int) api.MilliCPU {
	dedicated := api.MilliCPU(len(h.CPUs)+more) * api.CPU1
	return times(r.Capacity.CPU-r.Reserve.CPU-dedicated, r.Overcommit.CPU)
}

// Change replaces one promise by another; either may be nothing. It returns the new ledger and the dedicated CPUs of the
// new promise, or everything that is short. What does not grow is never short: a host whose capacity was lowered below
// what is promised still lets servers shrink and go.
func (h Host) Change(r Room, from, to Ask) (Host, []int, []api.Shortage) {
	rest := h.release(from)
	next := rest
	var short []api.Shortage
	all := r.Allocatable()

	if to.Server != "" && from.Server == "" && rest.Servers >= MaxServers {
		short = append(short, Short("servers", r.Name, int64(1), 0))
	}
	cpus, free := rest.dedicate(r, from, to)
	if len(cpus) < to.Dedicated {
		short = append(short, shortage("host-cpu", r.Name, fmt.Sprint(to.Dedicated), fmt.Sprint(free), fmt.Sprint(to.Dedicated-free)))
	}
	next.CPU = rest.CPU + to.shared()
	if exceeds(rest.CPU, to.shared(), rest.sharedCPU(r, to.Dedicated)) && (to.shared() > from.shared() || to.Dedicated > from.Dedicated) {
		short = append(short, Short("cpu", r.Name, to.CPU, rest.sharedCPU(r, 0)-rest.CPU))
	}
	next.Memory = rest.Memory + to.Memory
	if exceeds(rest.Memory, to.Memory, all.Memory) && to.Memory > from.Memory {
		short = append(short, Short("memory", r.Name, to.Memory, all.Memory-rest.Memory))
	}
	next.HugePages = rest.HugePages + to.HugePages
	if exceeds(rest.HugePages, to.HugePages, all.HugePages) && to.HugePages > from.HugePages {
		short = append(short, Short("huge-pages", r.Name, to.HugePages, all.HugePages-rest.HugePages))
	}
	next.Disk = rest.Disk + to.Disk
	if exceeds(rest.Disk, to.Disk, all.Disk) && to.Disk > from.Disk {
		short = append(short, Short("disk", r.Name, to.Disk, all.Disk-rest.Disk))
	}
	if len(short) > 0 {
		return h, nil, short
	}
	if to.Server != "" {
		next.Servers++
	}
	next.CPUs = maps.Clone(rest.CPUs)
	for _, cpu := range cpus {
		if next.CPUs == nil {
			next.CPUs = make(map[int]string)
		}
		next.CPUs[cpu] = to.Server
	}
	return next, cpus, nil
}

// release takes a promise back.
func (h Host) release(a Ask) Host {
	if a.Server == "" {
		return h
	}
	h.Servers--
	h.CPU -= a.shared()
	h.Memory -= a.Memory
	h.HugePages -= a.HugePages
	h.Disk -= a.Disk
	h.CPUs = maps.Clone(h.CPUs)
	maps.DeleteFunc(h.CPUs, func(_ int, server string) bool { return server == a.Server })
	if len(h.CPUs) == 0 {
		h.CPUs = nil
	}
	return h
}

// dedicate chooses the CPUs of the new promise. One that wants no more than it has keeps them, whatever the host has by now.
func (h Host) dedicate(r Room, from, to Ask) (cpus []int, free int) {
	if to.Dedicated <= min(from.Dedicated, len(to.Held)) {
		return slices.Clone(to.Held[:to.Dedicated]), to.Dedicated
	}
	return h.pick(r, to)
}

// pick chooses the CPUs to dedicate: those held already, then the highest, since a host's own work gathers on the
// lowest. It returns how many are free, too.
func (h Host) pick(r Room, a Ask) (picked []int, free int) {
	left := int((r.Capacity.CPU - r.Reserve.CPU) / api.CPU1) // whole CPUs that guests may have
	left = max(0, left-len(h.CPUs))
	var open []int
	for _, cpu := range r.CPUs {
		if _, taken := h.CPUs[cpu]; !taken {
			open = append(open, cpu)
		}
	}
	free = min(left, len(open))
	slices.SortFunc(open, func(x, y int) int {
		if hx, hy := slices.Contains(a.Held, x), slices.Contains(a.Held, y); hx != hy {
			if hx {
				return -1
			}
			return 1
		}
		return y - x
	})
	picked = append(picked, open[:max(0, min(a.Dedicated, free))]...)
	slices.Sort(picked)
	return picked, free
}

// Short says what is short of a quantity: free may be negative, where more is promised than there is.
func Short[Q ~int64](resource, where string, asked, free Q) api.Shortage {
	free = max(0, free)
	return shortage(resource, where, quantity(resource, int64(asked)), quantity(resource, int64(free)), quantity(resource, int64(asked-free)))
}

func shortage(resource, where, asked, free, short string) api.Shortage {
	return api.Shortage{Resource: resource, Where: where, Asked: asked, Free: free, Short: short}
}

func quantity(resource string, n int64) string {
	switch resource {
	case "cpu":
		return api.MilliCPU(n).String()
	case "memory", "huge-pages", "disk":
		return api.Bytes(n).String()
	case "bandwidth":
		return api.BitRate(n).String()
	}
	return fmt.Sprint(n)
}

// times is n × percent / 100, never negative, at most what fits in 63 bits.
func times[Q ~int64](n Q, percent int) Q {
	if n <= 0 || percent <= 0 {
		return 0
	}
	hi, lo := bits.Mul64(uint64(n), uint64(percent))
	if hi >= 100 {
		return math.MaxInt64
	}
	quotient, _ := bits.Div64(hi, lo, 100)
	if quotient > math.MaxInt64 {
		return math.MaxInt64
	}
	return Q(quotient)
}

// exceeds tells whether a + b is more than limit; neither is negative, and their sum may not fit in 63 bits.
func exceeds[Q ~int64](a, b, limit Q) bool { return b > limit-a }
