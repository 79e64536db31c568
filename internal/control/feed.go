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

// publish tells the changes of one revision. A subscriber that is too far behind is closed, and will list again.
func (f *feed) publish(revision int64, changes []change) {
	for _, c := range changes {
		if len(f.past) >= 2*remembered {
			f.cut = f.past[len(f.past)-remembered-1].revision
			f.past = slices.Clone(f.past[len(f.past)-remembered:])
		}
		f.past = append(f.past, c)
	}
	for s := range f.subs {
		for _, data := range encodeBatch(s.shown(changes), revision) {
			select {
			case s.ch <- data:
				continue
			default:
			}
			delete(f.subs, s)
			close(s.ch)
			break
		}
	}
}

// view is a change as a selection sees it.
type view struct {
	what api.ChangeType
	*entry
}

// shown are the changes that the selection sees: a resource that no longer matches is deleted, for this watcher.
func (s *selection) shown(changes []change) []view {
	var out []view
	for _, c := range changes {
		switch {
		case s.has(c.now):
			out = append(out, view{api.ChangePut, c.now})
		case s.has(c.old):
			out = append(out, view{api.ChangeDelete, c.old})
		}
	}
	return out
}

// since are the changes after a revision that the selection sees.
func (f *feed) since(s selection, from int64) [][]byte {
	var out [][]byte
	past := f.past
	for len(past) > 0 {
		revision := past[0].revision
		n := slices.IndexFunc(past, func(c change) bool { return c.revision != revision })
		if n < 0 {
			n = len(past)
		}
		if revision > from {
			out = append(out, encodeBatch(s.shown(past[:n]), revision)...)
		}
		past = past[n:]
	}
	return out
}

// encodeBatch encodes what belongs to one revision. Only the last one has the revision, and can be resumed after: who has
// read a part would never be told the rest.
func encodeBatch(views []view, revision int64) [][]byte {
	out := make([][]byte, len(views))
	for i, v := range views {
		if i < len(views)-1 {
			out[i] = encodeChange(v.what, 0, v.entry)
		} else {
			out[i] = encodeChange(v.what, revision, v.entry)
		}
	}
	return out
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
		first = t.since(s, from)
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

// snapshot is a put of everything that is selected.
func snapshot(s selection, all []*entry, revision int64) [][]byte {
	var chosen []view
	for _, e := range all {
		if s.has(e) {
			chosen = append(chosen, view{api.ChangePut, e})
		}
	}
	return encodeBatch(chosen, revision)
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
	if err := c.locate(&s); err != nil {
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
	if err := c.locate(&s); err != nil {
		return httpapi.Raw{}, err
	}
	return c.ix.list(s, o)
}
