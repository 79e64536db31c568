// Package httpapitest gives tests a control plane and guests in memory, so that the API, its client and the commands can
// be tried without a host.
package httpapitest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
)

// resources keeps one kind in memory.
type resources[T, S any] struct {
	fake     *Fake
	kind     string
	make     func(api.Meta, S) *T
	meta     func(*T) *api.Meta
	spec     func(*T) *S
	check    func(*S) error
	created  func(*T) // called without the lock, after a create
	deletes  func(*T, httpapi.DeleteOptions) error
	updated  func(*T)
	matches  func(*T, map[string]string) bool
	shared   func(*T) bool // readable by every tenant
	mu       sync.Mutex
	items    map[string]*T // by tenant/name
	watchers map[chan []byte]string
}

func (r *resources[T, S]) key(tenant, name string) string { return tenant + "/" + name }

func (r *resources[T, S]) missing(name string) error {
	return api.Errorf(api.CodeNotFound, "there is no %s %q", r.kind, name)
}

func (r *resources[T, S]) Create(_ context.Context, who httpapi.Caller, tenant string, c httpapi.Create[S]) (*T, error) {
	r.fake.note(who)
	if r.kind == "image" || r.kind == "host" {
		return nil, api.Errorf(api.CodeUnsupported, "a %s can't be created like this", r.kind)
	}
	if c.Name == "" {
		return nil, api.Invalid([]api.FieldError{{Pointer: "/name", Code: api.CodeInvalid, Message: "is required"}})
	}
	if r.check != nil {
		if err := r.check(&c.Spec); err != nil {
			return nil, err
		}
	}
	return r.Put(tenant, c.Name, c.Labels, c.Spec)
}

// Put creates a resource.
func (r *resources[T, S]) Put(tenant, name string, labels map[string]string, spec S) (*T, error) {
	r.mu.Lock()
	if r.items[r.key(tenant, name)] != nil {
		r.mu.Unlock()
		return nil, api.Errorf(api.CodeExists, "there is a %s %q already", r.kind, name)
	}
	t := r.make(api.Meta{
		Name: name, Tenant: tenant, ID: r.fake.id(), Revision: r.fake.next(), Labels: labels, Created: r.fake.Now(),
	}, spec)
	r.items[r.key(tenant, name)] = t
	r.tell(api.ChangePut, tenant, t, r.meta(t).Revision)
	out := *t
	r.mu.Unlock()
	if r.created != nil {
		r.created(&out)
	}
	return &out, nil
}

func (r *resources[T, S]) Get(_ context.Context, who httpapi.Caller, tenant, name string) (*T, error) {
	r.fake.note(who)
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.visible(tenant, name)
	if t == nil {
		return nil, r.missing(name)
	}
	out := *t
	return &out, nil
}

func (r *resources[T, S]) find(tenant, name string) *T {
	if t := r.items[r.key(tenant, name)]; t != nil {
		return t
	}
	for _, t := range r.items {
		if m := r.meta(t); m.ID == name && m.Tenant == tenant {
			return t
		}
	}
	return nil
}

// visible finds what can be read: the tenant's own, and what the operator shares.
func (r *resources[T, S]) visible(tenant, name string) *T {
	if t := r.find(tenant, name); t != nil {
		return t
	}
	for _, t := range r.items {
		if r.meta(t).Name == name && r.shared != nil && r.shared(t) {
			return t
		}
	}
	return nil
}

func (r *resources[T, S]) List(_ context.Context, who httpapi.Caller, tenant string, o httpapi.ListOptions) (httpapi.Raw, error) {
	r.fake.note(who)
	r.mu.Lock()
	defer r.mu.Unlock()
	var keys []string
	for key, t := range r.items {
		if r.wanted(t, tenant, o) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	raw := httpapi.Raw{Total: len(keys), Revision: r.fake.revision()}
	start := 0
	if o.Cursor != "" {
		n, err := strconv.Atoi(o.Cursor)
		if err != nil || n < 0 || n > len(keys) {
			return raw, api.Errorf(api.CodeInvalid, "cursor %q is none that a list gave", o.Cursor)
		}
		start = n
	}
	limit := o.Limit
	if limit == 0 {
		limit = 100
	}
	end := min(start+limit, len(keys))
	for _, key := range keys[start:end] {
		raw.Items = append(raw.Items, encode(r.items[key]))
	}
	if end < len(keys) {
		raw.Next = strconv.Itoa(end)
	}
	return raw, nil
}

func (r *resources[T, S]) wanted(t *T, tenant string, o httpapi.ListOptions) bool {
	m := r.meta(t)
	if !o.AllTenants && m.Tenant != tenant {
		return false
	}
	for key, value := range o.Labels {
		if m.Labels[key] != value {
			return false
		}
	}
	if name := o.Filter["name"]; name != "" {
		prefix, star := strings.CutSuffix(name, "*")
		if (star && !strings.HasPrefix(m.Name, prefix)) || (!star && m.Name != name) {
			return false
		}
	}
	return r.matches == nil || r.matches(t, o.Filter)
}

func (r *resources[T, S]) Update(_ context.Context, who httpapi.Caller, tenant, name string, u httpapi.Update[S]) (*T, error) {
	r.fake.note(who)
	r.mu.Lock()
	t := r.find(tenant, name)
	if t == nil {
		r.mu.Unlock()
		return nil, r.missing(name)
	}
	if u.Revision != 0 && u.Revision != r.meta(t).Revision {
		r.mu.Unlock()
		return nil, api.Errorf(api.CodeConflict, "%s %s was changed meanwhile: it is at revision %d", r.kind, name, r.meta(t).Revision)
	}
	changed := *t
	m := r.meta(&changed)
	old := m.Name
	if u.Name != "" {
		m.Name = u.Name
	}
	m.Labels, *r.spec(&changed) = u.Labels, u.Spec
	if bytes.Equal(encode(changed), encode(t)) { // as the control plane, which then writes nothing
		r.mu.Unlock()
		return &changed, nil
	}
	m.Revision = r.fake.next()
	delete(r.items, r.key(tenant, old))
	r.items[r.key(tenant, m.Name)] = &changed
	r.tell(api.ChangePut, tenant, &changed, m.Revision)
	out := changed
	r.mu.Unlock()
	if r.updated != nil {
		r.updated(&out)
	}
	return &out, nil
}

func (r *resources[T, S]) Delete(_ context.Context, who httpapi.Caller, tenant, name string, o httpapi.DeleteOptions) (*T, error) {
	r.fake.note(who)
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.find(tenant, name)
	if t == nil {
		return nil, r.missing(name)
	}
	if o.Revision != 0 && o.Revision != r.meta(t).Revision {
		return nil, api.Errorf(api.CodeConflict, "%s %s was changed meanwhile", r.kind, name)
	}
	if r.deletes != nil {
		if err := r.deletes(t, o); err != nil {
			return nil, err
		}
	}
	delete(r.items, r.key(tenant, r.meta(t).Name))
	r.tell(api.ChangeDelete, tenant, t, r.fake.next())
	out := *t
	return &out, nil
}

// change edits a resource in place, as its host would, and tells the watchers.
func (r *resources[T, S]) change(tenant, name string, edit func(*T)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.find(tenant, name)
	if t == nil {
		return
	}
	changed := *t
	edit(&changed)
	r.items[r.key(tenant, r.meta(t).Name)] = &changed
	r.tell(api.ChangePut, tenant, &changed, r.fake.next())
}

// tell sends a change to the watchers; the lock is held.
func (r *resources[T, S]) tell(kind api.ChangeType, tenant string, t *T, revision int64) {
	for c, of := range r.watchers {
		if of == "*" || of == tenant {
			c <- encode(api.Change[T]{Type: kind, Revision: revision, Object: *t})
		}
	}
}

// watchBuffer is what a watcher of a test may leave unread.
const watchBuffer = 4096

func (r *resources[T, S]) Watch(ctx context.Context, who httpapi.Caller, tenant string, o httpapi.ListOptions, from int64) (<-chan []byte, error) {
	r.fake.note(who)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.fake.watchFrom(from); err != nil {
		return nil, err
	}
	c := make(chan []byte, watchBuffer)
	if o.AllTenants {
		tenant = "*"
	}
	r.watchers[c] = tenant
	if from == 0 {
		for _, t := range r.items {
			if r.wanted(t, tenant, o) {
				c <- encode(api.Change[T]{Type: api.ChangePut, Revision: r.meta(t).Revision, Object: *t})
			}
		}
	}
	context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if _, ok := r.watchers[c]; ok {
			delete(r.watchers, c)
			close(c)
		}
	})
	return c, nil
}

// breakWatches ends every watch, as a store that goes away does.
func (r *resources[T, S]) breakWatches() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.watchers {
		delete(r.watchers, c)
		close(c)
	}
}

func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", v, err))
	}
	return data
}

// clock is a time that tests choose.
type clock func() time.Time
