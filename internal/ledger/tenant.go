package ledger

import (
	"math"

	"github.com/croftproject/croft/api"
)

// Tenant is what a tenant has, with all tenants below it in the tree.
type Tenant struct {
	Usage
	Tenants int `json:"tenants,omitempty"` // tenants right below it
}

// Usage is an amount of everything that quotas limit. Memory is without the engines' overhead.
type Usage struct {
	api.Resources
	Networks int `json:"networks"`
	Images   int `json:"images"`
	// Bandwidth is the sum of the networks' committed rates.
	Bandwidth api.BitRate `json:"bandwidth,omitempty"`
}

// Change replaces one usage by another, or says everything that the quota is short of. What does not grow is never short.
func (t Tenant) Change(name string, q api.Quota, from, to Usage) (Tenant, []api.Shortage) {
	var short []api.Shortage
	next := t
	next.Servers = count(&short, "servers", name, t.Servers, from.Servers, to.Servers, q.Servers)
	next.CPU = amount(&short, "cpu", name, t.CPU, from.CPU, to.CPU, q.CPU)
	next.Memory = amount(&short, "memory", name, t.Memory, from.Memory, to.Memory, q.Memory)
	next.Disk = amount(&short, "disk", name, t.Disk, from.Disk, to.Disk, q.Disk)
	next.Networks = count(&short, "networks", name, t.Networks, from.Networks, to.Networks, q.Networks)
	next.Images = count(&short, "images", name, t.Images, from.Images, to.Images, q.Images)
	next.Bandwidth = amount(&short, "bandwidth", name, t.Bandwidth, from.Bandwidth, to.Bandwidth, q.Bandwidth)
	if len(short) > 0 {
		return t, short
	}
	return next, nil
}

func amount[Q ~int64](short *[]api.Shortage, resource, where string, have, from, to Q, limit *Q) Q {
	rest := have - from
	most := Q(math.MaxInt64)
	if limit != nil {
		most = *limit
	}
	if exceeds(rest, to, most) && to > from {
		*short = append(*short, Short(resource, where, to, most-rest))
	}
	return rest + to
}

func count(short *[]api.Shortage, resource, where string, have, from, to int, limit *int) int {
	var wide *int64
	if limit != nil {
		n := int64(*limit)
		wide = &n
	}
	return int(amount(short, resource, where, int64(have), int64(from), int64(to), wide))
}

// Empty tells whether nothing is counted.
func (t Tenant) Empty() bool { return t == Tenant{} }
