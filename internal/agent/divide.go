package agent

import (
	"slices"

	"github.com/croftproject/croft/api"
)

// claim is a running server's claim on the host's processors.
type claim struct {
	ID          string
	Entitlement api.MilliCPU
	Weight      int   // 0: in proportion to the entitlement
	Dedicated   []int // host CPUs of its own; empty: the common ones
}

// portion is what a claim comes to.
type portion struct {
	Shares int64 // of CPU time under contention, relative to the others'
	CPUs   []int // host CPUs that it may run on; nil: all
}

// divide shares the host CPUs, of which capacity may be used by guests, among claims. Admission keeps the sum of
// entitlements within the capacity, so shares in proportion to them give each at least its entitlement; what is left
// goes by weight:
//
//	shares = entitlement + left · weight / Σ weight
//
// Where nobody has a weight of its own, that is in proportion to the entitlements, whoever else runs: then a start or a
// stop changes nobody's shares. Dedicated CPUs are taken from everybody else's.
func divide(cpus []int, capacity api.MilliCPU, claims []claim) map[string]portion {
	var entitled, weights int64
	weighted := false
	for _, c := range claims {
		if len(c.Dedicated) > 0 {
			capacity -= api.MilliCPU(len(c.Dedicated)) * api.CPU1
			continue
		}
		entitled += int64(c.Entitlement)
		weights += c.weight()
		weighted = weighted || c.Weight > 0
	}
	left := max(0, int64(capacity)-entitled)
	common := commonCPUs(cpus, claims)
	out := make(map[string]portion, len(claims))
	for _, c := range claims {
		if len(c.Dedicated) > 0 {
			out[c.ID] = portion{Shares: int64(len(c.Dedicated)) * int64(api.CPU1), CPUs: c.Dedicated}
			continue
		}
		shares := int64(c.Entitlement)
		if weighted && weights > 0 {
			shares += left * c.weight() / weights
		}
		out[c.ID] = portion{Shares: max(1, shares), CPUs: common}
	}
	return out
}

// commonCPUs are those of cpus that nobody has for itself; nil: all.
func commonCPUs(cpus []int, claims []claim) []int {
	var taken, common []int
	for _, c := range claims {
		taken = append(taken, c.Dedicated...)
	}
	if len(taken) == 0 {
		return nil
	}
	for _, cpu := range cpus {
		if !slices.Contains(taken, cpu) {
			common = append(common, cpu)
		}
	}
	return common
}

// weight of a claim: 100 is that of an entitlement of one CPU.
func (c claim) weight() int64 {
	if c.Weight > 0 {
		return int64(c.Weight)
	}
	return max(1, int64(c.Entitlement)/10)
}
