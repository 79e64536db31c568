package control

import (
	"context"
	"fmt"
	"slices"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
)

const (
	remembered = 1024 // changes of a kind that a watch can start from
	backlog    = 1024 // changes that a watcher may lag behind; then its watch ends
)

// change is one change of a resource; old or now is nil where it was made or removed.
type change struct {
	revision int64
	old, now *entry
}

// feed hands the changes of a kind to those who watch it. The index's lock guards it.
type feed struct {
	past []change // the last ones, oldest first
	cut  int64    // revision of the newest change that is not in past any more
	subs map[*subscriber]bool
}

type subscriber struct {
	selection
	ch chan []byte
}

// publish tells a change. A subscriber that is too far behind is closed, and will list again.
func (f *feed) publish(c change) {
	if len(f.past) >= 2*remembered {
		f.cut = f.past[len(f.past)-remembered-1].revision
		f.past = slices.Clone(f.past[len(f.past)-remembered:])
	}
	f.past = append(f.past, c)
	for s := range f.subs {
		data := s.shown(c)
		if data == nil {
			continue
		}
		select {
		case s.ch <- data:
		default:
			delete(f.subs, s)
			close(s.ch)
		}
	}
}

// shown is the change as the selection sees it: a resource that no longer matches is deleted, for this watcher.
func (s *subscriber) shown(c change) []byte {
	switch {
	case s.has(c.now):
		return encodeChange(api.ChangePut, c.revision, c.now)
	case s.has(c.old):
		return encodeChange(api.ChangeDelete, c.revision, c.old)
	}
	return nil
}

func encodeChange(t api.ChangeType, revision int64, e *entry) []byte {
	object := e.encoded()
	out := make([]byte, 0, len(object)+64)
	out = fmt.Appendf(out, `{"type":%q,"revision":%d,"object":`, t, revision)
	out = append(out, object...)
	return append(out, '}')
}

// watch delivers the changes after a revision; from 0: everything there is, and then the changes.
func (ix *index) watch(ctx context.Context, s selection, from int64) (<-chan []byte, error) {
	sub := &subscriber{selection: s, ch: make(chan []byte, backlog)}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	t := ix.tables[s.kind]
	var first [][]byte
	if from > 0 {
		if from > ix.revision { // the store is another one than it was, or went back in time
			return nil, api.Errorf(api.CodeExpired, "revision %d is not known here yet, the last is %d; list again, and watch from the list's revision", from, ix.revision)
		}
		if from < t.cut || from < ix.since {
			return nil, api.Errorf(api.CodeExpired, "changes after revision %d are not remembered any more; list again, and watch from the list's revision", from)
		}
		for _, c := range t.past {
			if c.revision > from {
				if data := sub.shown(c); data != nil {
					first = append(first, data)
				}
			}
		}
	} else {
		first = snapshot(s, t.sorted, ix.revision)
	}
	if t.subs == nil {
		t.subs = map[*subscriber]bool{}
	}
	t.subs[sub] = true
	out := make(chan []byte)
	go ix.deliver(ctx, t, sub, first, out)
	return out, nil
}

// snapshot is a put of everything that is selected. Only the last one has the revision, and can be resumed after: who has
// read a part would never be told the rest.
func snapshot(s selection, all []*entry, revision int64) [][]byte {
	var chosen []*entry
	for _, e := range all {
		if s.has(e) {
			chosen = append(chosen, e)
		}
	}
	out := make([][]byte, len(chosen))
	for i, e := range chosen {
		if i < len(chosen)-1 {
			out[i] = encodeChange(api.ChangePut, 0, e)
		} else {
			out[i] = encodeChange(api.ChangePut, revision, e)
		}
	}
	return out
}

func (ix *index) deliver(ctx context.Context, t *table, sub *subscriber, first [][]byte, out chan<- []byte) {
	defer close(out)
	defer func() {
		ix.mu.Lock()
		delete(t.subs, sub)
		ix.mu.Unlock()
	}()
	for _, data := range first {
		select {
		case out <- data:
		case <-ctx.Done():
			return
		}
	}
	for {
		select {
		case data, ok := <-sub.ch:
			if !ok {
				return
			}
			select {
			case out <- data:
			case <-ctx.Done():
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// closeFeeds ends all watches.
func (ix *index) closeFeeds() {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	for _, t := range ix.tables {
		for sub := range t.subs {
			delete(t.subs, sub)
			close(sub.ch)
		}
	}
}

// watchFor is Resources.Watch of every kind.
func (c *Control) watchFor(ctx context.Context, who httpapi.Caller, k kind, tenant string, o httpapi.ListOptions, from int64) (<-chan []byte, error) {
	s, err := choose(who, k, tenant, o)
	if err != nil {
		return nil, err
	}
	if err := c.tenantKnown(s.tenant); err != nil {
		return nil, err
	}
	return c.ix.watch(ctx, s, from)
}

// listFor is Resources.List of every kind.
func (c *Control) listFor(who httpapi.Caller, k kind, tenant string, o httpapi.ListOptions) (httpapi.Raw, error) {
	s, err := choose(who, k, tenant, o)
	if err != nil {
		return httpapi.Raw{}, err
	}
	if err := c.tenantKnown(s.tenant); err != nil {
		return httpapi.Raw{}, err
	}
	return c.ix.list(s, o)
}
