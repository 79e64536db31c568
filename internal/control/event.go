package control

import (
	"context"
	"encoding/json"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/state"
	"github.com/croftproject/croft/internal/store"
)

// eventList are the use cases of events: they are listed, the newest first, and watched.
type eventList struct{ *Control }

var errNoEvents = api.Errorf(api.CodeMethod, "events are only listed and watched")

func (c eventList) Create(context.Context, httpapi.Caller, string, httpapi.Create[struct{}]) (*api.Event, error) {
	return nil, errNoEvents
}

func (c eventList) Get(context.Context, httpapi.Caller, string, string) (*api.Event, error) {
	return nil, errNoEvents
}

func (c eventList) Update(context.Context, httpapi.Caller, string, string, httpapi.Update[struct{}]) (*api.Event, error) {
	return nil, errNoEvents
}

func (c eventList) Delete(context.Context, httpapi.Caller, string, string, httpapi.DeleteOptions) (*api.Event, error) {
	return nil, errNoEvents
}

func (c eventList) List(_ context.Context, who httpapi.Caller, tenant string, o httpapi.ListOptions) (httpapi.Raw, error) {
	return c.listFor(who, kindEvent, tenant, o)
}

func (c eventList) Watch(ctx context.Context, who httpapi.Caller, tenant string, o httpapi.ListOptions, from int64) (<-chan []byte, error) {
	return c.watchFor(ctx, who, kindEvent, tenant, o, from)
}

// warnLast makes a warning of the event that was added last.
func warnLast(d *draft) {
	last := &d.Puts[len(d.Puts)-1]
	var e api.Event
	if json.Unmarshal(last.Value, &e) == nil {
		e.Warning = true
		last.Value = store.Encode(last.Key, e).Value
	}
}

// How many events and ended jobs of each tenant are kept at most, the newest; and as many that belong to none.
const (
	maxEvents = 10_000
	maxJobs   = 1_000
	pruneStep = 500 // records that one transaction removes
)

// prune removes events and ended jobs beyond their number, once a minute, until ctx ends.
func (c *Control) prune(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := c.pruneOnce(ctx, maxEvents, maxJobs); err != nil && ctx.Err() == nil {
				c.o.Logger.Warn("remove old events", "error", err)
			}
		}
	}
}

func (c *Control) pruneOnce(ctx context.Context, events, jobs int) error {
	for {
		var tx store.Tx
		c.ix.mu.RLock()
		for _, e := range beyond(c.ix.tables[kindEvent].sorted, events) {
			tx.Deletes = append(tx.Deletes, state.Events+e.meta.ID)
		}
		for _, e := range beyond(c.ix.tables[kindJob].sorted, jobs) {
			if e.obj.(*api.Job).Status.Phase != api.JobRunning {
				tx.Deletes = append(tx.Deletes, state.Jobs+e.meta.ID)
			}
		}
		c.ix.mu.RUnlock()
		if len(tx.Deletes) == 0 {
			return nil
		}
		tx.Deletes = tx.Deletes[:min(pruneStep, len(tx.Deletes))]
		revision, err := c.o.Store.Commit(ctx, tx)
		if err != nil {
			return err
		}
		if err := c.ix.wait(ctx, revision); err != nil {
			return err
		}
	}
}

// beyond are the entries that come after the first n of their tenant.
func beyond(sorted []*entry, n int) []*entry {
	var out []*entry
	seen := map[string]int{}
	for _, e := range sorted {
		if seen[e.meta.Tenant]++; seen[e.meta.Tenant] > n {
			out = append(out, e)
		}
	}
	return out
}
