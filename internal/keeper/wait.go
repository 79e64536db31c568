package keeper

import (
	"errors"
	"time"
)

// waiting is what a client knows of a process that somebody waits for.
type waiting struct {
	ready, done chan struct{}
	isReady     bool
	isDone      bool
}

// gone stands for a process that the keeper does not know.
var gone = Status{Ended: time.Unix(0, 0)}

// Done returns a channel that is closed when the process has ended; at once where none of that ID runs.
func (c *Client) Done(id string) <-chan struct{} { return c.wait(id).done }

// Ready returns a channel that is closed when Spec.Ready was seen, or the process has ended.
func (c *Client) Ready(id string) <-chan struct{} { return c.wait(id).ready }

func (c *Client) wait(id string) *waiting {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.waits[id]
	if w == nil {
		w = &waiting{ready: make(chan struct{}), done: make(chan struct{})}
		c.waits[id] = w
		go func() {
			s, err := c.Get(c.ctx, id)
			if errors.Is(err, ErrUnknown) {
				s = gone
			} else if err != nil {
				return // closed
			}
			c.learn(id, s)
		}()
	}
	return w
}

// learn closes the channels of what a status tells.
func (c *Client) learn(id string, s Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.waits[id]
	if w == nil {
		return
	}
	ended := !s.Ended.IsZero()
	if (ended || !s.Ready.IsZero()) && !w.isReady {
		w.isReady = true
		close(w.ready)
	}
	if ended && !w.isDone {
		w.isDone = true
		close(w.done)
	}
}

// renew lets the channels of an ended process go, for its ID has another.
func (c *Client) renew(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.waits[id]; w != nil && w.isDone {
		delete(c.waits, id)
	}
}

// resync finds out what happened while there was no connection.
func (c *Client) resync() {
	list, err := c.List(c.ctx)
	if err != nil {
		return // closed
	}
	known := map[string]Status{}
	for _, s := range list {
		known[s.ID] = s
	}
	c.mu.Lock()
	var ids []string
	for id, w := range c.waits {
		if !w.isDone {
			ids = append(ids, id)
		}
	}
	c.mu.Unlock()
	for _, id := range ids {
		if s, ok := known[id]; ok {
			c.learn(id, s)
		} else if _, err := c.Get(c.ctx, id); errors.Is(err, ErrUnknown) { // it may have been started since
			c.learn(id, gone)
		}
	}
}
