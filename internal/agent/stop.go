package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/mounts"
	"github.com/croftproject/croft/internal/state"
)

func (a *Agent) pause(ctx context.Context, m *machine, halt bool) error {
	g, _ := m.guestOf()
	p, ok := g.(engine.Pauser)
	if !ok {
		return fmt.Errorf("pause: %w by this engine", engine.ErrUnsupported)
	}
	act := p.Resume
	if halt {
		act = p.Pause
	}
	if err := act(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	m.paused = halt
	m.mu.Unlock()
	return nil
}

// shutdown asks the guest to end, and ends it when its time is over. It does not wait: the guest's end wakes the server.
func (a *Agent) shutdown(ctx context.Context, m *machine, rec *state.Server) (time.Duration, error) {
	g, _ := m.guestOf()
	force := rec == nil || rec.Intent.Force && stopAsked(rec, m.remembered())
	now := a.Now()
	if m.stopAt.IsZero() && !force {
		m.stopAt = now.Add(time.Duration(rec.Spec.StopTimeout))
		if m.state() == guestPaused {
			if err := a.pause(ctx, m, false); err != nil {
				return 0, err
			}
		}
		if err := g.Stop(ctx, engine.Graceful); err != nil {
			a.Logger.Warn("graceful stop", "server", m.id, "error", err)
			m.stopAt = now
		}
	}
	if left := m.stopAt.Sub(now); left > 0 && !force {
		return left, nil
	}
	if m.stopAt.IsZero() {
		m.stopAt = now
	}
	if err := g.Stop(ctx, engine.Kill); err != nil {
		return 0, err
	}
	select {
	case <-g.Done():
		a.loop.Wake(m.id)
	case <-ctx.Done():
	case <-time.After(killWait): // it can hang in the kernel; its end wakes the server all the same
		return killWait, fmt.Errorf("the guest did not end %s after it was killed", killWait)
	}
	return 0, nil
}

// stopAsked tells whether somebody asked for the server to stop, and that is still to be done: what was said of an earlier
// stop does not count for a later one.
func stopAsked(rec *state.Server, l local) bool {
	return !rec.Intent.Delete.IsZero() || rec.Spec.State == api.StateStopped || rec.Intent.Restart > l.Restarted
}

const killWait = 10 * time.Second

// release frees what an ended guest held.
func (a *Agent) release(ctx context.Context, m *machine) error {
	g, _ := m.guestOf()
	if g == nil {
		return nil
	}
	if err := g.Release(ctx); err != nil {
		return err
	}
	if err := a.Cgroups.Kill(ctx, m.id); err != nil {
		return err
	}
	m.setGuest(nil, nil)
	m.watched = nil
	return m.update(func(l *local) {
		l.Handle, l.Spec = nil, nil
		if !a.halting.Load() { // else the next daemon is to see that the host was rebooted: afterReboot
			l.BootID = ""
		}
	})
}

// clean removes what engines may have left of the server. Which engine began it is remembered; where it is not, all are
// asked.
func (a *Agent) clean(ctx context.Context, m *machine, rec *state.Server) error {
	name := m.remembered().Engine
	if name == "" && rec != nil {
		name = rec.Engine
	}
	if name != "" {
		if _, err := a.engine(name); err != nil {
			return err
		}
	}
	var errs []error
	for engineName, e := range a.engines {
		if name == "" || name == engineName {
			errs = append(errs, e.Clean(ctx, a.bare(m, rec)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	m.setGuest(nil, nil)
	return a.Cgroups.Kill(ctx, m.id)
}

func (a *Agent) removeCgroup(ctx context.Context, m *machine) error {
	a.divider.leave(m.id)
	if err := a.Cgroups.Kill(ctx, m.id); err != nil { // what a guest's runtime forgot
		return err
	}
	return a.Cgroups.Remove(ctx, m.id)
}

// delete removes the volume and everything that the host remembers.
func (a *Agent) delete(ctx context.Context, m *machine) error {
	if err := a.Pool.Delete(ctx, m.id); err != nil {
		return err
	}
	// What may still be mounted there is somebody's: a granted directory.
	if err := mounts.RemoveAll(m.run); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := a.ids.free(m.local.IDBase, m.dir); err != nil {
		return fmt.Errorf("free the id range: %w", err)
	}
	return mounts.RemoveAll(m.dir)
}
