package keeper

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	tailSize  = 4 << 10   // what an attaching client is shown first, in bytes
	viewLimit = 256 << 10 // what a client may lag behind before it is dropped, in bytes
	drainTime = 500 * time.Millisecond
	typeTime  = 5 * time.Second // for a guest to take what was typed
)

// console takes a guest's output, for as long as it runs: a guest never waits for whoever watches.
type console struct {
	in      *os.File // master of the terminal, or read end of a pipe
	hold    *os.File // the terminal's other side, held so that a guest may close and reopen its own
	log     *rollingLog
	tty     bool
	drained chan struct{} // closed when there is nothing more to come

	mu     sync.Mutex
	ready  *marker // nil once seen
	seen   func(time.Time)
	tail   []byte
	views  map[*view]struct{}
	ending bool // the process has ended: the end of output is final
	ended  bool // no output comes any more
}

// newConsole serves in, which it owns. ready may be empty; seen is called when it appears.
func newConsole(in *os.File, tty bool, log *rollingLog, ready string, seen func(time.Time)) *console {
	c := &console{in: in, tty: tty, log: log, seen: seen, drained: make(chan struct{}), views: map[*view]struct{}{}}
	if ready != "" {
		c.ready = &marker{text: []byte(ready)}
	}
	if tty {
		c.hold, _ = peer(in) // without it, read waits where it would have ended
	}
	return c
}

// run reads to the end of the output.
func (c *console) run() {
	defer c.close()
	buf := make([]byte, 4096) // as much as a terminal gives at once
	for pause := time.Millisecond; ; {
		n, err := c.in.Read(buf)
		if n > 0 {
			pause = time.Millisecond
			c.put(buf[:n])
		}
		if err == nil {
			continue
		}
		// A terminal that nobody has open, or that its guest hung up (vhangup), may be opened again.
		if !c.tty || !errors.Is(err, unix.EIO) || !c.reopen(pause) {
			return
		}
		pause = min(2*pause, time.Second)
	}
}

// reopen waits a little and holds the terminal's other side anew. It reports false once the process has ended.
func (c *console) reopen(pause time.Duration) bool {
	if !c.holding(nil) {
		return false
	}
	time.Sleep(pause)
	hold, _ := peer(c.in) // without it, the next read tries again
	return c.holding(hold)
}

// holding replaces what holds the terminal's other side. Once the process has ended, nothing does, and it is false.
func (c *console) holding(hold *os.File) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hold != nil {
		c.hold.Close()
	}
	if c.hold = hold; c.ending && hold != nil {
		hold.Close()
		c.hold = nil
	}
	return !c.ending
}

func (c *console) put(p []byte) {
	now := time.Now()
	c.mu.Lock()
	if c.log != nil {
		c.log.Write(p) // a full disk must not stop the guest
	}
	c.tail = append(c.tail, p...)
	if extra := len(c.tail) - tailSize; extra > 0 {
		c.tail = append(c.tail[:0], c.tail[extra:]...)
	}
	for v := range c.views {
		if !v.put(p) {
			delete(c.views, v)
		}
	}
	saw := c.ready != nil && c.ready.saw(p)
	if saw {
		c.ready = nil
	}
	c.mu.Unlock()
	if saw {
		c.seen(now)
	}
}

func (c *console) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	for v := range c.views {
		v.finish()
		delete(c.views, v)
	}
	if c.log != nil {
		c.log.Close()
	}
	if c.hold != nil {
		c.hold.Close()
		c.hold = nil
	}
	c.in.Close()
	close(c.drained)
}

// finish takes what an ended process has still written, and closes the console. Descendants that live on and hold it
// are not waited for.
func (c *console) finish() {
	c.mu.Lock()
	c.ending = true
	c.mu.Unlock()
	c.holding(nil)
	c.in.SetReadDeadline(time.Now().Add(drainTime))
	<-c.drained
}

// last returns the end of the output.
func (c *console) last() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.tail)
}

// attach makes conn a view of the console, from its last output on, and returns when it is over: when the console has
// ended, or the client has gone and all that it typed was taken.
func (c *console) attach(conn net.Conn, input io.Reader) {
	v := &view{conn: conn, more: make(chan struct{}, 1)}
	c.mu.Lock()
	v.put(c.tail)
	if c.ended {
		v.finish()
	} else {
		c.views[v] = struct{}{}
	}
	c.mu.Unlock()
	taken := make(chan struct{})
	go func() {
		defer close(taken)
		c.take(input)
		c.leave(v)
		v.drop()
	}()
	v.run()
	c.leave(v) // it may have gone without being read to the end: what it typed is still taken
	<-taken
}

func (c *console) leave(v *view) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.views, v)
}

// take carries out the frames of a client, until it goes or breaks the protocol.
func (c *console) take(input io.Reader) {
	buf := make([]byte, frameMax)
	for {
		kind, payload, err := readFrame(input, buf)
		if err != nil {
			return
		}
		switch {
		case kind == frameInput && c.tty:
			c.in.SetWriteDeadline(time.Now().Add(typeTime))
			if _, err := c.in.Write(payload); err != nil && !errors.Is(err, unix.EIO) {
				return
			}
		case kind == frameResize && len(payload) == 4 && c.tty:
			setSize(c.in, WinSize{uint16(payload[0])<<8 | uint16(payload[1]), uint16(payload[2])<<8 | uint16(payload[3])})
		}
	}
}

// view is a client that watches a console. Its output waits in memory, up to viewLimit.
type view struct {
	conn net.Conn
	more chan struct{}

	mu   sync.Mutex
	buf  []byte
	last bool // nothing follows what is in buf
}

// put queues output. It reports false, and drops the client, where that lags too far behind.
func (v *view) put(p []byte) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.buf)+len(p) > viewLimit {
		v.conn.Close()
		v.last = true
		v.wake()
		return false
	}
	v.buf = append(v.buf, p...)
	v.wake()
	return true
}

func (v *view) wake() {
	select {
	case v.more <- struct{}{}:
	default:
	}
}

// finish lets the client have what is queued, and closes its connection.
func (v *view) finish() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.conn.SetWriteDeadline(time.Now().Add(typeTime))
	v.last = true
	v.wake()
}

// drop closes the connection of a client that has gone.
func (v *view) drop() {
	v.conn.Close()
	v.finish()
}

// run writes what is queued to the client. A client that hung up ends it and leaves the connection open, to be read.
func (v *view) run() {
	for range v.more {
		v.mu.Lock()
		out, last := v.buf, v.last
		v.buf = nil
		v.mu.Unlock()
		_, err := v.conn.Write(out)
		if last || errors.Is(err, os.ErrDeadlineExceeded) {
			v.conn.Close()
		}
		if last || err != nil {
			return
		}
	}
}
