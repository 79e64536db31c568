package agent

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"github.com/croftproject/croft/internal/state"
	"github.com/croftproject/croft/internal/store"
)

// retryWatch is how long a broken watch waits before it lists again.
const retryWatch = time.Second

// watchServers keeps the records of this host's servers, and wakes those that change. left are servers of which the host
// has something; those without a record are cleaned away.
func (a *Agent) watchServers(ctx context.Context, left []string) {
	first := true
	follow(ctx, a, state.Servers, func(all []store.Record) {
		a.takeAll(all)
		if first {
			first = false
			select {
			case <-a.nets.seen:
			case <-ctx.Done():
				return
			}
			a.adopt(ctx, left)
			close(a.seen)
		}
		a.mu.Lock()
		ids := make([]string, 0, len(a.desired))
		for id := range a.desired {
			ids = append(ids, id)
		}
		a.mu.Unlock()
		for _, id := range append(ids, left...) {
			a.loop.Wake(id)
		}
		left = nil
	}, func(e store.Event) {
		a.take(e)
		a.loop.Wake(strings.TrimPrefix(e.Key, state.Servers))
	})
}

func (a *Agent) watchNetworks(ctx context.Context) {
	follow(ctx, a, state.Networks, func(all []store.Record) {
		ids := map[string]bool{}
		for _, r := range all {
			ids[strings.TrimPrefix(r.Key, state.Networks)] = true
			a.nets.record(store.Event{Record: r})
		}
		a.nets.seenOnce()
		a.nets.listed(ctx, ids)
	}, func(e store.Event) { a.nets.record(e) })
}

// follow lists and then watches a prefix, again and again until ctx ends.
func follow(ctx context.Context, a *Agent, prefix string, all func([]store.Record), one func(store.Event)) {
	for ctx.Err() == nil {
		records, rev, err := a.Store.List(ctx, prefix)
		if err == nil {
			all(records)
			for batch := range a.Store.Watch(ctx, prefix, rev+1) {
				for _, e := range batch.Changes {
					one(e)
				}
			}
		} else if ctx.Err() == nil {
			a.Logger.Error("list records", "prefix", prefix, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryWatch):
		}
	}
}

// takeAll takes all records in at once: no run sees some of them only.
func (a *Agent) takeAll(all []store.Record) {
	desired, revision, foreign := map[string]*state.Server{}, map[string]int64{}, map[string]bool{}
	for _, r := range all {
		id := strings.TrimPrefix(r.Key, state.Servers)
		if rec := a.ours(id, r); rec != nil {
			desired[id], revision[id] = rec, r.Revision
		} else {
			foreign[id] = true
		}
	}
	a.mu.Lock()
	before := a.desired
	a.desired, a.revision, a.foreign = desired, revision, foreign
	a.mu.Unlock()
	for id, rec := range desired {
		a.nets.names(id, before[id], rec, a.HostID)
		delete(before, id)
	}
	for id, rec := range before {
		a.nets.names(id, rec, nil, a.HostID)
		a.loop.Wake(id)
	}
}

// ours decodes a record; nil where it is another host's, or damaged: then what the host has of it is left alone.
func (a *Agent) ours(id string, r store.Record) *state.Server {
	rec := &state.Server{}
	if err := json.Unmarshal(r.Value, rec); err != nil {
		a.Logger.Error("record of a server can't be read; what the host has of it is left as it is", "server", id, "error", err)
		return nil
	}
	if rec.HostID != a.HostID {
		return nil
	}
	return rec
}

// take takes one change in.
func (a *Agent) take(e store.Event) {
	id := strings.TrimPrefix(e.Key, state.Servers)
	var rec *state.Server
	if !e.Deleted {
		rec = a.ours(id, e.Record)
	}
	a.mu.Lock()
	before := a.desired[id]
	delete(a.desired, id)
	delete(a.revision, id)
	delete(a.foreign, id)
	switch {
	case rec != nil:
		a.desired[id], a.revision[id] = rec, e.Revision
	case !e.Deleted:
		a.foreign[id] = true
	}
	a.mu.Unlock()
	a.nets.names(id, before, rec, a.HostID)
}

// adopt finds the guests that outlived the daemon, many at a time, and the order in which the rest is to start.
func (a *Agent) adopt(ctx context.Context, left []string) {
	slots := make(chan struct{}, 16)
	var wg sync.WaitGroup
	for _, id := range left {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			m, err := a.machineOf(id)
			if err != nil {
				a.Logger.Error("read what is remembered of a server", "server", id, "error", err)
				return
			}
			a.keepIDs(m)
			rec, _, _ := a.record(id)
			m.unknown = a.recoverGuest(ctx, m, rec)
		})
	}
	wg.Wait()
	a.afterReboot(ctx)
	a.nets.adopted()
	a.watchers.Go(a.divider.wake) // what the last daemon wrote holds meanwhile
}
