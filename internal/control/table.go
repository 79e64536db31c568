package control

import (
	"encoding/json"
	"slices"
	"strings"
	"sync"

	"github.com/croftproject/croft/api"
)

// kind of resource, as events and name records call it.
type kind string

const (
	kindServer  kind = "server"
	kindNetwork kind = "network"
	kindImage   kind = "image"
	kindHost    kind = "host"
	kindTenant  kind = "tenant"
	kindJob     kind = "job"
	kindEvent   kind = "event"
)

var kinds = []kind{kindServer, kindNetwork, kindImage, kindHost, kindTenant, kindJob, kindEvent}

// entry is one resource as it stands. It is never changed, only replaced.
type entry struct {
	meta   *api.Meta
	obj    any // *api.Server, …
	key    string
	shared bool // seen by all tenants

	once sync.Once
	json []byte
}

// encoded is the resource as JSON, encoded once.
func (e *entry) encoded() []byte {
	e.once.Do(func() {
		data, err := json.Marshal(e.obj)
		if err != nil {
			panic("encode " + e.meta.ID + ": " + err.Error())
		}
		e.json = data
	})
	return e.json
}

// table is the resources of one kind, in the order in which they are listed: by tenant and name; jobs and events the
// newest first.
type table struct {
	kind   kind
	byID   map[string]*entry
	sorted []*entry // by key
	feed
}

func newTable(k kind) *table {
	return &table{kind: k, byID: map[string]*entry{}}
}

// key orders entries. It is unique: a name can be held twice for as long as a rename passes through.
func (t *table) key(m *api.Meta) string {
	if t.kind == kindEvent || t.kind == kindJob {
		return newestFirst(m.ID)
	}
	return m.Tenant + "\x00" + m.Name + "\x00" + m.ID
}

// newestFirst turns the order of ids round.
func newestFirst(id string) string {
	out := []byte(id)
	for i, c := range out {
		out[i] = 0x7f - c
	}
	return string(out)
}

// set puts, or with nil removes, a resource. It tells whether that changed anything; the caller publishes it.
func (t *table) set(id string, e *entry, revision int64) (c change, changed bool) {
	old := t.byID[id]
	if e == nil && old == nil {
		return c, false
	}
	if old != nil && (e == nil || t.key(e.meta) != old.key) {
		at, _ := t.find(old.key)
		t.sorted = slices.Delete(t.sorted, at, at+1)
	}
	if e == nil {
		delete(t.byID, id)
	} else {
		e.key = t.key(e.meta)
		t.byID[id] = e
		if at, there := t.find(e.key); there {
			t.sorted[at] = e
		} else {
			t.sorted = slices.Insert(t.sorted, at, e)
		}
	}
	return change{revision: revision, old: old, now: e}, true
}

// find is where a key is, or would be.
func (t *table) find(key string) (int, bool) {
	return slices.BinarySearchFunc(t.sorted, key, func(e *entry, key string) int { return strings.Compare(e.key, key) })
}

// named finds a resource of a tenant by name, or by id.
func (t *table) named(tenant, name string) *entry {
	at, _ := t.find(tenant + "\x00" + name + "\x00")
	if at < len(t.sorted) {
		if e := t.sorted[at]; e.meta.Tenant == tenant && e.meta.Name == name {
			return e
		}
	}
	if e := t.byID[name]; e != nil && e.meta.Tenant == tenant {
		return e
	}
	return nil
}

// holds tells whether a tenant has a resource of that name.
func (t *table) holds(tenant, name string) bool {
	e := t.named(tenant, name)
	return e != nil && e.meta.Name == name
}

// tenantRange is where a tenant's entries are, in a table ordered by tenant.
func (t *table) tenantRange(tenant string) (from, to int) {
	from, _ = t.find(tenant + "\x00")
	to, _ = t.find(tenant + "\x01")
	return from, to
}
