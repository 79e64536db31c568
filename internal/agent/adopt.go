package agent

import (
	"context"
	"errors"
	"fmt"
	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/state"
)

// recoverGuest finds the guest of a server again that an earlier daemon launched. An error says that it could not be found
// out whether there is one: then nothing is done to the server until it can.
func (a *Agent) recoverGuest(ctx context.Context, m *machine, rec *state.Server) error {
	l := m.remembered()
	if l.BootID != a.BootID || l.Handle == nil { // a launch that was not finished is found by its id when it is done again
		return nil
	}
	e, err := a.engine(l.Engine)
	if err != nil {
		return fmt.Errorf("adopt the guest: %w", err)
	}
	if rec != nil { // its ports are there, whatever becomes of the rest
		a.nets.adopt(m.id, rec, e.Traits().NIC)
	}
	b := a.bare(m, rec)
	if rec != nil {
		if whole, err := a.assemble(ctx, m, rec); err == nil {
			b = whole
		} else {
			a.Logger.Warn("a guest is adopted without what it was made from", "server", m.id, "error", err)
		}
	}
	g, err := e.Recover(ctx, b, *l.Handle)
	if errors.Is(err, engine.ErrGone) {
		return a.lost(m, rec)
	}
	if err != nil {
		return fmt.Errorf("adopt the guest: %w", err)
	}
	m.setGuest(g, b)
	if p, ok := g.(engine.Pauser); ok {
		if paused, err := p.Paused(ctx); err == nil {
			m.mu.Lock()
			m.paused = paused
			m.mu.Unlock()
		}
	}
	if rec != nil {
		a.divider.adopt(m.id, rec, e)
	}
	a.watchGuest(m, g)
	return nil
}

// keepIDs claims the id range that a server has. One that another has too goes on: its files belong to those ids.
func (a *Agent) keepIDs(m *machine) {
	base := m.remembered().IDBase
	if base == 0 {
		return
	}
	if err := a.ids.keep(base, m.dir); err != nil {
		a.Logger.Warn("the id range of a server can't be claimed; it goes on with it", "server", m.id, "first", base, "error", err)
	}
}

// lost takes note that a guest ended, nobody knows how.
func (a *Agent) lost(m *machine, rec *state.Server) error {
	exit := api.Exit{Code: -1, Reason: exitLost, Time: a.Now()}
	return m.update(func(l *local) {
		if rec != nil {
			v := afterExit(rec.Spec.Restart, exit, exit.Time.Sub(l.Started), l.InRow)
			l.InRow, l.Held, l.Failure = v.InRow, !v.Restart, ended(exit)
			if v.Restart {
				l.NextStart = exit.Time.Add(v.Delay)
			}
		}
		l.Handle, l.BootID, l.Exit = nil, "", &exit
	})
}

// engine is an engine of this host.
func (a *Agent) engine(name string) (engine.Engine, error) {
	if e := a.engines[name]; e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("%w: this host has no engine %q now; start the daemon with the runtime that it had", engine.ErrUnsupported, name)
}
