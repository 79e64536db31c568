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
			a.nets.record(ctx, store.Event{Record: r})
		}
		a.nets.seenOnce()
		a.nets.listed(ctx, ids)
	}, func(e store.Event) { a.nets.record(ctx, e) })
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

func (a *Agent) takeAll(all []store.Record) {
	a.mu.Lock()
	gone := a.desired
	a.foreign = map[string]bool{}
	a.desired, a.revision = map[string]*state.Server{}, map[string]int64{}
	a.mu.Unlock()
	for _, r := range all {
		a.take(store.Event{Record: r})
		delete(gone, strings.TrimPrefix(r.Key, state.Servers))
	}
	for id := range gone {
		a.loop.Wake(id)
	}
}

// take takes a record in, if it is of this host.
func (a *Agent) take(e store.Event) {
	id := strings.TrimPrefix(e.Key, state.Servers)
	var rec *state.Server
	if !e.Deleted {
		rec = &state.Server{}
		if err := json.Unmarshal(e.Value, rec); err != nil {
			a.Logger.Error("record of a server is damaged; it is left as it is", "server", id, "error", err)
			return
		}
	}
	a.mu.Lock()
	before := a.desired[id]
	delete(a.foreign, id)
	if rec == nil || rec.HostID != a.HostID {
		delete(a.desired, id)
		delete(a.revision, id)
		if rec != nil {
			a.foreign[id] = true
		}
	} else {
		a.desired[id], a.revision[id] = rec, e.Revision
	}
	a.mu.Unlock()
	a.nets.names(id, before, rec)
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
			rec, _, _ := a.record(id)
			a.recoverGuest(ctx, m, rec)
			if rec != nil && m.state() == guestNone {
				a.afterReboot(ctx, m, rec)
			}
		})
	}
	wg.Wait()
	a.nets.adopted(ctx)
	a.divider.wake()
}
