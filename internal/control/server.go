package control

import (
	"context"
	"slices"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/ledger"
	"github.com/croftproject/croft/internal/placement"
	"github.com/croftproject/croft/internal/state"
)

// servers are the use cases of servers.
type servers struct{ *Control }

func (c servers) Get(_ context.Context, who httpapi.Caller, tenant, name string) (*api.Server, error) {
	if err := authorize(who, tenant); err != nil {
		return nil, err
	}
	return find[api.Server](c.Control, kindServer, tenant, name)
}

func (c servers) List(_ context.Context, who httpapi.Caller, tenant string, o httpapi.ListOptions) (httpapi.Raw, error) {
	return c.listFor(who, kindServer, tenant, o)
}

func (c servers) Watch(ctx context.Context, who httpapi.Caller, tenant string, o httpapi.ListOptions, from int64) (<-chan []byte, error) {
	return c.watchFor(ctx, who, kindServer, tenant, o, from)
}

// Create admits a server: its record, its name, all that is promised to it and the event are one transaction.
func (c servers) Create(ctx context.Context, who httpapi.Caller, tenant string, body httpapi.Create[api.ServerSpec]) (*api.Server, error) {
	if err := authorize(who, tenant); err != nil {
		return nil, err
	}
	if err := c.tenantKnown(tenant); err != nil {
		return nil, err
	}
	meta := func(s *api.Server) *api.Meta { return &s.Meta }
	return once(ctx, c.Control, who, kindServer, tenant, body, meta, func(keep remember) (*api.Server, error) {
		id, now := c.ids.next(), c.o.Now().UTC()
		var s *state.Server
		revision, err := c.admit(ctx, func(d *draft) error {
			s = &state.Server{
				Meta: api.Meta{Name: body.Name, Tenant: tenant, ID: id, Labels: body.Labels, Created: now},
				Spec: cloneSpec(body.Spec),
			}
			if err := c.compose(d, s, nil); err != nil {
				return err
			}
			d.make(state.Servers+id, s)
			d.name(kindServer, tenant, body.Name, id)
			c.event(d, who, kindServer, &s.Meta, "Created", "%s server on host %s, engine %s", s.Spec.Model, s.Host, s.Engine)
			answer := state.JoinServer(s, nil, 0)
			keep(d, &answer)
			return nil
		})
		if err != nil {
			return nil, err
		}
		out := state.JoinServer(s, nil, revision)
		return &out, nil
	})
}

// cloneSpec copies what compose changes in place.
func cloneSpec(s api.ServerSpec) api.ServerSpec {
	s.Ports = slices.Clone(s.Ports)
	s.Grants = slices.Clone(s.Grants)
	return s
}

// compose makes a server's record out of its name, labels and spec: it checks them, resolves what they refer to, chooses
// host and engine (once; old is the record before, or nil) and takes what the server needs out of the ledgers.
func (c *Control) compose(d *draft, s, old *state.Server) error {
	var f faults
	checkName(&f, s.Meta.Name)
	checkLabels(&f, s.Meta.Labels)
	minimum := d.resolveImages(&f, s, old)
	s.Derived = fillIn(&s.Spec, minimum)
	checkSpec(&f, &s.Spec)
	if s.Spec.Disk.Size > 0 && s.Spec.Disk.Size < minimum && s.Spec.Disk.Size >= minDisk {
		f.add("/spec/disk/size", "is %s, and the image needs %s", s.Spec.Disk.Size, minimum)
	}
	line, err := d.ix.lineage(s.Meta.Tenant)
	if err != nil {
		return err
	}
	if old == nil || !slices.Equal(placement.Grants(&s.Spec), placement.Grants(&old.Spec)) || !slices.Equal(s.Spec.Grants, old.Spec.Grants) {
		checkAllowed(&f, &line[0].v.Spec, &s.Spec)
		if old != nil { // else placement asks
			checkWithheld(&f, s, old, d.ix.engineStatus(s))
		}
	}
	if h := s.Spec.Host; h != "" && d.ix.tables[kindHost].named("", h) == nil {
		f.add("/spec/host", "there is no host %s", quote(h))
	}
	if len(f) == 0 {
		c.engineRules(&f, s)
	}
	d.checkNetworks(&f, s)
	if err := f.err(); err != nil {
		return err
	}
	if old == nil || old.Meta.Name != s.Meta.Name {
		if d.ix.tables[kindServer].holds(s.Meta.Tenant, s.Meta.Name) {
			return taken(kindServer, s.Meta.Name)
		}
	}
	if err := d.addresses(s, old); err != nil {
		return err
	}
	return c.reserve(d, s, old)
}

// taken is the problem of a name that is there already.
func taken(k kind, name string) error {
	p := api.Errorf(api.CodeExists, "there is a %s %q already", k, name)
	p.Errors = []api.FieldError{{Pointer: "/name", Code: api.CodeExists, Message: "is taken"}}
	return p
}

// reserve takes what the server needs out of the ledgers of its host, its tenants and its images.
func (c *Control) reserve(d *draft, s, old *state.Server) error {
	from, to := ledger.Usage{}, ledger.Usage{}
	if old != nil {
		from = usage(old)
	}
	to = usageOf(&s.Spec)
	short, err := d.charge(s.Meta.Tenant, from, to)
	if err != nil {
		return err
	}
	quota := overQuota(short)
	if old == nil {
		err = c.place(d, s)
	} else {
		err = c.resize(d, s, old)
	}
	if quota != nil {
		return quota
	}
	d.useImages(s, old)
	return err
}

// usage is what a server counts for against quotas: memory without the engine's overhead.
func usage(s *state.Server) ledger.Usage {
	r := s.Reserved
	r.Memory, r.HugePages = r.Memory-s.Overhead+r.HugePages, 0
	return ledger.Usage{Resources: r}
}

func usageOf(s *api.ServerSpec) ledger.Usage {
	ordinary, huge := memoryOf(s)
	return ledger.Usage{Resources: api.Resources{
		Servers: 1, CPU: s.CPU.Entitlement, Memory: ordinary + huge, Disk: s.Disk.Size,
	}}
}

// memoryOf is the memory that is kept for a server: its reservation; or huge pages for all of it, since a guest on them has
// them from its start on.
func memoryOf(s *api.ServerSpec) (ordinary, huge api.Bytes) {
	if s.Memory.HugePages {
		return 0, s.Memory.Limit
	}
	return s.Memory.Reservation, 0
}

// ask is what a server holds of its host.
func ask(s *state.Server) ledger.Ask {
	a := ledger.Ask{
		Server: s.Meta.ID, CPU: s.Reserved.CPU, Memory: s.Reserved.Memory, HugePages: s.Reserved.HugePages, Disk: s.Reserved.Disk, Held: s.CPUs,
	}
	if s.Spec.CPU.Dedicated {
		a.Dedicated = s.Spec.CPU.Count
	}
	return a
}

// askOf is what a spec needs of a host, with an engine's overhead.
func askOf(id string, s *api.ServerSpec, overhead api.Bytes) ledger.Ask {
	ordinary, huge := memoryOf(s)
	a := ledger.Ask{Server: id, CPU: s.CPU.Entitlement, Memory: ordinary + overhead, HugePages: huge, Disk: s.Disk.Size}
	if s.CPU.Dedicated {
		a.Dedicated = s.CPU.Count
	}
	return a
}

// Gone says that nothing of a server is left on its host: its records go, and what was promised to it is free again.
// It is idempotent.
func (c *Control) Gone(ctx context.Context, id string) error {
	_, err := c.admit(ctx, func(d *draft) error {
		r, ok := d.ix.servers[id]
		if !ok {
			return nil
		}
		s := r.v
		d.Frees = true
		d.remove(state.Servers + id)
		d.Deletes = append(d.Deletes, state.ServerStatus+id)
		d.unname(kindServer, s.Meta.Tenant, s.Meta.Name)
		if _, err := d.charge(s.Meta.Tenant, usage(s), ledger.Usage{}); err != nil {
			return err
		}
		host, _, _ := or(d.ix.hostLedgers[s.HostID]).Change(ledger.Room{}, ask(s), ledger.Ask{})
		if h, ok := d.ix.hosts[s.HostID]; ok {
			up, err := d.uplinkOfServer(h.v, &state.Server{Meta: s.Meta, HostID: s.HostID}, s.Ports)
			if err != nil {
				return err
			}
			host, _ = up.commit(d, host)
		}
		d.put(state.HostLedger+s.HostID, host)
		none := &state.Server{}
		if err := d.addresses(none, s); err != nil {
			return err
		}
		d.useImages(none, s)
		c.event(d, httpapi.Caller{}, kindServer, &s.Meta, "Deleted", "nothing of it is left on host %s", s.Host)
		return nil
	})
	return err
}

// Started says that the host started a server by itself; its spec says so from then on.
func (c *Control) Started(ctx context.Context, id string) error {
	_, err := c.write(ctx, func(d *draft) error {
		r, ok := d.ix.servers[id]
		if !ok || r.v.Spec.State == api.StateRunning || !r.v.Intent.Delete.IsZero() {
			return nil
		}
		next := *r.v
		next.Spec.State = api.StateRunning
		d.put(state.Servers+id, &next)
		return nil
	})
	return err
}

// Readmit promises a server what its engine takes now, where that is more than when the server was admitted: the host may
// have lost its KVM. What the host has no room for is refused.
func (c *Control) Readmit(ctx context.Context, id string) error {
	_, err := c.admit(ctx, func(d *draft) error {
		r, ok := d.ix.servers[id]
		if !ok {
			return nil
		}
		next := *r.v
		if err := c.resize(d, &next, r.v); err != nil {
			return err
		}
		d.put(state.Servers+id, &next)
		return nil
	})
	return err
}

// Delete asks for the end of a server. Its host removes it, and then calls Gone.
func (c servers) Delete(ctx context.Context, who httpapi.Caller, tenant, name string, o httpapi.DeleteOptions) (*api.Server, error) {
	return c.change(ctx, who, tenant, name, o.Revision, func(d *draft, now *api.Server, s *state.Server) error {
		d.Frees = true
		if !s.Intent.Delete.IsZero() {
			s.Intent.Force = s.Intent.Force || o.Force
			return nil
		}
		if s.Spec.DeleteProtection {
			return api.Errorf(api.CodeProtected, "server %s is protected against deletion; set deleteProtection to false first", s.Meta.Name)
		}
		if p := now.Status.Phase; !o.Force && (p == api.PhaseRunning || p == api.PhasePaused || p == api.PhaseStarting || p == api.PhaseStopping) {
			return api.Errorf(api.CodeWrongState, "server %s is %s; stop it first, or delete it with force", s.Meta.Name, p)
		}
		s.Intent.Delete, s.Intent.Force = c.o.Now().UTC().Truncate(time.Millisecond), o.Force
		c.event(d, who, kindServer, &s.Meta, "Deleting", "")
		return nil
	})
}

// change changes a server's record, and no ledger. edit is given the server as it is shown, and a copy of its record.
func (c servers) change(ctx context.Context, who httpapi.Caller, tenant, name string, ifMatch int64, edit func(*draft, *api.Server, *state.Server) error) (*api.Server, error) {
	if err := authorize(who, tenant); err != nil {
		return nil, err
	}
	var id string
	_, err := c.write(ctx, func(d *draft) error {
		e := d.ix.tables[kindServer].named(tenant, name)
		if e == nil {
			return missing(kindServer, tenant, name)
		}
		id = e.meta.ID
		r := d.ix.servers[id]
		if err := matchRevision(kindServer, e.meta, ifMatch); err != nil {
			return err
		}
		next := *r.v
		if err := edit(d, e.obj.(*api.Server), &next); err != nil {
			return err
		}
		if changes(r.v, &next) {
			d.put(state.Servers+id, &next)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return shown[api.Server](c.Control, kindServer, id)
}

// changes tells whether a server's record after an act differs from the one before.
func changes(old, next *state.Server) bool {
	return next.Intent != old.Intent || next.Spec.State != old.Spec.State
}

// shown is a resource after a write. Where it went meanwhile, it is as if it had not been found.
func shown[T any](c *Control, k kind, id string) (*T, error) {
	c.ix.mu.RLock()
	defer c.ix.mu.RUnlock()
	e := c.ix.tables[k].byID[id]
	if e == nil {
		return nil, api.Errorf(api.CodeNotFound, "the %s is gone", k)
	}
	out := *e.obj.(*T)
	return &out, nil
}

// matchRevision holds an If-Match against a resource.
func matchRevision(k kind, m *api.Meta, ifMatch int64) error {
	if ifMatch == 0 || ifMatch == m.Revision {
		return nil
	}
	return api.Errorf(api.CodeConflict, "%s %s was changed meanwhile: it is at revision %d, not %d; read it again", k, m.Name, m.Revision, ifMatch)
}
