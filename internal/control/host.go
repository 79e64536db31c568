package control

import (
	"context"
	"fmt"
	"slices"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/ledger"
	"github.com/croftproject/croft/internal/state"
)

// hosts are the use cases of hosts.
type hosts struct{ *Control }

// Machine is what a daemon found its host to have.
type Machine struct {
	Name     string
	Capacity api.Resources // CPU, Memory, HugePages, Disk of the pool
	CPUs     []int         // host CPUs that can be dedicated

	// ID is the host's id as the machine keeps it; empty before its first start.
	ID string
	// Keep makes an id durable on the machine. It is called before a record is made with an id that is not ID.
	Keep func(id string) error
	// Own says that no other machine uses the store: a host of that name in it can only be this one.
	Own bool
	// Holds is what the machine has of servers, in words; empty: nothing.
	Holds string
}

// RegisterHost makes the record of this daemon's host, or brings its capacity up to date, and returns the host's id. It
// refuses, and changes nothing, where the store can't be the one that the machine belongs to.
// Jobs of the host that an earlier daemon did not end are marked failed, and content that they left is removed.
func (c *Control) RegisterHost(ctx context.Context, m Machine) (string, error) {
	var f faults
	checkName(&f, m.Name)
	if err := f.err(); err != nil {
		return "", fmt.Errorf("register host %q: %w", m.Name, err)
	}
	m.Capacity.Servers = 0
	id, err := c.identify(&m)
	if err != nil {
		return "", err
	}
	_, err = c.admit(ctx, func(d *draft) error {
		d.Frees = true // a daemon that can't start frees nothing
		if r, ok := d.ix.hosts[id]; ok {
			next := *r.v
			next.Capacity, next.CPUs = m.Capacity, m.CPUs
			fillHost(&next.Spec) // a daemon before this one may have known less of it
			if !same(&next, r.v) {
				d.put(state.Hosts+id, &next)
			}
			return nil
		}
		if e := d.ix.tables[kindHost].named("", m.Name); e != nil {
			return otherHost(m.Name, e.meta.ID)
		}
		h := &state.Host{Meta: api.Meta{Name: m.Name, ID: id, Created: c.o.Now().UTC()}, Capacity: m.Capacity, CPUs: m.CPUs}
		fillHost(&h.Spec)
		d.make(state.Hosts+id, h)
		d.make(state.HostLedger+id, ledger.Host{})
		d.name(kindHost, "", m.Name, id)
		c.event(d, httpapi.Caller{}, kindHost, &h.Meta, "Registered", "%s CPUs, %s of memory, %s of disk", m.Capacity.CPU, m.Capacity.Memory, m.Capacity.Disk)
		return nil
	})
	if err != nil {
		return "", err
	}
	c.host.Store(&id)
	lost, err := c.failLostJobs(ctx, id)
	if err != nil || lost == 0 {
		return id, err
	}
	return id, c.dropLost(ctx)
}

// SetHostDisk brings up to date how much disk servers can have of this daemon's host. What is promised stays.
func (c *Control) SetHostDisk(ctx context.Context, disk api.Bytes) error {
	_, err := c.write(ctx, func(d *draft) error {
		d.Frees = true // on a disk that is nearly full, too
		r, ok := d.ix.hosts[c.ownHost()]
		if !ok || r.v.Capacity.Disk == disk {
			return nil
		}
		next := *r.v
		next.Capacity.Disk = disk
		d.put(state.Hosts+r.v.Meta.ID, &next)
		return nil
	})
	if err != nil {
		return fmt.Errorf("update host: %w", err)
	}
	return nil
}

// SetHostUplink brings up to date what the uplink of this daemon's host carries by what its device tells; zero: it tells
// nothing. What is promised stays.
func (c *Control) SetHostUplink(ctx context.Context, rate api.BitRate) error {
	_, err := c.write(ctx, func(d *draft) error {
		r, ok := d.ix.hosts[c.ownHost()]
		if !ok || r.v.UplinkRate == rate {
			return nil
		}
		d.Frees = true // on a disk that is nearly full, too
		next := *r.v
		next.UplinkRate = rate
		d.put(state.Hosts+r.v.Meta.ID, &next)
		return nil
	})
	if err != nil {
		return fmt.Errorf("update host: %w", err)
	}
	return nil
}

// identify finds the id of a machine, or gives it one, which it keeps from then on.
func (c *Control) identify(m *Machine) (string, error) {
	c.ix.mu.RLock()
	named := c.ix.tables[kindHost].named("", m.Name)
	known, ok := c.ix.hosts[m.ID]
	c.ix.mu.RUnlock()
	switch {
	case m.ID != "" && ok && known.v.Meta.Name != m.Name:
		return "", fmt.Errorf("host %s is called %q in the store, not %q: start it by that name", m.ID, known.v.Meta.Name, m.Name)
	case m.ID != "" && ok:
		return m.ID, nil
	case named != nil && (m.ID != "" || !m.Own):
		return "", otherHost(m.Name, named.meta.ID)
	case m.ID != "" && m.Holds != "":
		return "", fmt.Errorf("the store does not know host %s, and this machine has %s of it: the store was lost, or is another one. "+
			"Nothing was touched. Restore the store that the host belongs to; or, to start anew without what is here, remove the file host-id", m.ID, m.Holds)
	case m.ID != "":
		return m.ID, nil
	}
	id := c.ids.next()
	if named != nil { // it was registered before machines kept their ids
		id = named.meta.ID
	}
	if m.Keep == nil {
		return id, nil
	}
	return id, m.Keep(id)
}

// otherHost is the error of a name that another machine has.
func otherHost(name, id string) error {
	return fmt.Errorf("the name %q belongs to another machine in the store (host %s): give this one a name of its own with --host; "+
		"if that machine is gone for good, remove its host through the API first: DELETE /v1/hosts/%s", name, id, name)
}

// dropLost removes content that no image has, after a job was found that did not end: it may have made some. Without such
// a job content stays, because a store that came up empty has no images either.
func (c *Control) dropLost(ctx context.Context) error {
	c.work.content.Lock()
	defer c.work.content.Unlock()
	there, err := c.o.Images.List(ctx)
	if err != nil {
		return fmt.Errorf("list the contents of images: %w", err)
	}
	for _, digest := range there {
		c.dropContent(ctx, digest)
	}
	return nil
}

// ownHost is the id of this daemon's host; empty where it has none.
func (c *Control) ownHost() string {
	if id := c.host.Load(); id != nil {
		return *id
	}
	return ""
}

// committable is how much of an uplink may be committed unless the host's spec says it, in percent.
const committable = 90

func fillHost(s *api.HostSpec) {
	either(&s.Reserve.CPU, 100)
	either(&s.Reserve.Memory, 512*api.MiB)
	either(&s.Reserve.Disk, api.GiB)
	either(&s.Overcommit.CPU, 100)
	either(&s.Overcommit.Memory, 100)
	either(&s.Overcommit.Disk, 200)
	either(&s.Committable, committable)
}

func (c hosts) Create(context.Context, httpapi.Caller, string, httpapi.Create[api.HostSpec]) (*api.Host, error) {
	return nil, api.Errorf(api.CodeMethod, "a host is made by the daemon that runs on it")
}

func (c hosts) Get(_ context.Context, who httpapi.Caller, _, name string) (*api.Host, error) {
	if err := operatorOnly(who, "see hosts"); err != nil {
		return nil, err
	}
	return find[api.Host](c.Control, kindHost, "", name)
}

func (c hosts) List(_ context.Context, who httpapi.Caller, _ string, o httpapi.ListOptions) (httpapi.Raw, error) {
	return c.listFor(who, kindHost, "", o)
}

func (c hosts) Watch(ctx context.Context, who httpapi.Caller, _ string, o httpapi.ListOptions, from int64) (<-chan []byte, error) {
	return c.watchFor(ctx, who, kindHost, "", o, from)
}

// Update changes what of a host may be promised. It may be less than what is promised already: then nothing more is,
// and an event warns of it.
func (c hosts) Update(ctx context.Context, who httpapi.Caller, _, name string, u httpapi.Update[api.HostSpec]) (*api.Host, error) {
	if err := operatorOnly(who, "change hosts"); err != nil {
		return nil, err
	}
	var id string
	_, err := c.admit(ctx, func(d *draft) error {
		e := d.ix.tables[kindHost].named("", name)
		if e == nil {
			return missing(kindHost, "", name)
		}
		id = e.meta.ID
		if err := matchRevision(kindHost, e.meta, u.Revision); err != nil {
			return err
		}
		old := d.ix.hosts[id].v
		next := *old
		next.Spec, next.Meta.Labels = u.Spec, u.Labels
		fillHost(&next.Spec)
		if err := checkHost(&next, old, u.Name); err != nil {
			return err
		}
		if same(&next, old) {
			return nil
		}
		d.put(state.Hosts+id, &next)
		c.event(d, who, kindHost, &next.Meta, "Updated", "")
		if over := overPromised(&next, or(d.ix.hostLedgers[id])); len(over) > 0 {
			c.event(d, who, kindHost, &next.Meta, "Overpromised", "more is promised than may be, until servers go: %s", describe(over))
			warnLast(d)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return shown[api.Host](c.Control, kindHost, id)
}

func checkHost(h, old *state.Host, name string) error {
	var f faults
	checkLabels(&f, h.Meta.Labels)
	if name != "" && name != h.Meta.Name {
		f.add("/name", "a host is named by its daemon; the name can't be changed")
	}
	part(&f, "/spec/reserve/cpu", h.Spec.Reserve.CPU, old.Spec.Reserve.CPU, h.Capacity.CPU)
	part(&f, "/spec/reserve/memory", h.Spec.Reserve.Memory, old.Spec.Reserve.Memory, h.Capacity.Memory)
	part(&f, "/spec/reserve/disk", h.Spec.Reserve.Disk, old.Spec.Reserve.Disk, h.Capacity.Disk)
	between(&f, "/spec/overcommit/cpu", h.Spec.Overcommit.CPU, 1, 10000)
	between(&f, "/spec/overcommit/memory", h.Spec.Overcommit.Memory, 1, 1000)
	between(&f, "/spec/overcommit/disk", h.Spec.Overcommit.Disk, 1, 10000)
	between(&f, "/spec/committable", h.Spec.Committable, 1, 95)
	checkRate(&f, "/spec/uplinkRate", h.Spec.UplinkRate)
	if len(h.Spec.Uplink) > 15 || !printable(h.Spec.Uplink) || slices.Contains([]string{".", ".."}, h.Spec.Uplink) {
		f.add("/spec/uplink", "%s is no network device", quote(h.Spec.Uplink))
	}
	return f.err()
}

// part demands that a reserve leaves something of what the host has: the guests' limit would be none. What stays as it was
// may be too much for what the host has by now.
func part[N ~int64](f *faults, pointer string, n, was, capacity N) {
	if n != was && (n < 1 || n >= capacity) {
		f.add(pointer, "is %v, and must be more than 0 and less than the %v that the host has", n, capacity)
	}
}

// overPromised is what is promised beyond what may be.
func overPromised(h *state.Host, l ledger.Host) []api.Shortage {
	all, have := room(h).Allocatable(), l.Allocated()
	var over []api.Shortage
	if have.CPU > all.CPU {
		over = append(over, ledger.Short("cpu", h.Meta.Name, have.CPU, all.CPU))
	}
	if have.Memory > all.Memory {
		over = append(over, ledger.Short("memory", h.Meta.Name, have.Memory, all.Memory))
	}
	if have.HugePages > all.HugePages {
		over = append(over, ledger.Short("huge-pages", h.Meta.Name, have.HugePages, all.HugePages))
	}
	if have.Disk > all.Disk {
		over = append(over, ledger.Short("disk", h.Meta.Name, have.Disk, all.Disk))
	}
	if most := room(h).Promisable(); l.Bandwidth > most {
		over = append(over, ledger.Short("bandwidth", uplinkOf(h), l.Bandwidth, most))
	}
	return over
}

// Delete forgets a host that is away and has no servers.
func (c hosts) Delete(ctx context.Context, who httpapi.Caller, _, name string, o httpapi.DeleteOptions) (*api.Host, error) {
	if err := operatorOnly(who, "delete hosts"); err != nil {
		return nil, err
	}
	var last api.Host
	_, err := c.admit(ctx, func(d *draft) error {
		e := d.ix.tables[kindHost].named("", name)
		if e == nil {
			return missing(kindHost, "", name)
		}
		last = *e.obj.(*api.Host)
		if err := matchRevision(kindHost, &last.Meta, o.Revision); err != nil {
			return err
		}
		if n := last.Status.Allocated.Servers; n > 0 {
			return api.Errorf(api.CodeInUse, "host %s has %d servers; delete them first", last.Name, n)
		}
		if last.ID == c.ownHost() {
			return api.Errorf(api.CodeInUse, "host %s is the one that this daemon runs on", last.Name)
		}
		d.Frees = true
		d.remove(state.Hosts + last.ID)
		d.remove(state.HostLedger + last.ID)
		d.remove(state.HostStatus + last.ID)
		d.unname(kindHost, "", last.Name)
		c.event(d, who, kindHost, &last.Meta, "Deleted", "")
		return nil
	})
	return &last, err
}
