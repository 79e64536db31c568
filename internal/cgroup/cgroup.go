// Package cgroup divides the host among servers: one control group per server below one for the whole daemon, on
// cgroup v1, hybrid and v2 hosts alike (cgroups(7)). An engine's processes run in a child of the server's group, so the
// same limits hold whatever the model.
package cgroup

import (
	"time"

	"github.com/croftproject/croft/api"
)

// Limits are what a group may use. A zero field is no limit.
type Limits struct {
	// Shares is the group's share of CPU under contention, relative to its siblings', in thousandths of a CPU: a sibling
	// with twice the shares gets twice the time. It is translated to cpu.shares or cpu.weight.
	Shares int64
	// CPUCap is the most CPU that the group gets.
	CPUCap api.MilliCPU
	// CPUSet are the host CPUs that it may run on; empty is all.
	CPUSet []int
	// MemoryLimit is the most memory, with the engine's overhead; MemoryLow is kept for the group under pressure.
	MemoryLimit, MemoryLow api.Bytes
	// HugePages is how much of the default huge page size it may use.
	HugePages api.Bytes
	PIDs      int64
	IO        []IOLimit
}

// IOLimit caps I/O on one block device.
type IOLimit struct {
	Major, Minor        int64
	ReadIOPS, WriteIOPS int64
	ReadRate, WriteRate api.Bytes // a second
}

// Usage is what a group has used.
type Usage struct {
	CPUTime       time.Duration
	Memory        api.Bytes // without page cache that can be dropped
	PIDs          int64
	Read, Written api.Bytes
	OOMKills      int64
}
