package fake

import (
	"bytes"
	"io"
	"sync"
)

// echo is a terminal that shows what is typed. It takes input whether or not its output is read.
type echo struct {
	mu     sync.Mutex
	change *sync.Cond
	typed  bytes.Buffer
	closed bool
}

func newEcho() *echo {
	e := &echo{}
	e.change = sync.NewCond(&e.mu)
	return e
}

func (e *echo) Read(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for e.typed.Len() == 0 && !e.closed {
		e.change.Wait()
	}
	if e.closed {
		return 0, io.EOF
	}
	return e.typed.Read(p)
}

func (e *echo) Write(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return 0, io.ErrClosedPipe
	}
	e.change.Broadcast()
	return e.typed.Write(p)
}

func (e *echo) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	e.change.Broadcast()
	return nil
}
