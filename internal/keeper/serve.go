package keeper

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	requestsMax = 256  // of one connection, at a time
	repliesMax  = 8192 // that a client may leave unread before it is dropped
)

// serve accepts clients until ctx is cancelled.
func (k *keeper) serve(ctx context.Context, stop context.CancelFunc) error {
	path := filepath.Join(k.dir, socketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	mask := unix.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(mask)
	if err != nil {
		return err
	}
	go func() {
		<-ctx.Done()
		l.Close()
	}()
	go k.guard("watch of the socket", func() { k.watchSocket(ctx, path, stop) })
	k.log.Info("serving", "pid", os.Getpid(), "processes", len(k.list()))
	announceReady()
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			k.log.Info("ending")
			return nil
		}
		if err != nil {
			return err
		}
		go k.guard("connection", func() { k.welcome(ctx, c, stop) })
	}
}

// watchSocket waits until the socket is removed (inotify(7)), with its directory for instance. Then nobody can reach the
// keeper any more, and it ends with its last process.
func (k *keeper) watchSocket(ctx context.Context, path string, stop context.CancelFunc) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		k.log.Warn("watch socket", "error", err)
		return
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer context.AfterFunc(ctx, func() { events.Close() })()
	defer events.Close()
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_ATTRIB|unix.IN_DELETE_SELF); err != nil {
		k.log.Warn("watch socket", "error", err)
		return
	}
	for buf := make([]byte, 4096); ; {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			break
		}
		if _, err := events.Read(buf); err != nil {
			return
		}
	}
	if ctx.Err() != nil {
		return
	}
	k.log.Warn("socket was removed")
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cut = stop; k.shut() == nil {
		stop()
	}
}

// announceReady tells whoever started this process, and lets go of its standard output.
func announceReady() {
	fmt.Println("ready")
	if null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0); err == nil {
		unix.Dup3(int(null.Fd()), 1, 0)
		null.Close()
	}
}

// welcome finds out who has connected, and what for.
func (k *keeper) welcome(ctx context.Context, nc *net.UnixConn, stop context.CancelFunc) {
	defer nc.Close()
	if err := allowed(nc); err != nil {
		k.log.Warn("connection refused", "error", err)
		return
	}
	nc.SetReadDeadline(time.Now().Add(patience))
	r := bufio.NewReaderSize(nc, 4096)
	line, err := r.ReadSlice('\n')
	var h hello
	if err != nil || json.Unmarshal(line, &h) != nil {
		return
	}
	nc.SetReadDeadline(time.Time{})
	w := welcome{Version: protocol, PID: os.Getpid()}
	var terminal *console
	if h.Attach != "" {
		terminal, err = k.attach(h.Attach)
		w.Error = encodeError(err)
	}
	c := &conn{keeper: k, net: nc, more: make(chan struct{}, 1), slots: make(chan struct{}, requestsMax), stop: stop}
	if h.Attach == "" {
		// Known before it is welcomed: from then on it misses no event.
		k.mu.Lock()
		k.conns[c] = struct{}{}
		k.mu.Unlock()
		defer c.close()
	}
	if err := json.NewEncoder(nc).Encode(w); err != nil || w.Error != nil {
		return
	}
	if terminal != nil {
		terminal.attach(nc, r)
		return
	}
	go k.guard("replies", c.write)
	c.read(ctx, json.NewDecoder(r))
}

// allowed lets in root and the keeper's own user (SO_PEERCRED, unix(7)).
func allowed(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || credErr != nil {
		return errors.Join(err, credErr)
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("user %d may not use the keeper", cred.Uid)
	}
	return nil
}

// announce sends every client an event. keeper.mu is held, so it is queued before the reply to any later request.
func (k *keeper) announce(s Status) {
	for c := range k.conns {
		c.send(reply{Status: &s})
	}
}

// conn is a client's connection.
type conn struct {
	keeper *keeper
	net    net.Conn
	stop   context.CancelFunc
	slots  chan struct{} // requests under way

	mu    sync.Mutex
	queue []reply
	more  chan struct{}
	gone  bool
}

func (c *conn) close() {
	c.keeper.mu.Lock()
	delete(c.keeper.conns, c)
	c.keeper.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	c.net.Close()
	c.wake()
}

// send queues a reply; it never waits for the client.
func (c *conn) send(r reply) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) >= repliesMax {
		c.net.Close()
		return
	}
	c.queue = append(c.queue, r)
	c.wake()
}

func (c *conn) wake() {
	select {
	case c.more <- struct{}{}:
	default:
	}
}

func (c *conn) write() {
	for range c.more {
		c.mu.Lock()
		queue, gone := c.queue, c.gone
		c.queue = nil
		c.mu.Unlock()
		if gone {
			return
		}
		w := bufio.NewWriter(c.net)
		enc := json.NewEncoder(w)
		shutdown := false
		for _, r := range queue {
			enc.Encode(r)
			shutdown = shutdown || r.shutdown
		}
		if err := w.Flush(); err != nil {
			c.net.Close() // ends read
			return
		}
		if shutdown {
			c.stop()
			return
		}
	}
}

// read takes requests until the client goes. What is under way goes on without it.
func (c *conn) read(ctx context.Context, dec *json.Decoder) {
	defer context.AfterFunc(ctx, func() { c.net.Close() })()
	for {
		var r request
		if err := dec.Decode(&r); err != nil {
			return
		}
		c.slots <- struct{}{}
		go func() {
			defer func() { <-c.slots }()
			c.send(c.keeper.answer(r))
		}()
	}
}

// answer carries out a request.
func (k *keeper) answer(r request) reply {
	out := reply{Seq: r.Seq}
	err := k.protect(string(r.Op)+" "+r.ID, func() error {
		switch r.Op {
		case opStart:
			if r.Spec == nil {
				return errors.New("start: no spec")
			}
			s, err := k.start(*r.Spec, r.Timeout)
			out.Status = &s
			return err
		case opGet:
			s, err := k.get(r.ID)
			out.Status = &s
			return err
		case opList:
			out.List = k.list()
			return nil
		case opSignal:
			return k.signal(r.ID, unix.Signal(r.Signal))
		case opForget:
			return k.forget(r.ID)
		case opShutdown:
			err := k.shutdown()
			out.shutdown = err == nil
			return err
		}
		return fmt.Errorf("keeper of version %d does not know %q", protocol, r.Op)
	})
	if out.Error = encodeError(err); err != nil {
		out.Status = nil
	}
	return out
}
