package keeper

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	ends  map[string]*ending
	fault error // of the last attempt to connect
}

// ending is a process that somebody waits for.
type ending struct {
	done chan struct{}
	over bool
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
	c := &Client{dir: dir, options: o, ends: map[string]*ending{}, link: l.link, up: make(chan struct{}), over: make(chan struct{})}
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
		stop := context.AfterFunc(c.ctx, func() { l.conn.Close() })
		c.receive(l)
		stop()
		c.mu.Lock()
		c.link, c.up = nil, make(chan struct{})
		c.mu.Unlock()
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
			if r.Status != nil && !r.Status.Ended.IsZero() {
				c.ended(r.Status.ID)
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

func (c *Client) ended(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.ends[id]; e != nil && !e.over {
		e.over = true
		close(e.done)
	}
}

// resync finds out what ended while there was no connection.
func (c *Client) resync() {
	c.mu.Lock()
	var waiting []string
	for id, e := range c.ends {
		if !e.over {
			waiting = append(waiting, id)
		}
	}
	c.mu.Unlock()
	if len(waiting) == 0 {
		return
	}
	list, err := c.List(c.ctx)
	if err != nil {
		return // closed
	}
	running := map[string]bool{}
	for _, s := range list {
		running[s.ID] = s.Ended.IsZero()
	}
	for _, id := range waiting {
		if !running[id] {
			c.ended(id)
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
			if r.Op == opShutdown {
				return reply{}, nil // it has ended
			}
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
	c.mu.Lock()
	if e := c.ends[s.ID]; e != nil && e.over {
		delete(c.ends, s.ID) // of an earlier process of that ID
	}
	c.mu.Unlock()
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

// Done returns a channel that is closed when the process has ended; at once where none of that ID runs.
func (c *Client) Done(id string) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.ends[id]
	if e == nil {
		e = &ending{done: make(chan struct{})}
		c.ends[id] = e
		go func() {
			s, err := c.Get(c.ctx, id)
			if errors.Is(err, ErrUnknown) || err == nil && !s.Ended.IsZero() {
				c.ended(id)
			}
		}()
	}
	return e.done
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
	c.ended(id)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.ends, id)
	return nil
}

// Shutdown ends the keeper and closes the client; ErrRunning while the keeper holds a running process.
func (c *Client) Shutdown(ctx context.Context) error {
	l, err := c.linked(ctx)
	if err != nil {
		return err
	}
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
		return decodeError(out.Error)
	}
	return c.Close()
}

// Close ends the client. The keeper and its processes live on.
func (c *Client) Close() error {
	c.stop()
	<-c.over
	return nil
}

// Attach connects to a process' console: first its last output, then what follows, until it ends or the stream is
// closed. resize may be nil; it is read until the stream is closed.
func (c *Client) Attach(ctx context.Context, id string, resize <-chan WinSize) (io.ReadWriteCloser, error) {
	conn, r, err := greet(ctx, c.dir, hello{Version: protocol, Attach: id})
	if err != nil {
		return nil, err
	}
	s := &stream{conn: conn, r: r, closed: make(chan struct{})}
	go s.resize(resize)
	return s, nil
}

// stream is an attached console.
type stream struct {
	conn   net.Conn
	r      *bufio.Reader
	write  sync.Mutex
	once   sync.Once
	closed chan struct{}
}

func (s *stream) Read(p []byte) (int, error) { return s.r.Read(p) }

func (s *stream) Write(p []byte) (int, error) {
	for written := 0; written < len(p); {
		n := min(len(p)-written, frameMax)
		if err := s.frame(frameInput, p[written:written+n]); err != nil {
			return written, err
		}
		written += n
	}
	return len(p), nil
}

func (s *stream) frame(kind byte, payload []byte) error {
	s.write.Lock()
	defer s.write.Unlock()
	_, err := s.conn.Write(appendFrame(nil, kind, payload))
	return err
}

func (s *stream) resize(sizes <-chan WinSize) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			s.frame(frameResize, []byte{byte(size.Rows >> 8), byte(size.Rows), byte(size.Cols >> 8), byte(size.Cols)})
		case <-s.closed:
			return
		}
	}
}

func (s *stream) Close() error {
	s.once.Do(func() { close(s.closed) })
	return s.conn.Close()
}

// greet connects to a keeper's socket and says what for.
func greet(ctx context.Context, dir string, h hello) (net.Conn, *bufio.Reader, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(dir, socketName))
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	r := bufio.NewReader(conn)
	err = json.NewEncoder(conn).Encode(h)
	var w welcome
	if err == nil {
		var line []byte
		if line, err = r.ReadSlice('\n'); err == nil {
			err = json.Unmarshal(line, &w)
		}
	}
	if !stop() {
		err = ctx.Err()
	}
	switch {
	case err != nil:
		err = fmt.Errorf("greet keeper: %w", err)
	case w.Error != nil:
		err = decodeError(w.Error)
	case w.Version < 1:
		err = fmt.Errorf("keeper speaks version %d", w.Version)
	}
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, r, nil
}
