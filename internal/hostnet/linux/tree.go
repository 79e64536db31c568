package linux

import (
	"maps"
	"math"
	"slices"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/hostnet"
)

// class is one of a hierarchical token bucket (tc-htb(8)): what passes through it is sent at Rate whatever other classes
// do, and borrows from its parent up to Ceil.
type class struct {
	Minor, Parent uint16 // numbers of it and of its parent; 0 is the bucket itself
	Rate, Ceil    api.BitRate
	Burst, Cburst api.Bytes // that may be sent at once, at Rate and at Ceil
	// Of a class without parts:
	Quantum int       // bytes sent in a turn, when classes borrow
	Queue   api.Bytes // that wait at most
}

// Numbers of classes that are always there. Those of tenants and networks follow.
const (
	wholeClass = 1 // the uplink
	hostClass  = 2 // the host's own traffic, and all that is nobody else's
	firstClass = 0x18
	lastClass  = 0xbfff
)

// usable tells whether a number is one of a tenant's or network's class. A packet keeps it as its priority when it has left
// the bucket, of which people's queues on the uplink may look at the last four bits: 8 to 15 mean nothing to pfifo_fast(8)
// and its like.
func usable(minor uint16) bool { return minor >= firstClass && minor <= lastClass && minor&8 != 0 }

const (
	// leastRate is the rate of what has none committed: a class must have one. It is taken from the host's own.
	leastRate api.BitRate = 1000
	// unlimited is what stands for a rate that is not known.
	unlimited api.BitRate = 1e13
	// packet is the most that the kernel sends at once, as a bunch of segments. Classes take turns by bunches at least, so
	// that less in a turn makes no difference.
	packet = 64 << 10
	// mostQuantum bounds a turn.
	mostQuantum = 256 * packet
)

// tree plans the classes of an uplink, parents first. It is pure. minors has the number of each tenant and network, by
// tenantKey and networkKey.
func tree(s hostnet.Shares, minors map[string]uint16) []class {
	whole := s.Rate
	if whole == 0 {
		whole = unlimited
	}
	smallest := smallestCommitted(s)
	var classes []class
	var spared api.BitRate // for those with nothing committed
	for _, t := range s.Tenants {
		c := newClass(t.Profile, minors[tenantKey(t.ID)], wholeClass, whole)
		var parts []class
		var sum, committed api.BitRate
		for _, n := range t.Networks {
			part := newClass(n.Profile, minors[networkKey(n.ID)], c.Minor, c.Ceil)
			part.Quantum, part.Queue = quantum(n.Committed, smallest), queue(part.Rate)
			parts = append(parts, part)
			sum += part.Rate
			committed += n.Committed
		}
		c = c.atLeast(sum)
		spared += c.Rate - max(t.Committed, committed)
		classes = append(append(classes, c), parts...)
	}
	host := newClass(hostnet.Profile{Committed: max(leastRate, s.Reserved-spared)}, hostClass, wholeClass, whole)
	host.Quantum, host.Queue = quantum(s.Reserved, smallest), queue(host.Rate)
	classes = slices.Concat([]class{newClass(hostnet.Profile{Committed: whole}, wholeClass, 0, whole), host}, classes)
	for i, c := range classes {
		if c.Burst == 0 {
			c.Burst, c.Cburst = burst(c.Rate), burst(c.Ceil)
		}
		classes[i].Burst, classes[i].Cburst = min(c.Burst, mostBurst(c.Rate)), min(c.Cburst, mostBurst(c.Ceil))
	}
	return classes
}

// newClass makes a class of a profile. Its peak is no more than what carries it.
func newClass(p hostnet.Profile, minor, parent uint16, carried api.BitRate) class {
	c := class{Minor: minor, Parent: parent, Ceil: carried, Burst: p.Burst, Cburst: p.Burst}
	if p.Peak > 0 {
		c.Ceil = min(p.Peak, carried)
	}
	return c.atLeast(max(p.Committed, leastRate))
}

// atLeast is the class with no less than a rate.
func (c class) atLeast(rate api.BitRate) class {
	c.Rate = max(c.Rate, rate)
	c.Ceil = max(c.Ceil, c.Rate)
	return c
}

// burst is what may pass at once where no profile says it: as much as in two milliseconds, and no less than a bunch of
// segments.
func burst(rate api.BitRate) api.Bytes { return max(packet, api.Bytes(rate/8/500)) }

// mostBurst is what passes in 200 seconds: the kernel counts bursts as time, in 32 bits of 64 ns.
func mostBurst(rate api.BitRate) api.Bytes { return api.Bytes(rate / 8 * 200) }

// queue is how much waits: what passes in a tenth of a second at the rate that is always had, and some bunches of segments.
func queue(rate api.BitRate) api.Bytes { return max(16*packet, api.Bytes(rate/8/10)) }

// quantum is how much a class sends in a turn when it borrows: in proportion to what is committed to it, and least where
// nothing is.
func quantum(committed, smallest api.BitRate) int {
	if committed == 0 || smallest == 0 {
		return packet
	}
	return int(min(mostQuantum, max(packet, math.Round(2*packet*float64(committed)/float64(smallest)))))
}

func smallestCommitted(s hostnet.Shares) (smallest api.BitRate) {
	for _, t := range s.Tenants {
		for _, n := range t.Networks {
			if n.Committed > 0 && (smallest == 0 || n.Committed < smallest) {
				smallest = n.Committed
			}
		}
	}
	return smallest
}

func tenantKey(id string) string  { return "t/" + id }
func networkKey(id string) string { return "n/" + id }

// number gives each tenant and network a class of its own: those that had one keep it, so that no packet that is on its
// way falls into another's. False: there are more than there are numbers.
func number(s hostnet.Shares, had map[string]uint16) (map[string]uint16, bool) {
	wanted := map[string]bool{}
	for _, t := range s.Tenants {
		wanted[tenantKey(t.ID)] = true
		for _, n := range t.Networks {
			wanted[networkKey(n.ID)] = true
		}
	}
	out, used := map[string]uint16{}, map[uint16]bool{}
	for key, minor := range had {
		if wanted[key] && usable(minor) && !used[minor] {
			out[key], used[minor] = minor, true
		}
	}
	next := uint16(firstClass)
	for _, key := range slices.Sorted(maps.Keys(wanted)) {
		if _, ok := out[key]; ok {
			continue
		}
		for (used[next] || !usable(next)) && next <= lastClass {
			next++
		}
		if next > lastClass {
			return nil, false
		}
		out[key], used[next] = next, true
	}
	return out, true
}
