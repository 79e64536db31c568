package control

import (
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/ledger"
	"github.com/croftproject/croft/internal/state"
	"github.com/croftproject/croft/internal/store"
)

// rec is a record with its revision. Records are never changed, only replaced.
type rec[T any] struct {
	v   *T
	rev int64
}

// index holds everything that the store does, decoded, at one revision, and the resources made of it. One watch over all
// keys feeds it, so that records that were written in one transaction are seen together.
type index struct {
	log *slog.Logger

	mu       sync.RWMutex
	revision int64
	since    int64         // revision of the last list: changes before it were not seen one by one
	moved    chan struct{} // closed, and replaced, when revision grows
	keys     map[string]int64

	servers        map[string]rec[state.Server]
	statuses       map[string]rec[state.Status]
	networks       map[string]rec[state.Network]
	netStatuses    map[string]rec[state.NetStatus]
	images         map[string]rec[state.Image]
	tenants        map[string]rec[state.Tenant]
	hosts          map[string]rec[state.Host]
	hostStatuses   map[string]rec[api.HostStatus]
	jobs           map[string]rec[state.Job]
	events         map[string]rec[api.Event]
	hostLedgers    map[string]rec[ledger.Host]
	tenantLedgers  map[string]rec[ledger.Tenant]
	networkLedgers map[string]rec[ledger.Network]
	imageLedgers   map[string]rec[state.ImageUse]
	uplinkLedgers  map[string]rec[ledger.Uplink] // by host and tenant: HOST/TENANT

	tables map[kind]*table
	takers []taker
}

func newIndex(log *slog.Logger) *index {
	ix := &index{log: log, moved: make(chan struct{}), keys: map[string]int64{}, tables: map[kind]*table{}}
	for _, k := range kinds {
		ix.tables[k] = newTable(k)
	}
	ix.takers = []taker{
		take(state.Servers, kindServer, &ix.servers), take(state.ServerStatus, kindServer, &ix.statuses),
		take(state.Networks, kindNetwork, &ix.networks), take(state.NetworkLedger, kindNetwork, &ix.networkLedgers),
		take(state.NetworkStatus, kindNetwork, &ix.netStatuses),
		take(state.Images, kindImage, &ix.images), take(state.ImageLedger, kindImage, &ix.imageLedgers),
		take(state.Tenants, kindTenant, &ix.tenants), take(state.TenantLedger, kindTenant, &ix.tenantLedgers),
		take(state.Hosts, kindHost, &ix.hosts), take(state.HostStatus, kindHost, &ix.hostStatuses), take(state.HostLedger, kindHost, &ix.hostLedgers),
		take(state.UplinkLedger, kindHost, &ix.uplinkLedgers),
		take(state.Jobs, kindJob, &ix.jobs), take(state.Events, kindEvent, &ix.events),
	}
	return ix
}

// taker takes the records below one prefix into their map.
type taker struct {
	prefix string
	kind   kind
	take   func(id string, e store.Event) error
}

func take[T any](prefix string, k kind, into *map[string]rec[T]) taker {
	*into = map[string]rec[T]{}
	return taker{prefix, k, func(id string, e store.Event) error {
		if e.Deleted {
			delete(*into, id)
			return nil
		}
		v := new(T)
		if err := json.Unmarshal(e.Value, v); err != nil {
			return err
		}
		(*into)[id] = rec[T]{v, e.Revision}
		return nil
	}}
}

// follow keeps the index until ctx ends. loaded is closed once it is complete for the first time.
func (ix *index) follow(ctx context.Context, s store.Store, loaded chan<- struct{}) {
	for first := true; ctx.Err() == nil; {
		records, revision, err := s.List(ctx, "")
		if err != nil {
			if ctx.Err() == nil {
				ix.log.Error("read the store", "error", err)
			}
			pause(ctx, 200*time.Millisecond)
			continue
		}
		ix.apply(store.Batch{Revision: revision, Changes: ix.missing(records)})
		ix.listed(revision)
		if first {
			first = false
			close(loaded)
		}
		for batch := range s.Watch(ctx, "", revision+1) {
			ix.apply(batch)
		}
		pause(ctx, 200*time.Millisecond)
	}
}

func (ix *index) listed(revision int64) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.since = revision
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// missing is what makes the index equal to a list: the records that are new to it, and the deletions that it missed.
func (ix *index) missing(records []store.Record) []store.Event {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	var changes []store.Event
	there := make(map[string]bool, len(records))
	for _, r := range records {
		there[r.Key] = true
		if ix.keys[r.Key] != r.Revision {
			changes = append(changes, store.Event{Record: r})
		}
	}
	for key := range ix.keys {
		if !there[key] {
			changes = append(changes, store.Event{Record: store.Record{Key: key}, Deleted: true})
		}
	}
	return changes
}

// apply takes one revision in.
func (ix *index) apply(b store.Batch) {
	type object struct {
		kind kind
		id   string
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	dirty := map[object]bool{}
	for _, e := range b.Changes {
		for _, t := range ix.takers {
			id, ok := strings.CutPrefix(e.Key, t.prefix)
			if !ok {
				continue
			}
			if err := t.take(id, e); err != nil {
				ix.log.Error("a record is damaged; what was known of it is kept", "key", e.Key, "revision", e.Revision, "error", err)
			}
			dirty[object{t.kind, id}] = true
			if ix.keys[e.Key] = e.Revision; e.Deleted {
				delete(ix.keys, e.Key)
			}
			break
		}
	}
	changes := map[kind][]change{}
	for o := range dirty {
		if c, changed := ix.tables[o.kind].set(o.id, ix.join(o.kind, o.id), b.Revision); changed {
			changes[o.kind] = append(changes[o.kind], c)
		}
	}
	for k, of := range changes {
		ix.tables[k].publish(b.Revision, of)
	}
	ix.revision = max(ix.revision, b.Revision)
	close(ix.moved)
	ix.moved = make(chan struct{})
}

// wait returns when the index has a revision, or ctx ends.
func (ix *index) wait(ctx context.Context, revision int64) error {
	for {
		ix.mu.RLock()
		have, moved := ix.revision, ix.moved
		ix.mu.RUnlock()
		if have >= revision {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// join makes the resource of a kind and id, or nil where there is none.
func (ix *index) join(k kind, id string) *entry {
	switch k {
	case kindServer:
		if r, ok := ix.servers[id]; ok {
			s := state.JoinServer(r.v, ix.statuses[id].v, r.rev)
			return &entry{meta: &s.Meta, obj: &s}
		}
	case kindNetwork:
		if r, ok := ix.networks[id]; ok {
			n := api.Network{Meta: r.v.Meta, Spec: r.v.Spec, Status: api.NetworkStatus{Phase: "active"}}
			n.Revision, n.Status.Ports = r.rev, or(ix.networkLedgers[id]).Ports
			n.Status.Conditions = or(ix.netStatuses[id]).Conditions
			return &entry{meta: &n.Meta, obj: &n}
		}
	case kindImage:
		if r, ok := ix.images[id]; ok {
			m := api.Image{Meta: r.v.Meta, Spec: r.v.Spec, Status: r.v.Status}
			m.Revision, m.Status.Users = r.rev, or(ix.imageLedgers[id]).Users
			return &entry{meta: &m.Meta, obj: &m, shared: m.Spec.Shared}
		}
	case kindTenant:
		if r, ok := ix.tenants[id]; ok {
			used := or(ix.tenantLedgers[id])
			t := api.Tenant{Meta: r.v.Meta, Spec: r.v.Spec, Status: api.TenantStatus{Used: used.Resources, Networks: used.Networks, Images: used.Images, Bandwidth: used.Bandwidth}}
			t.Revision = r.rev
			return &entry{meta: &t.Meta, obj: &t}
		}
	case kindHost:
		if r, ok := ix.hosts[id]; ok {
			h := ix.joinHost(id, r)
			return &entry{meta: &h.Meta, obj: h}
		}
	case kindJob:
		if r, ok := ix.jobs[id]; ok {
			j := r.v.Job
			j.Revision = r.rev
			return &entry{meta: &j.Meta, obj: &j}
		}
	case kindEvent:
		if r, ok := ix.events[id]; ok {
			return &entry{meta: &api.Meta{ID: id, Name: r.v.Name, Tenant: r.v.Tenant, Created: r.v.Time}, obj: r.v}
		}
	}
	return nil
}

// or is the record's value, or the zero value where there is no record.
func or[T any](r rec[T]) T {
	if r.v == nil {
		var zero T
		return zero
	}
	return *r.v
}

func (ix *index) joinHost(id string, r rec[state.Host]) *api.Host {
	h := &api.Host{Meta: r.v.Meta, Spec: r.v.Spec, Status: or(ix.hostStatuses[id])}
	h.Revision = r.rev
	if h.Status.Phase == "" {
		h.Status.Phase = "away"
	}
	h.Status.Capacity = r.v.Capacity
	h.Status.Allocatable = room(r.v).Allocatable()
	h.Status.Allocated = or(ix.hostLedgers[id]).Allocated()
	up := &h.Status.Uplink
	up.Rate, up.Committable, up.Committed = room(r.v).Uplink, room(r.v).Promisable(), or(ix.hostLedgers[id]).Bandwidth
	return h
}

// room is what a host's record says of its room.
func room(h *state.Host) ledger.Room {
	return ledger.Room{
		Name: h.Meta.Name, Capacity: h.Capacity, CPUs: h.CPUs, Reserve: h.Spec.Reserve, Overcommit: h.Spec.Overcommit,
		Uplink: cmp.Or(h.Spec.UplinkRate, h.UplinkRate), Committable: h.Spec.Committable,
	}
}
