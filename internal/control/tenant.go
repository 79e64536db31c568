package control

import (
	"context"
	"fmt"
	"path"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/ledger"
	"github.com/croftproject/croft/internal/state"
)

// tenants are the use cases of tenants.
type tenants struct{ *Control }

func (c tenants) Get(_ context.Context, who httpapi.Caller, _, name string) (*api.Tenant, error) {
	if err := authorize(who, name); err != nil {
		return nil, err
	}
	return find[api.Tenant](c.Control, kindTenant, "", name)
}

func (c tenants) List(_ context.Context, who httpapi.Caller, _ string, o httpapi.ListOptions) (httpapi.Raw, error) {
	return c.listFor(who, kindTenant, "", o)
}

func (c tenants) Watch(ctx context.Context, who httpapi.Caller, _ string, o httpapi.ListOptions, from int64) (<-chan []byte, error) {
	return c.watchFor(ctx, who, kindTenant, "", o, from)
}

func (c *Control) ensureDefaultTenant(ctx context.Context) error {
	if c.tenantKnown(DefaultTenant) == nil {
		return nil
	}
	operator := httpapi.Caller{Operator: true}
	_, err := tenants{c}.Create(ctx, operator, "", httpapi.Create[api.TenantSpec]{Name: DefaultTenant})
	if err != nil && api.CodeOf(err) != api.CodeExists {
		return fmt.Errorf("make the default tenant: %w", err)
	}
	return nil
}

func (c tenants) Create(ctx context.Context, who httpapi.Caller, _ string, body httpapi.Create[api.TenantSpec]) (*api.Tenant, error) {
	if err := operatorOnly(who, "create tenants"); err != nil {
		return nil, err
	}
	meta := func(t *api.Tenant) *api.Meta { return &t.Meta }
	return once(ctx, c.Control, who, kindTenant, "", body, meta, func(keep remember) (*api.Tenant, error) {
		id, now := c.ids.next(), c.o.Now().UTC()
		var answer api.Tenant
		revision, err := c.admit(ctx, func(d *draft) error {
			t := &state.Tenant{Meta: api.Meta{Name: body.Name, ID: id, Labels: body.Labels, Created: now}, Spec: body.Spec}
			if err := checkTenant(d.ix, t); err != nil {
				return err
			}
			if d.ix.tables[kindTenant].holds("", body.Name) {
				return taken(kindTenant, body.Name)
			}
			d.countChild(body.Spec.Parent, 1)
			d.make(state.Tenants+id, t)
			d.make(state.TenantLedger+id, ledger.Tenant{})
			d.name(kindTenant, "", body.Name, id)
			c.event(d, who, kindTenant, &t.Meta, "Created", "")
			answer = api.Tenant{Meta: t.Meta, Spec: t.Spec}
			keep(d, &answer)
			return nil
		})
		answer.Revision = revision
		return &answer, err
	})
}

// countChild counts a tenant below another, so that none is deleted while it has some.
func (d *draft) countChild(parent string, by int) {
	e := d.ix.tables[kindTenant].named("", parent)
	if parent == "" || e == nil {
		return
	}
	l := or(d.ix.tenantLedgers[e.meta.ID])
	l.Tenants += by
	d.put(state.TenantLedger+e.meta.ID, l)
}

func checkTenant(ix *index, t *state.Tenant) error {
	var f faults
	checkName(&f, t.Meta.Name)
	checkLabels(&f, t.Meta.Labels)
	if parent := t.Spec.Parent; parent != "" {
		line, err := ix.lineage(parent)
		switch {
		case err != nil:
			f.add("/spec/parent", "there is no tenant %s", quote(parent))
		case line[0].v.Meta.Name != parent:
			f.add("/spec/parent", "must be the tenant's name: %s", line[0].v.Meta.Name)
		case len(line) >= maxDepth:
			f.add("/spec/parent", "the tree of tenants may be %d deep", maxDepth)
		}
	}
	q := t.Spec.Quota
	limit(&f, "/spec/quota/servers", q.Servers)
	limit(&f, "/spec/quota/cpu", q.CPU)
	limit(&f, "/spec/quota/memory", q.Memory)
	limit(&f, "/spec/quota/disk", q.Disk)
	limit(&f, "/spec/quota/networks", q.Networks)
	limit(&f, "/spec/quota/images", q.Images)
	limit(&f, "/spec/quota/bandwidth", q.Bandwidth)
	checkBandwidth(&f, "/spec/bandwidth", t.Spec.Bandwidth)
	for i, a := range t.Spec.Grants {
		at := fmt.Sprintf("/spec/grants/%d", i)
		switch a.Kind {
		case api.GrantDirectory:
			if !path.IsAbs(a.Source) || path.Clean(a.Source) != a.Source {
				f.add(at+"/source", "%s is no plain absolute path", quote(a.Source))
			}
		default:
			checkGrant(&f, at, api.ModelOS, api.Grant{Kind: a.Kind, Source: a.Source})
		}
	}
	if len(t.Spec.Grants) > 256 {
		f.add("/spec/grants", "has %d entries, and may have 256", len(t.Spec.Grants))
	}
	return f.err()
}

func limit[N ~int | ~int64](f *faults, pointer string, n *N) {
	if n != nil && *n < 0 {
		f.add(pointer, "is %v, and can't be negative; leave it out for no limit", *n)
	}
}

// Update changes a tenant's labels, quota and grants. A quota may be below what is used: then nothing grows.
func (c tenants) Update(ctx context.Context, who httpapi.Caller, _, name string, u httpapi.Update[api.TenantSpec]) (*api.Tenant, error) {
	if err := operatorOnly(who, "change tenants"); err != nil {
		return nil, err
	}
	var id string
	_, err := c.admit(ctx, func(d *draft) error {
		e := d.ix.tables[kindTenant].named("", name)
		if e == nil {
			return missing(kindTenant, "", name)
		}
		id = e.meta.ID
		if err := matchRevision(kindTenant, e.meta, u.Revision); err != nil {
			return err
		}
		old := d.ix.tenants[id].v
		next := *old
		next.Spec, next.Meta.Labels = u.Spec, u.Labels
		either(&next.Spec.Parent, old.Spec.Parent)
		var f faults
		if u.Name != "" && u.Name != old.Meta.Name {
			f.add("/name", "a tenant's name can't be changed: it is in the paths of all that it has")
		}
		if next.Spec.Parent != old.Spec.Parent {
			f.add("/spec/parent", "can't be changed: what the tenant has counts against the quota of %q", old.Spec.Parent)
		}
		if err := f.err(); err != nil {
			return err
		}
		if err := checkTenant(d.ix, &next); err != nil {
			return err
		}
		if same(&next, old) {
			return nil
		}
		if next.Spec.Bandwidth != old.Spec.Bandwidth {
			if err := d.recommitTenant(&next); err != nil {
				return err
			}
		}
		d.put(state.Tenants+id, &next)
		c.event(d, who, kindTenant, &next.Meta, "Updated", "")
		return nil
	})
	if err != nil {
		return nil, err
	}
	return shown[api.Tenant](c.Control, kindTenant, id)
}

func (c tenants) Delete(ctx context.Context, who httpapi.Caller, _, name string, o httpapi.DeleteOptions) (*api.Tenant, error) {
	if err := operatorOnly(who, "delete tenants"); err != nil {
		return nil, err
	}
	var last api.Tenant
	_, err := c.admit(ctx, func(d *draft) error {
		e := d.ix.tables[kindTenant].named("", name)
		if e == nil {
			return missing(kindTenant, "", name)
		}
		last = *e.obj.(*api.Tenant)
		if err := matchRevision(kindTenant, &last.Meta, o.Revision); err != nil {
			return err
		}
		if last.Name == DefaultTenant {
			return api.Errorf(api.CodeProtected, "tenant %s is the operator's own", last.Name)
		}
		if l := or(d.ix.tenantLedgers[last.ID]); !l.Empty() {
			return api.Errorf(api.CodeInUse, "tenant %s has %d servers, %d networks, %d images and %d tenants; delete them first",
				last.Name, l.Servers, l.Networks, l.Images, l.Tenants)
		}
		d.countChild(last.Spec.Parent, -1)
		d.Frees = true
		d.remove(state.Tenants + last.ID)
		d.remove(state.TenantLedger + last.ID)
		d.unname(kindTenant, "", last.Name)
		c.event(d, who, kindTenant, &last.Meta, "Deleted", "")
		return nil
	})
	return &last, err
}
