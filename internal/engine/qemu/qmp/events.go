package qmp

import (
	"context"
	"sync"
)

// Events is a queue of events for one reader. The connection's reader only appends, so a slow subscriber blocks nobody.
// The queue is bounded: a flood drops the oldest, and Lost counts them.
type Events struct {
	limit int

	mu     sync.Mutex
	queue  []Event
	lost   int
	end    error         // why nothing more will come; nil while connected
	change chan struct{} // closed and replaced at each append
}

// NewEvents makes a queue of at most limit events.
func NewEvents(limit int) *Events {
	return &Events{limit: max(limit, 1), change: make(chan struct{})}
}

// Next waits for the next event, in the order in which QEMU sent them. After the last one of a connection that was lost
// it returns the reason of the loss.
func (e *Events) Next(ctx context.Context) (Event, error) {
	for {
		e.mu.Lock()
		if len(e.queue) > 0 {
			event := e.queue[0]
			e.queue[0] = Event{}
			e.queue = e.queue[1:]
			e.mu.Unlock()
			return event, nil
		}
		end, change := e.end, e.change
		e.mu.Unlock()
		if end != nil {
			return Event{}, end
		}
		select {
		case <-change:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// Lost is how many events were dropped because nobody read them in time.
func (e *Events) Lost() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.lost
}

func (e *Events) add(event Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.queue) >= e.limit {
		e.queue[0] = Event{}
		e.queue = e.queue[1:]
		e.lost++
	}
	e.queue = append(e.queue, event)
	e.wake()
}

func (e *Events) close(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.end == nil {
		e.end = err
		e.wake()
	}
}

func (e *Events) wake() {
	close(e.change)
	e.change = make(chan struct{})
}
