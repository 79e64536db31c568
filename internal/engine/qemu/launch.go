package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/qemu/qmp"
	"github.com/croftproject/croft/internal/keeper"
)

// undoLimit bounds what is done to undo, once the caller's context is over.
const undoLimit = 10 * time.Second

// startLimit bounds the time from QEMU's start to its greeting, of some 100 ms. Tests shorten it.
var startLimit = time.Minute

// Launch starts QEMU, and returns when it answers: by then the guest runs.
func (e *Engine) Launch(ctx context.Context, m *engine.Machine) (engine.Guest, error) {
	g, err := e.launch(ctx, m)
	if err != nil {
		return nil, fmt.Errorf("launch %s: %w", m.ID, err)
	}
	return g, nil
}

func (e *Engine) launch(ctx context.Context, m *engine.Machine) (_ engine.Guest, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p := pathsOf(m)
	if err := validateMachine(m, p); err != nil {
		return nil, err
	}
	facts, acceleration, err := e.factsFor(ctx, m)
	if err != nil {
		return nil, err
	}
	data := handleData{MachineType: facts.MachineType, Accelerator: string(facts.Accel)}
	switch status, err := e.keeper.Get(ctx, m.ID); {
	case err == nil && status.Ended.IsZero():
		data.PID = status.PID
		return e.guest(e.adopt(m, data)), nil
	case err == nil: // an earlier run that nobody released
		if err := e.keeper.Forget(ctx, m.ID); err != nil {
			return nil, err
		}
	case !errors.Is(err, keeper.ErrUnknown):
		return nil, err
	}

	defer func() {
		if err != nil {
			err = errors.Join(err, e.undo(ctx, m, p))
		}
	}()
	if err := e.prepare(ctx, m, p); err != nil {
		return nil, err
	}
	appears, err := watch(p.control)
	if err != nil {
		return nil, err
	}
	defer appears.close()
	status, err := e.keeper.Start(ctx, e.process(m, p, facts, acceleration.group))
	if err != nil {
		return nil, err
	}
	if err := e.answers(ctx, m, p, appears); err != nil {
		return nil, err
	}
	data.PID = status.PID
	return e.guest(e.adopt(m, data)), nil
}

// process is what the keeper is to start. group is the one that may open the accelerator; zero: none is needed.
func (e *Engine) process(m *engine.Machine, p paths, facts Facts, group uint32) keeper.Spec {
	s := keeper.Spec{
		ID: m.ID, Args: CommandLine(m, facts), Dir: "/",
		Env:  []string{"PATH=/usr/bin:/bin", "LANG=C"},
		User: m.IDs.Base, Group: m.IDs.Base, Isolate: true,
		Terminal: true, Log: p.log, LogLimit: engine.ConsoleLogLimit, Ready: m.Boot.Ready, Stderr: p.stderr,
		OOMScore: engine.OOMScore(m.Spec),
	}
	if group != 0 { // a further one: what QEMU makes, and may do to files of the machine's group, is not that group's
		s.Groups = []uint32{group}
	}
	if m.Cgroup != "" {
		s.Cgroup = m.Cgroup + "/guest"
	}
	for _, n := range m.NICs {
		s.Files = append(s.Files, keeper.File{NetNS: n.Tap.NetNS, Tap: n.Tap.Device, VnetHdr: true})
	}
	for _, g := range m.Grants {
		if g.Kind == api.GrantDirectory {
			tree := keeper.WriteTree
			if g.ReadOnly {
				tree = keeper.ReadTree
			}
			s.Files = append(s.Files, keeper.File{Path: g.Source, Tree: tree})
		}
	}
	return s
}

// prepare makes what QEMU needs, and checks that what it is given is there.
func (e *Engine) prepare(ctx context.Context, m *engine.Machine, p paths) error {
	given := []string{m.Root.Path, m.Seed, m.CDROM}
	if e.machine.name == MicroVM {
		if m.Boot.Kernel == "" {
			return fmt.Errorf("%w: the image has no kernel for a microvm", engine.ErrUnsupported)
		}
		given = append(given, m.Boot.Kernel, m.Boot.Initrd)
	}
	if m.Root.Path == "" {
		return errors.New("the machine has no root disk")
	}
	for _, path := range given {
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); err != nil {
			return err
		}
	}
	if err := p.removeRun(); err != nil {
		return err
	}
	if err := makeSockets(m, p); err != nil {
		return err
	}
	if m.Spec.Firmware == api.FirmwareUEFI && e.machine.name == Full {
		if err := e.prepareVariables(ctx, m, p); err != nil {
			return err
		}
	}
	for _, g := range m.Grants {
		if g.Kind == api.GrantDevice {
			if err := hostDevices.give(g.Source, m.IDs.Base); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// makeSockets makes the directory that QEMU's user owns, in RunDir, which it can only pass through.
func makeSockets(m *engine.Machine, p paths) error {
	if err := os.MkdirAll(m.RunDir, 0o711); err != nil {
		return err
	}
	if err := os.Chmod(m.RunDir, 0o711); err != nil {
		return err
	}
	if err := os.Mkdir(p.sockets, 0o700); err != nil {
		return err
	}
	return os.Lchown(p.sockets, int(m.IDs.Base), int(m.IDs.Base))
}

// prepareVariables gives a new machine its own copy of the firmware's variables; one that has it keeps it.
func (e *Engine) prepareVariables(ctx context.Context, m *engine.Machine, p paths) error {
	h, err := e.known(ctx)
	if err != nil {
		return err
	}
	if !exists(p.vars) {
		if err := copyFile(h.firmware.vars, p.vars); err != nil {
			return fmt.Errorf("copy UEFI variables: %w", err)
		}
	}
	return os.Chown(p.vars, int(m.IDs.Base), int(m.IDs.Base))
}

// copyFile copies a file whole, or not at all.
func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.CreateTemp(filepath.Dir(to), filepath.Base(to)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = out.Close()
			_ = os.Remove(out.Name())
		}
	}()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	return os.Rename(out.Name(), to)
}

// answers waits until QEMU greets, or has ended; then its complaint is the error.
func (e *Engine) answers(ctx context.Context, m *engine.Machine, p paths, appears *watcher) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("QEMU does not answer within %v", startLimit))
	defer cancel()
	ended, made := e.keeper.Done(m.ID), appears.made
	for {
		client, err := dialQMP(ctx, p.control, m.IDs.Base, nil)
		if err == nil {
			return client.Close()
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		absent := errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
		if !absent && !errors.Is(err, qmp.ErrLost) {
			return err
		}
		var retry <-chan time.Time
		if !errors.Is(err, fs.ErrNotExist) {
			// The socket is bound and about to be listened on, or QEMU is dying.
			retry = time.After(time.Millisecond)
		}
		select {
		case <-ended:
			return e.startFailure(ctx, m.ID, p)
		case <-made:
			made = nil
		case <-retry:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// startFailure is the error of a QEMU that ended at once.
func (e *Engine) startFailure(ctx context.Context, id string, p paths) error {
	status, err := e.keeper.Get(ctx, id)
	if err != nil {
		return fmt.Errorf("QEMU did not start: %w", err)
	}
	text := p.complaints()
	if text == "" {
		text = "it said nothing"
	}
	return fmt.Errorf("QEMU did not start (exit code %d): %s", status.Code, text)
}

// undo ends what a failed launch has begun.
func (e *Engine) undo(ctx context.Context, m *engine.Machine, p paths) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	if err := e.end(ctx, m.ID); err != nil {
		return err
	}
	return errors.Join(hostDevices.takeBack(m.Grants, m.IDs.Base), p.removeRun())
}

// end kills a machine's process, if there is one, waits for it and has the keeper forget it.
func (e *Engine) end(ctx context.Context, id string) error {
	status, err := e.keeper.Get(ctx, id)
	if errors.Is(err, keeper.ErrUnknown) {
		return nil
	}
	if err != nil {
		return err
	}
	if status.Ended.IsZero() {
		done := e.keeper.Done(id)
		if err := e.keeper.Signal(ctx, id, unix.SIGKILL); err != nil && !errors.Is(err, keeper.ErrEnded) && !errors.Is(err, keeper.ErrUnknown) {
			return err
		}
		select {
		case <-done:
		case <-ctx.Done():
			return fmt.Errorf("process %d does not end: %w", status.PID, ctx.Err())
		}
	}
	return e.keeper.Forget(ctx, id)
}

// adopt gives a running or ended process its life: the one that the engine knows already, or a new one.
func (e *Engine) adopt(m *engine.Machine, data handleData) *life {
	e.mu.Lock()
	defer e.mu.Unlock()
	if l := e.lives[m.ID]; l != nil && l.data.PID == data.PID {
		return l
	}
	l := &life{engine: e, id: m.ID, user: m.IDs.Base, grants: m.Grants, cgroup: m.Cgroup, paths: pathsOf(m), data: data, done: make(chan struct{})}
	e.lives[m.ID] = l
	go l.follow(e.keeper.Done(m.ID))
	return l
}

// Recover finds a guest by its handle. It does not ask QEMU, which may be hung: the keeper knows whether it runs.
func (e *Engine) Recover(ctx context.Context, m *engine.Machine, h engine.Handle) (engine.Guest, error) {
	data, err := e.decodeHandle(h)
	if err != nil {
		return nil, fmt.Errorf("recover %s: %w", m.ID, err)
	}
	status, err := e.keeper.Get(ctx, m.ID)
	if errors.Is(err, keeper.ErrUnknown) || err == nil && status.PID != data.PID {
		return nil, fmt.Errorf("recover %s: %w", m.ID, engine.ErrGone)
	}
	if err != nil {
		return nil, fmt.Errorf("recover %s: %w", m.ID, err)
	}
	l := e.adopt(m, data)
	if !status.Ended.IsZero() {
		select {
		case <-l.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return e.guest(l), nil
}

// Clean removes everything of a machine: its process, sockets, console log and firmware variables.
func (e *Engine) Clean(ctx context.Context, m *engine.Machine) error {
	p := pathsOf(m)
	if err := e.end(ctx, m.ID); err != nil {
		return fmt.Errorf("clean %s: %w", m.ID, err)
	}
	e.mu.Lock()
	delete(e.lives, m.ID)
	e.mu.Unlock()
	err := errors.Join(hostDevices.takeBack(m.Grants, m.IDs.Base), p.removeRun())
	copies, _ := filepath.Glob(p.vars + ".*") // of a copy that was cut short
	for _, path := range append(copies, p.vars, p.log, p.log+".1") {
		err = errors.Join(err, removeFile(path))
	}
	if err != nil {
		return fmt.Errorf("clean %s: %w", m.ID, err)
	}
	return nil
}

// removeRun removes what a run leaves in RunDir.
func (p paths) removeRun() error {
	err := os.RemoveAll(p.sockets)
	for _, path := range []string{p.stderr, p.stderr + ".1", p.asked} {
		err = errors.Join(err, removeFile(path))
	}
	return err
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
