package cgroup

import (
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
)

// SetParent limits the whole. Memory that groups use is not taken from them: the limit goes down only as far as their use
// allows, and a later call comes nearer. It returns the limits that were set.
func (t *Tree) SetParent(l Limits) (Limits, error) {
	t.whole.Lock()
	defer t.whole.Unlock()
	var err error
	if l.MemoryLimit, err = t.attainable(l.MemoryLimit); err != nil {
		return l, err
	}
	const tries = 3 // a guest may set a quota of its own between the lift and the write
	for range tries {
		if err = t.lift(l.CPUCap); err == nil {
			err = t.set("", l)
		}
		if !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	if err != nil {
		return l, err
	}
	return l, t.refit()
}

// attainable is the lowest limit of the parent's memory, from limit on, that its groups can live with now: a lower one the
// kernel would refuse (v1), or end processes for (v2). It is never above the present one.
func (t *Tree) attainable(limit api.Bytes) (api.Bytes, error) {
	if limit <= 0 {
		return limit, nil
	}
	have, err := t.parentLimits()
	if err != nil || !above(have.MemoryLimit, limit) && have.MemoryLimit != 0 {
		return limit, err
	}
	used, err := t.inUse()
	if err != nil {
		return limit, err
	}
	least := used + used/8 // so that they don't meet the limit at once
	if have.MemoryLimit != 0 {
		least = min(least, have.MemoryLimit)
	}
	return max(limit, least), nil
}

// inUse is the memory of all groups that can't be dropped; with swap, where one limit holds for both (v1).
func (t *Tree) inUse() (api.Bytes, error) {
	u, err := t.Usage("")
	if err != nil || t.layout.v2("memory") || !t.layout.swap {
		return u.Memory, err
	}
	r := reader{mounts: t.mounts, path: t.parent}
	swapped := r.key("memory", "memory.stat", "total_swap")
	return u.Memory + api.Bytes(swapped), r.err
}

// parentLimits are the cap and the memory limit of the parent as last set, or as the kernel has them: v1 goes from limit to
// limit without a moment of none only where it is known.
func (t *Tree) parentLimits() (Limits, error) {
	g, unlock := t.lock("")
	defer unlock()
	if g.have != nil {
		return *g.have, nil
	}
	return t.readParent()
}

func (t *Tree) readParent() (Limits, error) {
	r := reader{mounts: t.mounts, path: t.parent}
	var l Limits
	const unlimited = 1 << 60 // v1 writes none as the greatest number of whole pages
	limit := "memory.limit_in_bytes"
	if t.layout.v2("memory") {
		limit = "memory.max"
	}
	if n := r.number("memory", limit); n < unlimited {
		l.MemoryLimit = api.Bytes(n)
	}
	quota, every := r.number("cpu", "cpu.cfs_quota_us"), r.number("cpu", "cpu.cfs_period_us")
	if f := strings.Fields(r.text("cpu", "cpu.max")); len(f) == 2 { // v2: "QUOTA PERIOD", or "max PERIOD"
		quota, every = number64(f[0]), number64(f[1])
	}
	if quota > 0 && every > 0 {
		l.CPUCap = api.MilliCPU(mulDiv(quota, 1000, every))
	}
	if errors.Is(r.err, fs.ErrNotExist) {
		return Limits{}, nil // it has gone, and is made with the next group
	}
	return l, r.err
}

// lift takes away the caps below the parent that exceed one it is to get: v1 refuses that one otherwise, and they mean
// nothing under it.
func (t *Tree) lift(limit api.MilliCPU) error {
	h, ok := t.mounts.find("cpu")
	if !ok || h.unified || limit <= 0 {
		return nil
	}
	most, every := quota(limit)
	for _, dir := range subtree(h.dir(t.parent)) {
		if dir == h.dir(t.parent) {
			continue
		}
		text, err := read(filepath.Join(dir, "cpu.cfs_quota_us"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has gone
		}
		if err != nil {
			return err
		}
		period, err := read(filepath.Join(dir, "cpu.cfs_period_us"))
		if err != nil {
			continue
		}
		if q := number64(text); q <= 0 || q*every <= most*number64(period) {
			continue
		}
		if err := write(filepath.Join(dir, "cpu.cfs_quota_us"), noLimit); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// refit gives every group the cap that was asked for it, as far as the parent's leaves it a meaning.
func (t *Tree) refit() error {
	t.mu.Lock()
	names := slices.Sorted(maps.Keys(t.groups))
	t.mu.Unlock()
	var errs []error
	for _, name := range names {
		if name != "" {
			errs = append(errs, t.refitOne(name))
		}
	}
	return errors.Join(errs...)
}

func (t *Tree) refitOne(name string) error {
	g, unlock := t.lock(name)
	defer unlock()
	if g.have == nil {
		return nil // the next Set writes everything
	}
	next := *g.have
	var err error
	if next.CPUCap, err = t.withinParent(name, g.asked); err != nil || next.CPUCap == g.have.CPUCap {
		return err
	}
	from := *g.have
	g.have = nil
	if err := t.apply(name, &from, next); err != nil {
		return err
	}
	g.have = &next
	return nil
}

// withinParent leaves out a cap that the parent's makes meaningless; v1 refuses it.
func (t *Tree) withinParent(name string, limit api.MilliCPU) (api.MilliCPU, error) {
	if name == "" || t.layout.v2("cpu") {
		return limit, nil
	}
	parent, err := t.parentLimits()
	if err == nil && parent.CPUCap > 0 && limit >= parent.CPUCap {
		return 0, nil
	}
	return limit, err
}
