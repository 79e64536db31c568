package httpapi

import (
	"context"
	"net/http"
	"sync"

	"github.com/coder/websocket"

	"github.com/croftproject/croft/api"
)

// Handler answers the whole API.
type Handler struct{ *server }

// Stop ends what goes on for as long as its client likes: watches, followed logs and streams. It does not wait.
func (h *Handler) Stop() {
	h.lasting.mu.Lock()
	defer h.lasting.mu.Unlock()
	h.lasting.stop()
}

// Wait waits, after Stop, until the clients of streams have been told. http.Server knows nothing of those.
func (h *Handler) Wait(ctx context.Context) {
	told := make(chan struct{})
	go func() {
		h.lasting.streams.Wait()
		close(told)
	}()
	select {
	case <-told:
	case <-ctx.Done():
	}
}

// lasting are the requests that go on for as long as their clients like.
type lasting struct {
	stopping context.Context // ends by stop
	stop     context.CancelFunc

	mu      sync.Mutex // held over a begin, and over stop
	streams sync.WaitGroup
}

func newLasting() *lasting {
	l := &lasting{}
	l.stopping, l.stop = context.WithCancel(context.Background())
	return l
}

// begin counts a stream until end is called; none begins any more once the daemon stops.
func (l *lasting) begin() (end func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over() {
		return nil, api.Errorf(api.CodeUnavailable, "the daemon stops")
	}
	l.streams.Add(1)
	return l.streams.Done, nil
}

// over tells whether the daemon stops.
func (l *lasting) over() bool { return l.stopping.Err() != nil }

// at has f called once the daemon stops, unless forget is called before.
func (l *lasting) at(f func()) (forget func() bool) { return context.AfterFunc(l.stopping, f) }

// farewell closes a stream that has come to its end, or to the daemon's.
func (l *lasting) farewell(c *websocket.Conn) {
	if l.over() {
		c.Close(websocket.StatusGoingAway, "the daemon stops; the server goes on") //nolint:errcheck // the client may be gone
		return
	}
	c.Close(websocket.StatusNormalClosure, "") //nolint:errcheck // the client may be gone
}

var _ http.Handler = (*Handler)(nil)
