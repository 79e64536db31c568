package keeper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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
	for {
		conn, r, err := greet(ctx, dir, hello{Version: protocol})
		if err == nil {
			l := &link{conn: conn, down: make(chan struct{}), pending: map[uint64]chan reply{}}
			return opened{l, r}, nil
		}
		absent := errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
		if !absent || ctx.Err() != nil {
			return opened{}, fmt.Errorf("connect to keeper of %s: %w", dir, err)
		}
		serving, spawnErr := spawn(ctx, dir, o)
		if spawnErr != nil {
			return opened{}, fmt.Errorf("start keeper of %s: %w", dir, spawnErr)
		}
		if !serving {
			// Another keeper has the directory, and is about to serve or to end; or this one failed, as its log tells.
			select {
			case <-ctx.Done():
				return opened{}, fmt.Errorf("start keeper of %s: it does not serve, see %s: %w", dir, filepath.Join(dir, logName), ctx.Err())
			case <-time.After(10 * time.Millisecond):
			}
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
