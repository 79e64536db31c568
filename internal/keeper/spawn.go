package keeper

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/cgroup"
)

// connectTime bounds one attempt to reach a keeper, its start included.
const connectTime = 10 * time.Second

// connect dials the keeper of dir and starts it where nobody answers.
func connect(ctx context.Context, dir string, o Options) (opened, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		conn, r, err := greet(ctx, dir, hello{Version: protocol})
		if err == nil {
			l := &link{conn: conn, down: make(chan struct{}), pending: map[uint64]chan reply{}}
			return opened{l, r}, nil
		}
		serving := false
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
			if serving, err = spawn(ctx, dir, o); err != nil {
				err = fmt.Errorf("start keeper: %w", err)
			}
		case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
			err = nil // it is just ending
		}
		if err != nil {
			return opened{}, fmt.Errorf("connect to keeper of %s: %w", dir, err)
		}
		if serving {
			continue
		}
		// Another keeper has the directory, and is about to serve or to end; or this one failed, as its log tells.
		select {
		case <-ctx.Done():
			return opened{}, fmt.Errorf("start keeper: it does not serve, see %s: %w", filepath.Join(dir, logName), ctx.Err())
		case <-time.After(pause):
		}
	}
}

// spawn starts a keeper and waits until it serves, or has ended.
func spawn(ctx context.Context, dir string, o Options) (serving bool, err error) {
	if o.Executable == "" {
		if o.Executable, err = os.Executable(); err != nil {
			return false, err
		}
	}
	if o.Args == nil {
		o.Args = []string{"keeper"}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return false, err
	}
	defer null.Close()
	log, err := os.OpenFile(filepath.Join(dir, logName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return false, err
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return false, err
	}
	defer r.Close()
	defer w.Close()
	var place *cgroup.Place
	if o.CgroupPath != "" {
		if place, err = cgroup.Make(o.CgroupPath); err != nil {
			return false, err
		}
	}
	args := slices.Concat([]string{o.Executable}, o.Args, []string{"--dir", dir})
	pid, err := place.Start(o.Executable, args, &syscall.ProcAttr{
		Dir:   "/",
		Env:   append(os.Environ(), stderrVariable+"=1"),
		Files: []uintptr{rawFD(null), rawFD(w), rawFD(log)},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return false, err
	}
	w.Close()
	go reapKeeper(pid)
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer stop()
	n, _ := r.Read(make([]byte, 16))
	return n > 0, ctx.Err()
}

// stderrVariable tells a keeper that its standard error is its log.
const stderrVariable = "CROFT_KEEPER_LOG"

// reapKeeper waits for a keeper that ends while its starter still lives.
func reapKeeper(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
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
