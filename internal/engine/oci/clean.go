package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/keeper"
)

// Clean removes everything, the console log included. See engine.Engine.
func (e *Engine) Clean(ctx context.Context, m *engine.Machine) error {
	if err := e.clear(ctx, m); err != nil {
		return err
	}
	for _, path := range []string{engine.ConsoleLog(m), engine.ConsoleLog(m) + ".1"} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove console log: %w", err)
		}
	}
	return nil
}

// clear removes what a launch makes, in the reverse order, from whatever point it came to. Every step is idempotent and
// finds out for itself whether there is something to do.
func (e *Engine) clear(ctx context.Context, m *engine.Machine) error {
	group := guestGroup(m)
	// The keeper says nothing of a guest while the runtime starts it. What that waits for, in the guest, is ended.
	e.groups.kill(group)
	if err := e.end(ctx, m); err != nil {
		return err
	}
	if err := e.empty(ctx, group); err != nil {
		return err
	}
	if err := e.runtime.remove(ctx, m.ID); err != nil {
		return err
	}
	if err := e.removeGroup(ctx, group); err != nil {
		return err
	}
	if err := bundleOf(m).remove(); err != nil {
		return fmt.Errorf("remove bundle: %w", err)
	}
	if err := e.keeper.Forget(ctx, m.ID); err != nil {
		return fmt.Errorf("have the keeper forget %s: %w", m.ID, err)
	}
	return nil
}

// end kills the guest's first process, and with it all of its process namespace, and waits till the keeper has reaped it.
func (e *Engine) end(ctx context.Context, m *engine.Machine) error {
	status, err := e.keeper.Get(ctx, m.ID)
	if errors.Is(err, keeper.ErrUnknown) || err == nil && !status.Ended.IsZero() {
		return nil
	}
	if err != nil {
		return fmt.Errorf("ask the keeper for %s: %w", m.ID, err)
	}
	if err := e.signal(ctx, m.ID, unix.SIGKILL); err != nil {
		return err
	}
	e.groups.thaw(guestGroup(m))
	select {
	case <-e.keeper.Done(m.ID):
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for %s to end: %w", m.ID, ctx.Err())
	}
}

// signal sends a signal; to a process that has ended it is no error.
func (e *Engine) signal(ctx context.Context, id string, sig unix.Signal) error {
	err := e.keeper.Signal(ctx, id, sig)
	if errors.Is(err, keeper.ErrUnknown) || errors.Is(err, keeper.ErrEnded) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("signal %s: %w", id, err)
	}
	return nil
}

// settle is how often a group is looked at that must become empty: v1 tells nobody when it does.
const settle = 2 * time.Millisecond

// empty kills what is left in a group: a guest that the keeper does not know, a process that was being started.
func (e *Engine) empty(ctx context.Context, group string) error {
	for e.groups.kill(group) > 0 {
		if err := pause(ctx, settle); err != nil {
			return fmt.Errorf("wait for control group %s to become empty: %w", group, err)
		}
	}
	return nil
}

// removeGroup removes a group whose last processes may still be on their way out.
func (e *Engine) removeGroup(ctx context.Context, group string) error {
	for {
		err := e.groups.remove(group)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		if pause(ctx, settle) != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
