package keeper

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrClosed says that the client was closed.
var ErrClosed = errors.New("keeper client is closed")

// Options say how a keeper is started where none runs.
type Options struct {
	Executable string   // default: this program
	Args       []string // its arguments before "--dir DIR"; default "keeper"
	// CgroupPath is the group that the keeper runs in, relative to each hierarchy's root; it is made. Empty: the caller's
	// own, with which a service manager would end it.
	CgroupPath string
}

// Client talks to the keeper of a directory. It connects again, and starts a keeper again, when the connection is
// lost. All methods may be called concurrently.
type Client struct {
	dir     string
	options Options
	ctx     context.Context
	stop    context.CancelFunc
	over    chan struct{} // closed when the goroutine that holds the connection has ended

	mu    sync.Mutex
	link  *link         // nil while there is none
	up    chan struct{} // closed when link is set
	waits map[string]*waiting
	fault error // of the last attempt to connect
	// leaving is set while the keeper is asked to end: then a lost connection is not made again.
	leaving bool
}

// link is one connection.
type link struct {
	conn    net.Conn
	down    chan struct{} // closed when it is lost
	write   sync.Mutex
	mu      sync.Mutex
	seq     uint64
	pending map[uint64]chan reply
}

// Connect connects to the keeper of dir and starts one, in a session of its own, where none runs.
func Connect(ctx context.Context, dir string, o Options) (*Client, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	l, err := connect(ctx, dir, o)
	if err != nil {
		return nil, err
	}
	c := &Client{dir: dir, options: o, waits: map[string]*waiting{}, link: l.link, up: make(chan struct{}), over: make(chan struct{})}
	close(c.up)
	c.ctx, c.stop = context.WithCancel(context.Background())
	go c.hold(l)
	return c, nil
}

// opened is a link with what was read ahead from it.
type opened struct {
	*link
	r *bufio.Reader
}

// hold reads from the connection, and makes a new one whenever it is lost, until Close.
func (c *Client) hold(l opened) {
	defer close(c.over)
	for {
		conn := l.conn // what runs after the end may run late, when l is another link or none
		stop := context.AfterFunc(c.ctx, func() { conn.Close() })
		c.receive(l)
		stop()
		c.mu.Lock()
		c.link, c.up = nil, make(chan struct{})
		leaving := c.leaving
		c.mu.Unlock()
		if leaving {
			c.stop()
		}
		close(l.down)
		var err error
		if l, err = c.reconnect(); err != nil {
			return
		}
		go c.resync()
	}
}

// reconnect tries until it has a connection, or the client is closed.
func (c *Client) reconnect() (opened, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, time.Second) {
		ctx, cancel := context.WithTimeout(c.ctx, connectTime)
		l, err := connect(ctx, c.dir, c.options)
		cancel()
		c.mu.Lock()
		c.fault = err
		if err == nil {
			c.link = l.link
			close(c.up)
		}
		c.mu.Unlock()
		if err == nil {
			return l, nil
		}
		select {
		case <-c.ctx.Done():
			return opened{}, ErrClosed
		case <-time.After(pause):
		}
	}
}

// receive hands out replies and events in the order in which they come.
func (c *Client) receive(l opened) {
	defer l.conn.Close()
	dec := json.NewDecoder(l.r)
	for {
		var r reply
		if err := dec.Decode(&r); err != nil {
			return
		}
		if r.Seq == 0 {
			if r.Status != nil {
				c.learn(r.Status.ID, *r.Status)
			}
			continue
		}
		l.mu.Lock()
		answer := l.pending[r.Seq]
		delete(l.pending, r.Seq)
		l.mu.Unlock()
		if answer != nil {
			answer <- r
		}
	}
}

// call sends a request and waits for its reply. A request that is lost with its connection is sent again: all of them
// can be repeated.
func (c *Client) call(ctx context.Context, r request) (reply, error) {
	for {
		l, err := c.linked(ctx)
		if err != nil {
			return reply{}, err
		}
		answer, err := l.send(r)
		if err != nil {
			l.conn.Close()
		}
		select {
		case out := <-answer:
			return out, decodeError(out.Error)
		case <-l.down:
		case <-ctx.Done():
			return reply{}, ctx.Err()
		case <-c.ctx.Done():
			return reply{}, ErrClosed
		}
	}
}

// linked waits for a connection.
func (c *Client) linked(ctx context.Context) (*link, error) {
	for {
		c.mu.Lock()
		l, up, fault := c.link, c.up, c.fault
		c.mu.Unlock()
		if l != nil {
			return l, nil
		}
		select {
		case <-up:
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), fault)
		case <-c.ctx.Done():
			return nil, ErrClosed
		}
	}
}

func (l *link) send(r request) (<-chan reply, error) {
	answer := make(chan reply, 1)
	l.mu.Lock()
	l.seq++
	r.Seq = l.seq
	l.pending[r.Seq] = answer
	l.mu.Unlock()
	line, err := json.Marshal(r)
	if err != nil {
		return answer, err
	}
	l.write.Lock()
	defer l.write.Unlock()
	_, err = l.conn.Write(append(line, '\n'))
	return answer, err
}

// Start starts a process and returns once its program was executed; for a command that detaches, once that has ended.
// The context's deadline is the command's. An ID that is known gets the status of the process that has it, ended or not.
func (c *Client) Start(ctx context.Context, s Spec) (Status, error) {
	r := request{Op: opStart, Spec: &s}
	if deadline, ok := ctx.Deadline(); ok {
		r.Timeout = max(time.Until(deadline), time.Millisecond)
	}
	out, err := c.call(ctx, r)
	if err != nil {
		return Status{}, err
	}
	c.renew(s.ID)
	return *out.Status, nil
}

// Get returns what is known of a process; ErrUnknown where there is none.
func (c *Client) Get(ctx context.Context, id string) (Status, error) {
	out, err := c.call(ctx, request{Op: opGet, ID: id})
	if err != nil {
		return Status{}, err
	}
	return *out.Status, nil
}

// List returns all processes that run, or have ended and are not forgotten.
func (c *Client) List(ctx context.Context) ([]Status, error) {
	out, err := c.call(ctx, request{Op: opList})
	return out.List, err
}

// Signal sends a signal to a process; ErrUnknown, ErrEnded.
func (c *Client) Signal(ctx context.Context, id string, sig unix.Signal) error {
	_, err := c.call(ctx, request{Op: opSignal, ID: id, Signal: int(sig)})
	return err
}

// Forget removes what is remembered of an ended process; ErrRunning. Forgetting an unknown one does nothing.
func (c *Client) Forget(ctx context.Context, id string) error {
	if _, err := c.call(ctx, request{Op: opForget, ID: id}); err != nil {
		return err
	}
	c.learn(id, gone)
	c.renew(id)
	return nil
}

// Shutdown ends the keeper and closes the client; ErrRunning while the keeper holds a running process.
func (c *Client) Shutdown(ctx context.Context) error {
	l, err := c.linked(ctx)
	if err != nil {
		return err
	}
	c.leave(true)
	answer, err := l.send(request{Op: opShutdown})
	if err != nil {
		return err
	}
	var out reply
	select {
	case out = <-answer:
	case <-l.down:
	case <-ctx.Done():
		return ctx.Err()
	}
	if out.Error != nil {
		c.leave(false)
		return decodeError(out.Error)
	}
	return c.Close()
}

func (c *Client) leave(leaving bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaving = leaving
}

// Close ends the client. The keeper and its processes live on.
func (c *Client) Close() error {
	c.stop()
	<-c.over
	return nil
}
