package agent

import (
	"context"
	"errors"
	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/state"
)

// recoverGuest finds the guest of a server again that an earlier daemon launched.
func (a *Agent) recoverGuest(ctx context.Context, m *machine, rec *state.Server) {
	l := m.remembered()
	e := a.engines[l.Engine]
	if e == nil || l.BootID != a.BootID {
		return
	}
	b := a.bare(m, rec)
	if rec != nil {
		if whole, err := a.assemble(ctx, m, rec); err == nil {
			b = whole
		} else {
			a.Logger.Warn("a guest is adopted without what it was made from", "server", m.id, "error", err)
		}
	}
	handle := engine.Handle{Engine: l.Engine}
	if l.Handle != nil {
		handle = *l.Handle
	}
	if l.Handle == nil {
		return // the launch was not finished: the next one finds the guest by its id
	}
	g, err := e.Recover(ctx, b, handle)
	switch {
	case errors.Is(err, engine.ErrGone):
		err = m.update(func(l *local) {
			l.Handle, l.BootID = nil, ""
			l.Exit = &api.Exit{Code: -1, Reason: exitLost, Time: a.Now()}
		})
		if rec != nil && err == nil {
			v := afterExit(rec.Spec.Restart, api.Exit{Code: -1, Reason: exitLost}, a.Now().Sub(l.Started), l.InRow)
			err = m.update(func(l *local) { l.InRow, l.Held = v.InRow, !v.Restart; l.Failure = ended(*l.Exit) })
		}
	case err == nil:
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
			a.nets.adopt(m.id, rec, e.Traits().NIC)
		}
		a.watchGuest(m, g)
	}
	if err != nil {
		a.Logger.Error("adopt a guest", "server", m.id, "error", err)
	}
}
