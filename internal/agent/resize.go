package agent

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/state"
)

// resize carries changes of the spec over to a running guest. What the engine can't change live waits for the next
// start, and the status says so.
func (a *Agent) resize(ctx context.Context, m *machine, rec *state.Server) error {
	l := m.remembered()
	if l.Spec == nil || reflect.DeepEqual(live(l.Spec), live(&rec.Spec)) {
		a.status.waiting(m.id, "")
		return nil
	}
	e, err := a.engine(rec.Engine)
	if err != nil {
		return err
	}
	next := *l.Spec
	next.CPU, next.Memory, next.PIDs, next.Disk = rec.Spec.CPU, rec.Spec.Memory, rec.Spec.PIDs, rec.Spec.Disk
	applied := *rec
	if next.Memory.Limit > l.Spec.Memory.Limit { // room first, for a guest that takes it at once
		applied.Spec = next
		if err := a.divider.admit(m.id, &applied, e); err != nil {
			return fmt.Errorf("change limits: %w", err)
		}
	}
	if err := a.resizable(ctx, m, e.Traits().Root, l.Spec, &next); err != nil {
		if !errors.Is(err, engine.ErrUnsupported) {
			return err
		}
		// What the guest's kernel would have to take part in stays; what its cgroup does by itself is changed.
		a.status.waiting(m.id, explain(err))
		next.CPU.Count, next.Memory, next.Disk.Size = l.Spec.CPU.Count, l.Spec.Memory, l.Spec.Disk.Size
	} else {
		a.status.waiting(m.id, "")
	}
	applied.Spec = next
	if err := a.divider.admit(m.id, &applied, e); err != nil {
		return fmt.Errorf("change limits: %w", err)
	}
	if score := engine.OOMScore(&next); score != engine.OOMScore(l.Spec) {
		if err := a.Cgroups.SetOOMScore(m.id, score); err != nil {
			return fmt.Errorf("change limits: %w", err)
		}
	}
	return m.update(func(l *local) { l.Spec = &next })
}

// unchanged tells that a change of a running server could not be carried out, and is tried again: its status goes on to
// speak of the spec that holds.
func (a *Agent) unchanged(ctx context.Context, m *machine, rec *state.Server, revision int64, w want, cause error) {
	if a.status.failing(m.id, revision, explain(cause)) {
		a.event(rec, "ChangeFailed", explain(cause), true)
	}
	a.report(m, rec, a.status.observed(ctx, m.id), w)
}

// resizable asks the guest, and the pool, for the change.
func (a *Agent) resizable(ctx context.Context, m *machine, root engine.RootKind, from, to *api.ServerSpec) error {
	g, _ := m.guestOf()
	guest := from.CPU.Count != to.CPU.Count || from.Memory != to.Memory || from.Disk.Size != to.Disk.Size
	if to.Disk.Size > from.Disk.Size && root != engine.RootTree {
		return fmt.Errorf("%w: the disk grows at the next start", engine.ErrUnsupported) // the guest has it open
	}
	if r, ok := g.(engine.Resizer); ok {
		if err := r.Resize(ctx, from, to); err != nil {
			return err
		}
	} else if guest {
		return fmt.Errorf("%w: takes effect at the next start", engine.ErrUnsupported)
	}
	if to.Disk.Size > from.Disk.Size {
		return a.Pool.Grow(ctx, m.id, to.Disk.Size)
	}
	return nil
}

// live is the part of a spec that may change while the guest runs.
func live(s *api.ServerSpec) api.ServerSpec {
	return api.ServerSpec{CPU: s.CPU, Memory: s.Memory, PIDs: s.PIDs, Disk: s.Disk}
}
