package control

import (
	"context"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/ledger"
	"github.com/croftproject/croft/internal/state"
)

// images are the use cases of images. Images are made by jobs (job.go).
type images struct{ *Control }

// image finds an image that a tenant can use: its own by name, a shared one by name (the oldest of several), or either
// by id.
func (ix *index) image(tenant, ref string) (rec[state.Image], bool) {
	t := ix.tables[kindImage]
	if e := t.named(tenant, ref); e != nil {
		return ix.images[e.meta.ID], true
	}
	if e := t.byID[ref]; e != nil && e.shared {
		return ix.images[ref], true
	}
	var oldest *entry
	for _, e := range t.sorted {
		if e.shared && e.meta.Name == ref && (oldest == nil || e.meta.ID < oldest.meta.ID) {
			oldest = e
		}
	}
	if oldest == nil {
		return rec[state.Image]{}, false
	}
	return ix.images[oldest.meta.ID], true
}

func (c images) Create(context.Context, httpapi.Caller, string, httpapi.Create[api.ImageSpec]) (*api.Image, error) {
	return nil, api.Errorf(api.CodeMethod, "images are imported or built: POST to images/import or images/build")
}

func (c images) Get(_ context.Context, who httpapi.Caller, tenant, name string) (*api.Image, error) {
	if err := authorize(who, tenant); err != nil {
		return nil, err
	}
	c.ix.mu.RLock()
	defer c.ix.mu.RUnlock()
	r, ok := c.ix.image(tenant, name)
	if !ok {
		return nil, missing(kindImage, tenant, name)
	}
	out := *c.ix.tables[kindImage].byID[r.v.Meta.ID].obj.(*api.Image)
	return &out, nil
}

func (c images) List(_ context.Context, who httpapi.Caller, tenant string, o httpapi.ListOptions) (httpapi.Raw, error) {
	return c.listFor(who, kindImage, tenant, o)
}

func (c images) Watch(ctx context.Context, who httpapi.Caller, tenant string, o httpapi.ListOptions, from int64) (<-chan []byte, error) {
	return c.watchFor(ctx, who, kindImage, tenant, o, from)
}

func (c images) Update(ctx context.Context, who httpapi.Caller, tenant, name string, u httpapi.Update[api.ImageSpec]) (*api.Image, error) {
	if err := authorize(who, tenant); err != nil {
		return nil, err
	}
	var id string
	_, err := c.write(ctx, func(d *draft) error {
		e := d.ix.tables[kindImage].named(tenant, name)
		if e == nil {
			return missing(kindImage, tenant, name)
		}
		id = e.meta.ID
		if err := matchRevision(kindImage, e.meta, u.Revision); err != nil {
			return err
		}
		old := d.ix.images[id].v
		next := *old
		next.Spec, next.Meta.Labels = u.Spec, u.Labels
		if u.Name != "" {
			next.Meta.Name = u.Name
		}
		if err := checkImage(&next); err != nil {
			return err
		}
		if next.Spec.Shared != old.Spec.Shared {
			if err := operatorOnly(who, "share images"); err != nil {
				return err
			}
		}
		if same(&next, old) {
			return nil
		}
		d.put(state.Images+id, &next)
		if next.Meta.Name != old.Meta.Name {
			if d.ix.tables[kindImage].holds(tenant, next.Meta.Name) {
				return taken(kindImage, next.Meta.Name)
			}
			d.name(kindImage, tenant, next.Meta.Name, id)
			d.unname(kindImage, tenant, old.Meta.Name)
		}
		c.event(d, who, kindImage, &next.Meta, "Updated", "")
		return nil
	})
	if err != nil {
		return nil, err
	}
	return shown[api.Image](c.Control, kindImage, id)
}

func checkImage(m *state.Image) error {
	var f faults
	checkName(&f, m.Meta.Name)
	checkLabels(&f, m.Meta.Labels)
	if len(m.Spec.Description) > 1024 || !printable(m.Spec.Description) {
		f.add("/spec/description", "must be at most 1024 bytes of printable text")
	}
	return f.err()
}

// Delete removes an image, and its content where no other image has the same.
func (c images) Delete(ctx context.Context, who httpapi.Caller, tenant, name string, o httpapi.DeleteOptions) (*api.Image, error) {
	if err := authorize(who, tenant); err != nil {
		return nil, err
	}
	c.work.content.Lock()
	defer c.work.content.Unlock()
	var last api.Image
	_, err := c.admit(ctx, func(d *draft) error {
		e := d.ix.tables[kindImage].named(tenant, name)
		if e == nil {
			return missing(kindImage, tenant, name)
		}
		if err := matchRevision(kindImage, e.meta, o.Revision); err != nil {
			return err
		}
		last = *e.obj.(*api.Image)
		id := last.ID
		if n := last.Status.Users; n > 0 {
			return api.Errorf(api.CodeInUse, "image %s is used by %d servers; delete them first", last.Name, n)
		}
		if _, err := d.charge(tenant, ledger.Usage{Images: 1}, ledger.Usage{}); err != nil {
			return err
		}
		d.Frees = true
		d.remove(state.Images + id)
		d.remove(state.ImageLedger + id)
		d.unname(kindImage, tenant, last.Name)
		c.event(d, who, kindImage, &last.Meta, "Deleted", "")
		return nil
	})
	if err != nil {
		return nil, err
	}
	c.dropContent(ctx, last.Status.Digest)
	return &last, nil
}

// dropContent removes content that no image has. What can't be removed stays, and the log names it. The caller holds the
// lock of contents.
func (c *Control) dropContent(ctx context.Context, digest string) {
	if digest == "" || c.digests()[digest] {
		return
	}
	if err := c.o.Images.Remove(context.WithoutCancel(ctx), digest); err != nil {
		c.o.Logger.Warn("remove an image's content", "digest", digest, "error", err)
	}
}

// digests of the contents that images have.
func (c *Control) digests() map[string]bool {
	c.ix.mu.RLock()
	defer c.ix.mu.RUnlock()
	out := map[string]bool{}
	for _, r := range c.ix.images {
		out[r.v.Status.Digest] = true
	}
	for _, r := range c.ix.servers {
		out[r.v.Digest], out[r.v.CDROMDigest] = true, true
	}
	return out
}
