package uml

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/uml/mconsole"
	"github.com/croftproject/croft/internal/keeper"
)

const (
	handleVersion = 1
	undoLimit     = 30 * time.Second // to undo a launch whose context is over
	startLimit    = 20 * time.Second // from the process's start to its kernel's; some 30 ms are usual
	startPoll     = 2 * time.Millisecond
)

// handleData is what a Handle holds.
type handleData struct {
	PID    int   `json:"pid"`
	Memory int64 `json:"memory"` // bytes that the guest was started with
}

// Launch starts the kernel and returns once it has set itself up and boots.
func (e *Engine) Launch(ctx context.Context, m *engine.Machine) (engine.Guest, error) {
	g, err := e.launch(ctx, m)
	if err != nil {
		return nil, fmt.Errorf("launch %s: %w", m.ID, err)
	}
	return g, nil
}

func (e *Engine) launch(ctx context.Context, m *engine.Machine) (*Guest, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	status, err := e.Keeper.Get(ctx, m.ID)
	switch {
	case err == nil && status.Ended.IsZero():
		return e.guest(m, status, int64(m.Spec.Memory.Limit)), nil
	case err != nil && !errors.Is(err, keeper.ErrUnknown):
		return nil, err
	}
	// What an earlier guest of the machine has left, whether it ended or its launch did.
	if err := e.tidy(ctx, m); err != nil {
		return nil, err
	}
	spec, err := e.spec(m)
	if err != nil {
		return nil, err
	}
	status, err = e.start(ctx, m, spec)
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
		defer cancel()
		return nil, errors.Join(err, e.tidy(undo, m))
	}
	return e.guest(m, status, int64(m.Spec.Memory.Limit)), nil
}

// start makes the files that the guest's process needs, and the process.
func (e *Engine) start(ctx context.Context, m *engine.Machine, spec keeper.Spec) (keeper.Status, error) {
	if err := e.handOver(m); err != nil {
		return keeper.Status{}, err
	}
	if err := ctx.Err(); err != nil {
		return keeper.Status{}, err
	}
	// Not cancelled on its way: whether the process was started must be known, to undo it.
	starting, cancel := context.WithTimeout(context.WithoutCancel(ctx), startLimit)
	defer cancel()
	status, err := e.Keeper.Start(starting, spec)
	if err != nil {
		return keeper.Status{}, err
	}
	if err := e.boots(ctx, m); err != nil {
		return keeper.Status{}, err
	}
	return status, nil
}

// handOver gives the guest's user what is its own: its disks, the directory for its sockets and the file system for its
// memory.
func (e *Engine) handOver(m *engine.Machine) error {
	uid := int(m.IDs.Base)
	if uid == 0 {
		return errors.New("no range of user ids: a guest does not run as root")
	}
	if err := os.Mkdir(umlDir(m), 0o700); err != nil {
		return err
	}
	if err := os.Chmod(m.RunDir, 0o711); err != nil { // the user passes through it
		return err
	}
	if err := os.Lchown(umlDir(m), uid, uid); err != nil {
		return err
	}
	if err := mountMemory(memoryOf(m), m.Spec.Memory.Limit, m.IDs.Base); err != nil {
		return fmt.Errorf("make room for the guest's memory: %w", err)
	}
	for _, disk := range []string{m.Root.Path, m.Seed} {
		if disk == "" {
			continue
		}
		if info, err := os.Lstat(disk); err != nil {
			return err
		} else if !info.Mode().IsRegular() {
			return fmt.Errorf("disk %s is no plain file", disk)
		}
		if err := os.Lchown(disk, uid, uid); err != nil {
			return err
		}
	}
	paths := []string{e.kernel(m), m.Root.Path, umlDir(m)}
	for _, p := range []string{m.Seed, m.Boot.Initrd} {
		if p != "" {
			paths = append(paths, p)
		}
	}
	for _, p := range paths {
		if err := passable(p, m.IDs.Base); err != nil {
			return err
		}
	}
	return nil
}

// passable checks that the guest's user can get through to a path: each directory lets others pass, or the user's own
// group. It saves searching for the reason in the guest's log.
func passable(p string, user uint32) error {
	for dir := filepath.Dir(p); ; dir = filepath.Dir(dir) {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return &os.PathError{Op: "stat", Path: dir, Err: err}
		}
		byGroup := st.Gid == user && st.Mode&0o010 != 0
		if st.Mode&0o001 == 0 && !byGroup {
			return fmt.Errorf("the guest's user can't reach %s: %s has mode %#o; it needs the x bit for others", p, dir, st.Mode&0o777)
		}
		if dir == "/" {
			return nil
		}
	}
}

// boots waits until the kernel has passed its checks of the host, made its directory and begun to boot.
func (e *Engine) boots(ctx context.Context, m *engine.Machine) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("the kernel did not begin to boot within %v", startLimit))
	defer cancel()
	err := appears(ctx, pidFile(m), e.Keeper.Done(m.ID))
	if err != nil {
		err = fmt.Errorf("%w: %s", err, lastLines(engine.ConsoleLog(m)))
	}
	return err
}

var errEnded = errors.New("the kernel ended at once")

// appears waits for a file. UML tells by no event that it runs.
func appears(ctx context.Context, file string, ended <-chan struct{}) error {
	poll := time.NewTicker(startPoll)
	defer poll.Stop()
	for {
		if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ended:
			return errEnded
		}
	}
}

// guest is the engine's one Guest of a machine for a process.
func (e *Engine) guest(m *engine.Machine, s keeper.Status, memory int64) *Guest {
	e.mu.Lock()
	defer e.mu.Unlock()
	if g := e.guests[m.ID]; g != nil && g.pid == s.PID && g.started.Equal(s.Started) {
		return g
	}
	g := &Guest{
		engine: e, m: *m, pid: s.PID, started: s.Started, memory: memory,
		console: mconsole.New(filepath.Join(umlDir(m), umid), m.RunDir, m.IDs.Base),
	}
	if s.Ended.IsZero() {
		g.done = e.Keeper.Done(m.ID)
	} else {
		closed := make(chan struct{})
		close(closed)
		g.done = closed
	}
	e.guests[m.ID] = g
	return g
}

// Recover finds the guest's process at the keeper.
func (e *Engine) Recover(ctx context.Context, m *engine.Machine, h engine.Handle) (engine.Guest, error) {
	g, err := e.recover(ctx, m, h)
	if err != nil {
		return nil, fmt.Errorf("recover %s: %w", m.ID, err)
	}
	return g, nil
}

func (e *Engine) recover(ctx context.Context, m *engine.Machine, h engine.Handle) (*Guest, error) {
	if h.Engine != Name || h.Version != handleVersion {
		return nil, fmt.Errorf("handle is of engine %q, version %d", h.Engine, h.Version)
	}
	var data handleData
	if err := json.Unmarshal(h.Data, &data); err != nil || data.PID <= 0 || data.Memory <= 0 {
		return nil, fmt.Errorf("handle is damaged: %q", h.Data)
	}
	status, err := e.Keeper.Get(ctx, m.ID)
	if errors.Is(err, keeper.ErrUnknown) || err == nil && status.PID != data.PID {
		return nil, engine.ErrGone
	}
	if err != nil {
		return nil, err
	}
	g := e.guest(m, status, data.Memory)
	// A daemon that died between marking a pause and making it left the guest running.
	if paused, err := g.Paused(ctx); err == nil && paused && g.running() {
		if err := g.console.Stop(ctx); err != nil && g.running() {
			return nil, err
		}
	}
	return g, nil
}

// Clean ends whatever runs of the machine and removes its files.
func (e *Engine) Clean(ctx context.Context, m *engine.Machine) error {
	err := e.tidy(ctx, m)
	if err == nil {
		for _, log := range []string{engine.ConsoleLog(m), engine.ConsoleLog(m) + ".1"} {
			if gone := os.Remove(log); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
				err = errors.Join(err, gone)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("clean %s: %w", m.ID, err)
	}
	return nil
}

// tidy ends every process of the machine, has the keeper forget it and empties RunDir of what is the engine's.
func (e *Engine) tidy(ctx context.Context, m *engine.Machine) error {
	if err := e.Groups.Kill(ctx, path.Base(m.Cgroup)); err != nil {
		return err
	}
	if _, err := e.Keeper.Get(ctx, m.ID); err == nil {
		select {
		case <-e.Keeper.Done(m.ID):
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := e.Keeper.Forget(ctx, m.ID); err != nil {
			return err
		}
	} else if !errors.Is(err, keeper.ErrUnknown) {
		return err
	}
	e.mu.Lock()
	delete(e.guests, m.ID)
	e.mu.Unlock()
	if err := unmountMemory(memoryOf(m)); err != nil {
		return err
	}
	for _, name := range []string{guestDir, askedMark, pauseMark} {
		if err := os.RemoveAll(filepath.Join(m.RunDir, name)); err != nil {
			return err
		}
	}
	sockets, err := filepath.Glob(filepath.Join(m.RunDir, "mc*"))
	for _, s := range sockets {
		err = errors.Join(err, os.Remove(s))
	}
	return err
}
