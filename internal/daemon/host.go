package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/agent"
	"github.com/croftproject/croft/internal/cgroup"
	"github.com/croftproject/croft/internal/control"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/ledger"
	"github.com/croftproject/croft/internal/pool"
	"github.com/croftproject/croft/internal/state"
	"github.com/croftproject/croft/internal/store"
)

// hostSeen is how often a host says that it is there.
const hostSeen = time.Minute

// register makes this host known to the control plane, with what it has. What the probes of an earlier start found in
// this boot of the machine counts until they have run again, so that servers can be placed at once.
func (d *Daemon) register(ctx context.Context) error {
	info, err := d.pool.Info(ctx)
	if err != nil {
		return err
	}
	m := control.Machine{
		Name: d.o.Host, CPUs: d.facts.CPUs,
		Capacity: api.Resources{
			CPU: api.MilliCPU(len(d.facts.CPUs)) * api.CPU1, Memory: d.facts.Memory, HugePages: d.facts.HugePages, Disk: info.Capacity,
		},
		Own: len(d.o.EtcdEndpoints) == 0,
	}
	path := filepath.Join(d.o.StateDir, "host-id")
	if m.ID, err = readWord(path); err != nil {
		return err
	}
	m.Keep = func(id string) error { return writeWord(path, id) }
	if m.Holds, err = holds(d.o.StateDir); err != nil {
		return err
	}
	if d.hostID, err = d.control.RegisterHost(ctx, m); err != nil {
		return fmt.Errorf("register %s: %w", d.o.StateDir, err)
	}
	d.followed.capacity = info.Capacity
	d.follow() // guests that run go on without: followHost tries again
	return nil
}

// self is this host as the control plane knows it.
func (d *Daemon) self() (*api.Host, error) {
	return d.control.Hosts().Get(context.Background(), httpapi.Caller{Name: "host", Operator: true}, "", d.o.Host)
}

// spec of this host, as the operator set it.
func (d *Daemon) spec() api.HostSpec {
	h, err := d.self()
	if err != nil {
		return api.HostSpec{}
	}
	return h.Spec
}

// followed is how far the host's spec has been carried out.
type followed struct {
	spec api.HostSpec // as carried out last
	done bool         // in full

	kept  bool      // the reserve is
	since time.Time // when kept became what it is
	lacks api.Bytes // memory of the reserve that guests have
	fault string    // of the uplink, as logged last

	disk     api.Condition // as told last
	capacity api.Bytes     // of the pool, as the control plane knows it
}

// carry applies a spec that is not the one that was applied last, or was not in full.
func (f *followed) carry(now api.HostSpec, apply func(api.HostSpec) (done bool)) {
	if f.done && reflect.DeepEqual(now, f.spec) {
		return
	}
	f.spec, f.done = now, apply(now)
}

// follow carries the host's spec out, as far as it can be now.
func (d *Daemon) follow() {
	d.followed.carry(d.spec(), func(spec api.HostSpec) bool {
		kept, err := d.reserve(spec)
		if err != nil {
			d.o.Logger.Error("apply the host's reserve; it is tried again", "error", err)
		}
		if f := &d.followed; f.kept != kept || f.since.IsZero() {
			f.kept, f.since = kept, time.Now()
		}
		return d.uplink(spec) && kept
	})
}

// uplink has networks lead out through the device that the spec names. The last one goes on where there is none of that
// name.
func (d *Daemon) uplink(spec api.HostSpec) (done bool) {
	changed, err := d.net.SetUplink(spec.Uplink)
	if changed {
		d.o.Logger.Info("networks lead out through another uplink", "device", spec.Uplink)
		if d.agent != nil {
			d.agent.SetNetworks()
		}
	}
	fault := ""
	if err != nil {
		if fault = err.Error(); fault != d.followed.fault {
			d.o.Logger.Error("the host's spec names an uplink that can't be used; the last one goes on", "error", err)
		}
	}
	d.followed.fault = fault
	return err == nil
}

// room tells what this host has.
func (d *Daemon) room() room {
	return room{
		host: func() (api.HostStatus, error) {
			h, err := d.self()
			if err != nil {
				return api.HostStatus{}, err
			}
			return h.Status, nil
		},
		pool: func() (api.Bytes, error) {
			info, err := d.pool.Info(context.Background())
			return info.Free, err
		},
	}
}

// share is what all guests together may have: the machine without the host's reserve. The memory is kept for them under
// pressure too, or what is kept for a single server had no effect outside of their group (memory.low is only as good as
// the parent's: Documentation/admin-guide/cgroup-v2.rst).
// Their weight grows with the machine, as those of the host's services do not: one that is busy takes a processor's worth
// at most. A greater weight would starve what serves them when they are busy: with the kernel's greatest a list of servers
// took half a second.
func share(machine facts, r api.Reserve) cgroup.Limits {
	memory := max(1, machine.Memory-r.Memory) // at least something: zero is no limit
	return cgroup.Limits{
		Shares:      int64(len(machine.CPUs)) * 1024, // a service has 1024, or 100 of v2's
		CPUCap:      max(1, api.MilliCPU(len(machine.CPUs))*api.CPU1-r.CPU),
		MemoryLimit: memory, MemoryLow: memory,
	}
}

// reserve keeps guests from eating what is kept for the host: the group that holds them all has no more than the rest. It
// is not kept where guests use memory that it is to have: that can only be taken once they use less.
func (d *Daemon) reserve(spec api.HostSpec) (kept bool, err error) {
	want := share(d.facts, spec.Reserve)
	got, err := d.groups.SetParent(want)
	if err != nil {
		return false, err
	}
	if d.agent != nil {
		d.agent.Divide()
	}
	lacks := got.MemoryLimit - want.MemoryLimit
	if lacks > 0 && d.followed.lacks == 0 {
		d.o.Logger.Warn("guests use memory that the host's reserve is to have: it is kept as they use less", "lacks", lacks)
	}
	d.followed.lacks = lacks
	return lacks == 0, nil
}

// condition tells in the host's status whether its reserve is kept.
func (f *followed) condition() api.Condition {
	c := api.Condition{Type: "ReserveKept", Status: f.kept, Reason: "Kept", Since: f.since}
	switch {
	case f.kept:
	case f.lacks > 0:
		c.Reason, c.Message = "InUse", fmt.Sprintf("guests use %s of memory that the reserve is to have; it is kept once they use less", f.lacks)
	default:
		c.Reason, c.Message = "Failed", "the reserve could not be applied; the daemon's log says why"
	}
	return c
}

// resized tells whether the pool's capacity is no longer what was told, by more than comes and goes all the time.
func (f *followed) resized(now api.Bytes) bool {
	return max(now-f.capacity, f.capacity-now) > f.capacity/100
}

// diskReserve tells in the host's status whether what is free of the disk is at least the reserve. Disks are sparse: those
// that are promised can take more than there is.
func (f *followed) diskReserve(free, reserve api.Bytes, now time.Time) api.Condition {
	c := api.Condition{Type: "DiskReserveKept", Status: free >= reserve, Reason: "Kept", Since: now}
	if !c.Status {
		c.Reason = "InUse"
		c.Message = fmt.Sprintf("%s are free of the disk, less than the reserve of %s; delete servers or images, or enlarge the file system", free.Approx(), reserve)
	}
	if f.disk.Status == c.Status && !f.disk.Since.IsZero() {
		c.Since = f.disk.Since
	}
	f.disk = c
	return c
}

// avoid is what the automatic choice of a network's prefix keeps clear of, from what the host has. Where one of those is
// all of the range that is chosen from, there is a choice all the same: what is near the host's own address is avoided.
func avoid(taken []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range taken {
		if p.Addr().Is4() && p.Bits() <= 8 {
			p = netip.PrefixFrom(p.Addr(), 24)
		}
		if p = p.Masked(); p.Addr().Is4() && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// answers tells whether the store does, for those who ask how the daemon is.
func answers(ctx context.Context, s store.Store) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, err := s.Get(ctx, "ping"); err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return nil
}

// probed is what the engines' probes found, kept for the next start within one boot.
type probed struct {
	BootID  string             `json:"bootID"`
	Engines []api.EngineStatus `json:"engines"`
}

// reportHost probes the engines, reports what the host is, and from then on that it is there; and it carries changes of
// the host's spec out. It calls reported once servers can be placed here.
func (d *Daemon) reportHost(ctx context.Context, reported func()) {
	mode, err := cgroup.Detect()
	if err != nil {
		d.o.Logger.Error("look at control groups", "error", err)
	}
	st := api.HostStatus{
		Phase: "ready", Version: d.o.Version, Kernel: d.facts.Kernel, Cgroups: mode.String(), Booted: d.facts.Booted,
		Capacity: api.Resources{CPU: api.MilliCPU(len(d.facts.CPUs)) * api.CPU1, Memory: d.facts.Memory, HugePages: d.facts.HugePages},
	}
	if info, err := d.pool.Info(ctx); err == nil {
		st.Conditions = append(st.Conditions, ioLimits(mode, info, time.Now()))
	}
	path := filepath.Join(d.o.RunDir, "engines.json")
	if data, err := os.ReadFile(path); err == nil {
		var p probed
		if json.Unmarshal(data, &p) == nil && p.BootID == d.facts.BootID {
			st.Engines = p.Engines
			d.report(ctx, st)
			reported()
		}
	}
	st.Engines = agent.ProbeEngines(ctx, d.engines)
	if ctx.Err() != nil {
		return // a probe that was broken off has found out nothing
	}
	if data, err := json.Marshal(probed{BootID: d.facts.BootID, Engines: st.Engines}); err == nil {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			d.o.Logger.Warn("keep what the probes found", "error", err)
		}
	}
	d.report(ctx, st)
	reported()
	for _, e := range st.Engines {
		d.o.Logger.Info("engine", "name", e.Name, "available", e.Available, "accelerator", e.Accelerator, "reason", e.Reason)
	}
	d.followHost(ctx, st)
}

// ioLimits tells how far limits of I/O are kept on this host.
func ioLimits(mode cgroup.Mode, p pool.Info, now time.Time) api.Condition {
	c := api.Condition{Type: "IOLimits", Status: true, Reason: "Kept", Since: now}
	switch {
	case p.Major == 0 && p.Minor == 0:
		c.Status, c.Reason = false, "NoDevice"
		c.Message = "the file system of the pool has no block device of its own: servers that ask for I/O limits don't start here"
	case mode != cgroup.V2:
		c.Reason, c.Message = "DirectOnly", "with control groups version 1 reads and direct writes are held to their limits, writes through the page cache are not"
	}
	return c
}

// divide has the uplink divided by what it carries: as declared, or as its device tells. It returns the device.
func (d *Daemon) divide(ctx context.Context) string {
	up, err := d.net.Uplink()
	var told api.BitRate
	if err == nil && up != "" {
		told, err = d.net.Rate(up)
	}
	if err == nil {
		err = d.control.SetHostUplink(ctx, told)
	}
	if err != nil {
		d.o.Logger.Error("look at the uplink; it is tried again", "error", err)
		return up
	}
	spec := d.spec()
	rate := cmp.Or(spec.UplinkRate, told)
	d.agent.SetUplink(rate, rate-ledger.Room{Uplink: rate, Committable: spec.Committable}.Promisable())
	return up
}

func (d *Daemon) report(ctx context.Context, st api.HostStatus) {
	st.Uplink.Device = d.divide(ctx)
	st.Conditions = append(slices.Clone(st.Conditions), d.followed.condition())
	if info, err := d.pool.Info(ctx); err != nil {
		d.o.Logger.Error("look at the pool", "error", err)
	} else {
		if d.followed.resized(info.Capacity) {
			if err := d.control.SetHostDisk(ctx, info.Capacity); err != nil {
				d.o.Logger.Error("report the pool's capacity; it is tried again", "error", err)
			} else {
				d.followed.capacity = info.Capacity
			}
		}
		st.Capacity.Disk = d.followed.capacity
		st.Conditions = append(st.Conditions, d.followed.diskReserve(info.Free, d.spec().Reserve.Disk, time.Now()))
	}
	if err := d.agent.ReportHost(ctx, st); err != nil && ctx.Err() == nil {
		d.o.Logger.Error("report the host", "error", err)
	}
}

// followHost reports the host again and again, and applies its spec when it changes; also on the tick, because what
// changed while a watch was broken is in none.
func (d *Daemon) followHost(ctx context.Context, st api.HostStatus) {
	tick := time.NewTicker(hostSeen)
	defer tick.Stop()
	for ctx.Err() == nil {
		watching, stop := context.WithCancel(ctx)
		changes := d.store.Watch(watching, state.Hosts+d.hostID, 0)
		for open := true; open; {
			select {
			case <-ctx.Done():
				open = false
			case <-tick.C:
				d.follow()
				d.report(ctx, st)
			case _, open = <-changes:
				d.follow()
				d.report(ctx, st)
			}
		}
		stop()
		if ctx.Err() == nil { // the watch broke: the store is away
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}
