package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

type options struct {
	Binary string
	Cache  string
	Rounds int
}

// lab holds what benches share: a host with the image micro, and peers. They are made when first asked for, and taken
// away at the end, the last first.
type lab struct {
	o     options
	began time.Time
	dir   string
	undo  []func() error

	host *host
	lxd  *lxd
}

func newLab(o options) *lab { return &lab{o: o, began: time.Now()} }

// say tells on stderr what goes on.
func (l *lab) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(l.began).Seconds(), fmt.Sprintf(format, args...))
}

// later has undo called at the end.
func (l *lab) later(undo func() error) { l.undo = append(l.undo, undo) }

func (l *lab) close() error {
	var errs []error
	for len(l.undo) > 0 {
		last := l.undo[len(l.undo)-1]
		l.undo = l.undo[:len(l.undo)-1]
		errs = append(errs, last())
	}
	return errors.Join(errs...)
}

// workDir is a directory of this run. Guests' users pass through it; paths of sockets in it are short.
func (l *lab) workDir() (string, error) {
	if l.dir != "" {
		return l.dir, nil
	}
	dir, err := os.MkdirTemp("/var/tmp", "croft-b")
	if err != nil {
		return "", err
	}
	l.dir = dir
	l.later(func() error { return os.RemoveAll(dir) })
	return dir, os.Chmod(dir, 0o711)
}

// Host is the host that real guests run on, with the image micro and a network.
func (l *lab) Host(ctx context.Context) (*host, error) {
	if l.host != nil {
		return l.host, nil
	}
	h, err := l.newHost(ctx, "h", l.o.Binary, "daemon")
	if err != nil {
		return nil, err
	}
	if err := h.furnish(ctx); err != nil {
		return nil, err
	}
	l.host = h
	return h, nil
}

// newHost makes a host below the work directory, and starts its daemon.
func (l *lab) newHost(ctx context.Context, name, binary, command string) (*host, error) {
	dir, err := l.workDir()
	if err != nil {
		return nil, err
	}
	h := &host{
		l: l, binary: binary, command: command, name: filepath.Base(dir) + name,
		StateDir: filepath.Join(dir, name), RunDir: "/run/" + filepath.Base(dir) + name,
	}
	l.later(h.close)
	if err := h.open(ctx); err != nil {
		return nil, fmt.Errorf("make a host: %w", err)
	}
	return h, nil
}

// missing tells which of the programs are not installed.
func missing(err error) string {
	return strings.TrimPrefix(err.Error(), "exec: ") + ": run `make bench-peers`"
}
