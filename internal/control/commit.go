package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/ledger"
	"github.com/croftproject/croft/internal/state"
	"github.com/croftproject/croft/internal/store"
)

const (
	attempts  = 200             // of a transaction that meets others' changes
	catchUp   = 2 * time.Second // that the index is given to see them
	indexLags = 5 * time.Second // that a writer waits to read its own write
)

// draft is a transaction while it is being put together out of the index. Everything that a decision was taken from is
// checked, so that it can't be committed once any of that has changed.
type draft struct {
	ix *index
	store.Tx
	seen map[string]bool
}

// check demands that a key is as the index has it: at that revision, or absent.
func (d *draft) check(key string) {
	if !d.seen[key] {
		d.seen[key] = true
		d.Checks = append(d.Checks, store.Check{Key: key, Revision: d.ix.keys[key]})
	}
}

// absent demands that there is no such record, whatever the index says.
func (d *draft) absent(key string) {
	if !d.seen[key] {
		d.seen[key] = true
		d.Checks = append(d.Checks, store.Check{Key: key})
	}
}

// put replaces a record that is as the index has it.
func (d *draft) put(key string, value any) {
	d.check(key)
	d.Puts = append(d.Puts, store.Encode(key, value))
}

// make writes a record that does not exist yet.
func (d *draft) make(key string, value any) {
	d.absent(key)
	d.Puts = append(d.Puts, store.Encode(key, value))
}

// remove deletes a record that is as the index has it.
func (d *draft) remove(key string) {
	d.check(key)
	d.Deletes = append(d.Deletes, key)
}

// name claims a name for an id; release gives it up.
func (d *draft) name(k kind, tenant, name, id string) {
	d.make(state.NameKey(string(k), tenant, name), id)
}

// unname gives a name up. Only one resource at a time holds it, so there is nothing to check.
func (d *draft) unname(k kind, tenant, name string) {
	d.Deletes = append(d.Deletes, state.NameKey(string(k), tenant, name))
}

// event adds what happened to the transaction.
func (c *Control) event(d *draft, who httpapi.Caller, k kind, m *api.Meta, reason, format string, args ...any) {
	e := &api.Event{
		ID: c.ids.next(), Time: c.o.Now().UTC(), Tenant: m.Tenant, Kind: string(k), Name: m.Name, ObjectID: m.ID,
		Reason: reason, Message: fmt.Sprintf(format, args...), Actor: who.Name,
	}
	put := store.Encode(state.EventKey(e), e)
	put.TTL = state.EventTTL
	d.Puts = append(d.Puts, put)
}

// write commits what build makes of the index, again and again while others change what it was made from. build runs
// under the index's read lock. It returns once the index has what was written.
func (c *Control) write(ctx context.Context, build func(*draft) error) (int64, error) {
	for range attempts {
		d := &draft{ix: c.ix, seen: map[string]bool{}}
		c.ix.mu.RLock()
		err := build(d)
		c.ix.mu.RUnlock()
		if err != nil {
			return 0, err
		}
		if len(d.Puts)+len(d.Deletes) == 0 {
			return 0, nil
		}
		revision, err := c.o.Store.Commit(ctx, d.Tx)
		switch {
		case err == nil:
			c.visible(ctx, revision)
			return revision, nil
		case errors.Is(err, store.ErrConflict):
			if err := c.catchUp(ctx); err != nil {
				return 0, err
			}
		default:
			return 0, unavailable(err)
		}
	}
	return 0, api.Errorf(api.CodeUnavailable, "others change the same records all the time; try again")
}

// admit is write for changes of ledgers, of which this process makes one at a time.
func (c *Control) admit(ctx context.Context, build func(*draft) error) (int64, error) {
	c.admission.Lock()
	defer c.admission.Unlock()
	return c.write(ctx, build)
}

// visible waits until the index has a revision that was committed. The write stands even where that takes too long.
func (c *Control) visible(ctx context.Context, revision int64) {
	ctx, cancel := context.WithTimeout(ctx, indexLags)
	defer cancel()
	if err := c.ix.wait(ctx, revision); err != nil {
		c.o.Logger.Warn("the index lags behind the store", "revision", revision, "error", err)
	}
}

// catchUp waits until the index has what is in the store now. A cluster that is shared may be at a revision that is
// nobody's of ours: then there is nothing to wait for, and the time runs out.
func (c *Control) catchUp(ctx context.Context) error {
	_, revision, err := c.o.Store.List(ctx, state.Names+"none/")
	if err != nil {
		return unavailable(err)
	}
	waiting, cancel := context.WithTimeout(ctx, catchUp)
	defer cancel()
	if err := c.ix.wait(waiting, revision); err != nil && ctx.Err() != nil {
		return unavailable(err)
	}
	return nil
}

// unavailable makes a problem of an error of the store.
func unavailable(err error) error {
	if errors.Is(err, store.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
		return api.Errorf(api.CodeUnavailable, "the store takes no change now: %v", err)
	}
	return err
}

// lineage is a tenant's record and those above it, the tenant's own first.
func (ix *index) lineage(tenant string) ([]rec[state.Tenant], error) {
	var out []rec[state.Tenant]
	for tenant != "" {
		e := ix.tables[kindTenant].named("", tenant)
		if e == nil || len(out) > maxDepth {
			return nil, missing(kindTenant, "", tenant)
		}
		r := ix.tenants[e.meta.ID]
		out = append(out, r)
		tenant = r.v.Spec.Parent
	}
	return out, nil
}

// same tells whether two values are written alike: what is left out and what is empty is the same.
func same(a, b any) bool {
	return bytes.Equal(store.Encode("", a).Value, store.Encode("", b).Value)
}

// maxDepth of the tree of tenants.
const maxDepth = 8

// charge replaces one usage by another in the ledgers of a tenant and of all above it. It returns what is short.
func (d *draft) charge(tenant string, from, to ledger.Usage) ([]api.Shortage, error) {
	line, err := d.ix.lineage(tenant)
	if err != nil {
		return nil, err
	}
	var short []api.Shortage
	for _, t := range line {
		id := t.v.Meta.ID
		next, s := or(d.ix.tenantLedgers[id]).Change(t.v.Meta.Name, t.v.Spec.Quota, from, to)
		short = append(short, s...)
		d.check(state.Tenants + id) // its quota
		d.put(state.TenantLedger+id, next)
	}
	return short, nil
}

// overQuota makes the problem of what a quota is short of.
func overQuota(short []api.Shortage) error {
	if len(short) == 0 {
		return nil
	}
	p := api.Errorf(api.CodeQuota, "the quota of tenant %s does not allow it: %s", short[0].Where, describe(short))
	p.Short = short
	return p
}

// describe says what is short, for people.
func describe(short []api.Shortage) string {
	out := ""
	for i, s := range short {
		if i > 0 {
			out += "; "
		}
		out += fmt.Sprintf("%s: %s asked of %s, %s free, %s short", s.Resource, approx(s.Resource, s.Asked), s.Where, approx(s.Resource, s.Free), approx(s.Resource, s.Short))
	}
	return out
}

// approx rounds an amount of bytes for people; the exact one is in the problem's shortages.
func approx(resource, amount string) string {
	if b, err := api.ParseBytes(amount); err == nil && (resource == "memory" || resource == "huge-pages" || resource == "disk") {
		return b.Approx()
	}
	return amount
}

// tenantKnown refuses tenants that there are not; the empty one is all.
func (c *Control) tenantKnown(name string) error {
	_, err := c.tenant(name)
	return err
}

// tenant finds a tenant by name, but not by id; the empty one is all, and nobody.
func (c *Control) tenant(name string) (api.Meta, error) {
	if name == "" {
		return api.Meta{}, nil
	}
	c.ix.mu.RLock()
	defer c.ix.mu.RUnlock()
	if m := c.ix.tenant(name); m != nil {
		return *m, nil
	}
	return api.Meta{}, missing(kindTenant, "", name)
}

func (ix *index) tenant(name string) *api.Meta {
	if e := ix.tables[kindTenant].named("", name); e != nil && e.meta.Name == name {
		return e.meta
	}
	return nil
}
