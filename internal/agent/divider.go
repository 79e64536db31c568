package agent

import (
	"fmt"
	"reflect"
	"sync"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/cgroup"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/state"
)

// divider keeps the limits of all running servers' cgroups: what each asked for, and its portion of the processors,
// which depends on the others.
type divider struct {
	a  *Agent
	mu sync.Mutex
	by map[string]member
}

type member struct {
	claim  claim
	limits cgroup.Limits // with shares and CPU set
}

func newDivider(a *Agent) *divider { return &divider{a: a, by: map[string]member{}} }

// admit makes a server's cgroup, or changes its limits, and those of others where it takes something from them. Limits that
// can't be kept on this host are refused: engine.ErrUnsupported.
func (d *divider) admit(id string, rec *state.Server, e engine.Engine) error {
	if throttled(&rec.Spec) && d.a.ioDev == [2]int64{} {
		return fmt.Errorf("%w: I/O limits can't be kept here: the file system of the pool has no block device of its own; "+
			"leave disk operations and rates out, or have the state directory on a file system such as ext4 or XFS", engine.ErrUnsupported)
	}
	d.adopt(id, rec, e)
	return d.apply(id)
}

// adopt takes a server in whose cgroup exists; wake writes what differs.
func (d *divider) adopt(id string, rec *state.Server, e engine.Engine) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.by[id] = member{
		claim:  claim{ID: id, Entitlement: rec.Spec.CPU.Entitlement, Weight: rec.Spec.CPU.Weight, Dedicated: rec.CPUs},
		limits: limits(&rec.Spec, e.Overhead(&rec.Spec), d.a.ioDev),
	}
}

// leave forgets a server; what it had is divided anew.
func (d *divider) leave(id string) {
	d.mu.Lock()
	_, there := d.by[id]
	delete(d.by, id)
	d.mu.Unlock()
	if there {
		d.wake()
	}
}

// Divide shares the processors anew: what guests may use of them has changed.
func (a *Agent) Divide() { a.divider.wake() }

func (d *divider) wake() {
	if err := d.apply(""); err != nil {
		d.a.Logger.Error("divide the processors", "error", err)
	}
}

// CommonCPUs are the host CPUs for what is no server's; nil: all.
func (a *Agent) CommonCPUs() []int {
	a.divider.mu.Lock()
	defer a.divider.mu.Unlock()
	var claims []claim
	for _, m := range a.divider.by {
		claims = append(claims, m.claim)
	}
	return commonCPUs(a.CPUs, claims)
}

// apply divides the processors and writes the limits of id, and of every other server whose portion changed.
func (d *divider) apply(id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	claims := make([]claim, 0, len(d.by))
	for _, m := range d.by {
		claims = append(claims, m.claim)
	}
	portions := divide(d.a.CPUs, d.a.Capacity(), claims)
	for other, m := range d.by {
		p := portions[other]
		next := m.limits
		next.Shares, next.CPUSet = p.Shares, p.CPUs
		if other != id && m.limits.Shares != 0 && reflect.DeepEqual(next, m.limits) {
			continue
		}
		if err := d.a.Cgroups.Set(other, next); err != nil {
			if other == id {
				return err
			}
			d.a.Logger.Error("change the portion of a server", "server", other, "error", err)
			continue
		}
		m.limits = next
		d.by[other] = m
	}
	return nil
}

// limits of a server's cgroup, without its portion of the processors.
func limits(s *api.ServerSpec, overhead api.Bytes, dev [2]int64) cgroup.Limits {
	l := cgroup.Limits{
		CPUCap: s.CPU.Cap, MemoryLimit: s.Memory.Limit + overhead, MemoryLow: s.Memory.Reservation, PIDs: s.PIDs,
	}
	if s.Memory.HugePages {
		l.HugePages = s.Memory.Limit
	}
	if d := s.Disk; dev != [2]int64{} && throttled(s) {
		l.IO = []cgroup.IOLimit{{
			Major: dev[0], Minor: dev[1],
			ReadIOPS: d.ReadIOPS, WriteIOPS: d.WriteIOPS, ReadRate: d.ReadRate, WriteRate: d.WriteRate,
		}}
	}
	return l
}

// throttled tells whether a spec limits I/O.
func throttled(s *api.ServerSpec) bool {
	d := s.Disk
	return d.ReadIOPS > 0 || d.WriteIOPS > 0 || d.ReadRate > 0 || d.WriteRate > 0
}
