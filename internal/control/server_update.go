package control

import (
	"context"
	"fmt"
	"slices"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/state"
)

// Update replaces a server's labels and spec, and its name where that differs. What the change needs of the host and of
// the quota is admitted as by a create, by the difference.
func (c servers) Update(ctx context.Context, who httpapi.Caller, tenant, name string, u httpapi.Update[api.ServerSpec]) (*api.Server, error) {
	if err := authorize(who, tenant); err != nil {
		return nil, err
	}
	var id string
	_, err := c.admit(ctx, func(d *draft) error {
		e := d.ix.tables[kindServer].named(tenant, name)
		if e == nil {
			return missing(kindServer, tenant, name)
		}
		id = e.meta.ID
		old := d.ix.servers[id].v
		if err := matchRevision(kindServer, e.meta, u.Revision); err != nil {
			return err
		}
		if !old.Intent.Delete.IsZero() {
			return api.Errorf(api.CodeWrongState, "server %s is being deleted", old.Meta.Name)
		}
		return c.rewrite(d, who, e.obj.(*api.Server), old, u)
	})
	if err != nil {
		return nil, err
	}
	return shown[api.Server](c.Control, kindServer, id)
}

// rewrite makes the new record of a server.
func (c *Control) rewrite(d *draft, who httpapi.Caller, now *api.Server, old *state.Server, u httpapi.Update[api.ServerSpec]) error {
	next := *old
	next.Spec = cloneSpec(u.Spec)
	next.Meta.Labels = u.Labels
	if u.Name != "" {
		next.Meta.Name = u.Name
	}
	forget(&next.Spec, &old.Spec, old.Derived)
	keepLeftOut(&next, old)
	if err := checkImmutable(d.ix, &next, old); err != nil {
		return err
	}
	if err := c.compose(d, &next, old); err != nil {
		return err
	}
	if same(&next, old) {
		d.Puts, d.Deletes = nil, nil // nothing to write
		return nil
	}
	if err := changeable(d.ix, now, &next.Spec, old); err != nil {
		return err
	}
	if next.Spec.State != old.Spec.State {
		setPower(&next, next.Spec.State, false)
	}
	d.put(state.Servers+old.Meta.ID, &next)
	if next.Meta.Name != old.Meta.Name {
		d.name(kindServer, old.Meta.Tenant, next.Meta.Name, old.Meta.ID)
		d.unname(kindServer, old.Meta.Tenant, old.Meta.Name)
	}
	c.event(d, who, kindServer, &next.Meta, "Updated", "")
	return nil
}

// keepLeftOut gives fields that can't change, or only grow, and were left out, the values that they have.
func keepLeftOut(s, old *state.Server) {
	either(&s.Spec.Model, old.Spec.Model)
	either(&s.Spec.Image, old.Spec.Image)
	either(&s.Spec.Engine, old.Spec.Engine)
	either(&s.Spec.Host, old.Spec.Host)
	either(&s.Spec.Disk.Size, old.Spec.Disk.Size)
}

func checkImmutable(ix *index, s, old *state.Server) error {
	var f faults
	if s.Spec.Model != old.Spec.Model {
		f.add("/spec/model", "can't be changed from %s; create a server of the other model from the same image", old.Spec.Model)
	}
	if s.Spec.Image != old.Spec.Image {
		if r, ok := ix.image(old.Meta.Tenant, s.Spec.Image); !ok || r.v.Meta.ID != old.ImageID {
			f.add("/spec/image", "can't be changed: the root disk was made from it")
		}
	}
	if s.Spec.Engine != old.Spec.Engine && s.Spec.Engine != old.Engine && s.Spec.Engine != api.EngineAuto {
		f.add("/spec/engine", "can't be changed from %s", old.Engine)
	}
	if s.Spec.Host != old.Spec.Host && s.Spec.Host != old.Host {
		f.add("/spec/host", "can't be changed: the server is on host %s", old.Host)
	}
	if s.Spec.Disk.Size < old.Spec.Disk.Size {
		f.add("/spec/disk/size", "is %s; a disk of %s can't shrink", s.Spec.Disk.Size, old.Spec.Disk.Size)
	}
	return f.err()
}

// still tells whether the server has no guest that a change could be too late for, and none is on its way: a phase alone
// is what was, when its host reported last.
func still(ix *index, now *api.Server, old *state.Server) bool {
	if old.Spec.State != api.StateStopped {
		return false
	}
	switch now.Status.Phase {
	case api.PhasePending:
		return true
	case api.PhaseStopped, api.PhaseFailed, api.PhaseBackoff:
		return old.Intent.Start <= or(ix.statuses[old.Meta.ID]).StartSeen
	}
	return false
}

// changeable refuses changes that a running guest would not see. Everything that the host's control groups do (CPU
// shares and caps, I/O limits, processes) changes live under every engine; memory and the number of CPUs where the
// engine can resize; the disk where it can grow; the rest needs the server to be stopped. Memory only grows: what a
// guest uses it need not give back (a control group of version 1 refuses a limit below it), and then the host would have
// promised it twice.
func changeable(ix *index, now *api.Server, next *api.ServerSpec, old *state.Server) error {
	if still(ix, now, old) {
		return nil
	}
	was := &old.Spec
	var f faults
	can := abilities(ix, old)
	resizes, grows := slices.Contains(can, "resize"), slices.Contains(can, "grow")
	refuse := func(pointer, what string) {
		f = append(f, api.FieldError{Pointer: pointer, Code: api.CodeWrongState, Message: fmt.Sprintf(
			"can't be %s while the server is %s under engine %s: stop it first", what, now.Status.Phase, old.Engine)})
	}
	cold := func(pointer string, changed, live bool) {
		if changed && !live {
			refuse(pointer, "changed")
		}
	}
	cold("/spec/cpu/count", next.CPU.Count != was.CPU.Count, resizes)
	cold("/spec/cpu/dedicated", next.CPU.Dedicated != was.CPU.Dedicated, resizes)
	if next.Memory.Limit < was.Memory.Limit {
		refuse("/spec/memory/limit", "lowered")
	}
	cold("/spec/memory/limit", next.Memory.Limit > was.Memory.Limit, resizes)
	cold("/spec/memory/hugePages", next.Memory.HugePages != was.Memory.HugePages, false)
	cold("/spec/disk/size", next.Disk.Size != was.Disk.Size, grows)
	cold("/spec/ports", !same(next.Ports, was.Ports), false)
	cold("/spec/grants", !same(next.Grants, was.Grants), false)
	cold("/spec/firmware", next.Firmware != was.Firmware, false)
	cold("/spec/devices", next.Devices != was.Devices, false)
	cold("/spec/cdrom", next.CDROM != was.CDROM, false)
	cold("/spec/app", !same(next.App, was.App), false)
	cold("/spec/guest", !same(next.Guest, was.Guest), false)
	return f.err()
}

// abilities of the engine that a server runs under, on its host.
func abilities(ix *index, s *state.Server) []string { return ix.engineStatus(s).Abilities }

// engineStatus is what a server's host found of the engine that the server runs under; zero where it has not reported it.
func (ix *index) engineStatus(s *state.Server) api.EngineStatus {
	for _, e := range or(ix.hostStatuses[s.HostID]).Engines {
		if e.Name == s.Engine {
			return e
		}
	}
	return api.EngineStatus{}
}
