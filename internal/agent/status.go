package agent

import (
	"context"
	"encoding/json"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/state"
	"github.com/croftproject/croft/internal/store"
	"github.com/oklog/ulid/v2"
)

// lastReport is how long the agent, when it ends, takes to write what is due.
const lastReport = 2 * time.Second

// retryReport is how long the reporter waits before it tries a store again that did not answer.
const retryReport = time.Second

// reporter writes the statuses of this host's servers, and events, to the store: the latest of each server, many in one
// transaction, in the background. A store that is away delays reports and loses none but those overtaken.
type reporter struct {
	a *Agent

	writing sync.Mutex // held over a transaction

	mu     sync.Mutex
	last   map[string]*state.Status
	notes  map[string]note // servers of which a change is not carried out
	due    map[string]*state.Status
	events []api.Event
	timed  bool // a wake is due soon
	wakes  chan struct{}
}

func newReporter(a *Agent) *reporter {
	return &reporter{
		a: a, last: map[string]*state.Status{}, notes: map[string]note{}, due: map[string]*state.Status{},
		wakes: make(chan struct{}, 1),
	}
}

// note is why a change of a server is not carried out.
type note struct {
	condition string // type of the condition that tells it
	reason    string
	message   string
	revision  int64 // of a spec that can't be carried out now
}

// waiting notes that a change of a server waits for its next start; "" that none does, and that none failed.
func (r *reporter) waiting(id, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if why == "" {
		delete(r.notes, id)
		return
	}
	r.notes[id] = note{condition: "RestartNeeded", reason: "NotLive", message: why}
}

// failing notes that a change of a server fails, and tells whether that is news.
func (r *reporter) failing(id string, revision int64, why string) (news bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.notes[id].revision
	r.notes[id] = note{condition: "ChangeFailed", reason: "Retried", message: why, revision: revision}
	return before != revision
}

// observed is the revision that the last status of a server speaks of; an earlier daemon may have written that.
func (r *reporter) observed(ctx context.Context, id string) int64 {
	r.mu.Lock()
	last := r.last[id]
	r.mu.Unlock()
	if last != nil {
		return last.Observed
	}
	kept, _, err := store.Get[state.Status](ctx, r.a.Store, state.ServerStatus+id)
	if err != nil {
		return 0
	}
	return kept.Observed
}

// report tells where a server stands.
func (a *Agent) report(m *machine, rec *state.Server, revision int64, w want) {
	if rec == nil {
		a.status.forget(m.id)
		return
	}
	g := m.state()
	l := m.remembered()
	st := &state.Status{Restarted: l.Restarted, StartSeen: l.StartSeen, BootID: a.BootID}
	st.Phase, st.Message, st.Observed = phase(w, &l, g, m.torn), l.Failure, revision
	st.Accelerator = a.accelerator(rec.Engine)
	st.Started, st.NextStart, st.Exit, st.Restarts = l.Started, l.NextStart, l.Exit, l.InRow
	if g == guestRunning || g == guestPaused {
		st.Message, st.Exit, st.NextStart = "", nil, time.Time{}
		if kept, err := a.Keeper.Get(context.Background(), m.id); err == nil {
			st.Ready = kept.Ready
		}
		// A process on the host's kernel is userspace from its start; what else it would print is not known.
		if _, b := m.guestOf(); b != nil && b.Boot.Ready == "" && rec.Spec.Model == api.ModelOS {
			st.Ready = l.Started
		}
	} else {
		st.Started = time.Time{}
	}
	a.status.put(m.id, st, a.Now())
}

func (r *reporter) put(id string, st *state.Status, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.last[id]
	st.Conditions = conditions(st, r.notes[id], before, now)
	if before != nil && reflect.DeepEqual(before, st) {
		return
	}
	r.last[id], r.due[id] = st, st
	if passing(st.Phase) {
		r.wakeSoon()
	} else {
		r.wake()
	}
}

// conditions of a status; each keeps its time while it holds.
func conditions(st *state.Status, n note, before *state.Status, now time.Time) []api.Condition {
	out := []api.Condition{{Type: "Running", Status: st.Phase == api.PhaseRunning, Reason: title(string(st.Phase)), Message: st.Message}}
	if n.condition != "" {
		out = append(out, api.Condition{Type: n.condition, Status: true, Reason: n.reason, Message: n.message})
	}
	for i := range out {
		out[i].Since = now
		if before == nil {
			continue
		}
		for _, b := range before.Conditions {
			if b.Type == out[i].Type && b.Status == out[i].Status {
				out[i].Since = b.Since
			}
		}
	}
	return out
}

func title(s string) string {
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// forget drops a server; on return nothing more is written of it.
func (r *reporter) forget(id string) {
	r.writing.Lock()
	defer r.writing.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.last, id)
	delete(r.due, id)
	delete(r.notes, id)
}

// event tells what happened to a server.
func (a *Agent) event(rec *state.Server, reason, message string, warning bool) {
	if rec == nil {
		return
	}
	r := a.status
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, api.Event{
		ID: strings.ToLower(ulid.MustNew(ulid.Timestamp(a.Now()), ulid.DefaultEntropy()).String()), Time: a.Now(),
		Tenant: rec.Meta.Tenant, Kind: "server", Name: rec.Meta.Name, ObjectID: rec.Meta.ID,
		Reason: reason, Message: message, Warning: warning,
	})
	if len(r.events) > 10000 { // a store that is away for long loses the oldest
		r.events = r.events[len(r.events)-10000:]
	}
	r.wakeSoon()
}

// wake has the reporter write; r.mu is held.
func (r *reporter) wake() {
	select {
	case r.wakes <- struct{}{}:
	default:
	}
}

// soon is how long a status that is about to change, and an event, may wait for the status that they lead to. All of them
// then take one transaction, which is on the way of whoever waits for the server to run.
const soon = 50 * time.Millisecond

// passing tells whether another phase follows by itself.
func passing(p api.Phase) bool {
	return p == api.PhaseStarting || p == api.PhaseStopping || p == api.PhaseDeleting
}

// wakeSoon has the reporter write before long; r.mu is held.
func (r *reporter) wakeSoon() {
	if r.timed {
		return
	}
	r.timed = true
	time.AfterFunc(soon, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.timed = false
		r.wake()
	})
}

// batchSize is how many records go in one transaction; etcd takes 128 operations.
const batchSize = 60

func (r *reporter) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wakes:
		}
		for r.flush(ctx) {
		}
	}
}

// flush writes one batch, and tells whether there is more.
func (r *reporter) flush(ctx context.Context) bool {
	r.writing.Lock()
	defer r.writing.Unlock()
	r.mu.Lock()
	tx := store.Tx{Reports: true}
	taken := map[string]*state.Status{}
	for id, st := range r.due {
		if len(tx.Puts) == batchSize {
			break
		}
		value, err := json.Marshal(st)
		if err == nil {
			tx.Puts = append(tx.Puts, store.Put{Key: state.ServerStatus + id, Value: value})
		}
		taken[id] = st
		delete(r.due, id)
	}
	n := min(batchSize, len(r.events))
	events := r.events[:n:n]
	r.events = r.events[n:]
	for _, e := range events {
		value, err := json.Marshal(e)
		if err == nil {
			tx.Puts = append(tx.Puts, store.Put{Key: state.Events + e.ID, Value: value, TTL: state.EventTTL})
		}
	}
	r.mu.Unlock()
	if len(tx.Puts) == 0 {
		return false
	}
	if _, err := r.a.Store.Commit(ctx, tx); err != nil {
		r.again(taken, events)
		if ctx.Err() == nil {
			r.a.Logger.Error("report to the store", "error", err)
			time.AfterFunc(retryReport, func() {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.wake()
			})
		}
		return false
	}
	return true
}

// again puts back what could not be written, unless something newer is due.
func (r *reporter) again(taken map[string]*state.Status, events []api.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, st := range taken {
		if r.due[id] == nil && r.last[id] == st {
			r.due[id] = st
		}
	}
	r.events = append(events, r.events...)
}

func (a *Agent) accelerator(engine string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.accel[engine]
}
