package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/image"
	"github.com/croftproject/croft/internal/pool"
	"github.com/croftproject/croft/internal/state"
)

// reconcile brings one server closer to what is wanted.
func (a *Agent) reconcile(ctx context.Context, id string) (time.Duration, error) {
	rec, revision, ours := a.record(id)
	if !ours || rec == nil && !a.known(id) {
		return 0, nil
	}
	m, err := a.machineOf(id)
	if err != nil {
		return 0, err
	}
	if rec == nil && !m.remembered().Deleting {
		a.stranger(m)
		return 0, nil
	}
	if !m.remembered().Deleting && !rec.Intent.Delete.IsZero() {
		if err := m.update(func(l *local) { l.Deleting = true }); err != nil {
			return 0, err
		}
	}
	if m.unknown != nil {
		if m.unknown = a.recoverGuest(ctx, m, rec); m.unknown != nil {
			return 0, m.unknown
		}
	}
	if err := a.decideAutostart(ctx, m, rec); err != nil {
		return 0, fmt.Errorf("take note of a host reboot: %w", err)
	}
	g, err := a.observe(ctx, m, rec)
	if err != nil {
		return 0, err
	}
	w, again := a.wanted(m, rec, g)
	switch w {
	case wantRunning, wantPaused:
		m.stopAt = time.Time{} // a stop that was under way is not wanted any more
		if wait := a.boot.wait(id, a.Now()); wait > 0 && g == guestNone {
			a.report(m, rec, revision, wantStopped)
			return wait, nil
		}
	default:
		a.boot.done(id)
	}
	// A change of a guest that is as it is wanted is told once it is carried out: settle.
	if (w != wantStopped || g != guestNone) && !agree(w, g) {
		a.report(m, rec, revision, w)
	}
	if wait, err := a.do(ctx, m, rec, plan(w, g, m.torn, rec != nil)); err != nil {
		return a.failed(ctx, m, rec, revision, w, err)
	} else if wait > 0 {
		return wait, nil
	}
	if w == wantDeleted {
		if m.state() == guestNone {
			a.forget(m)
		}
		return 0, nil
	}
	return again, a.settle(ctx, m, rec, revision, w, g)
}

// stranger is a server of which the host has something, and the store nothing. It is left alone: records are written
// before anything is made and removed after everything is gone, so the store itself may be what is wrong.
func (a *Agent) stranger(m *machine) {
	a.Logger.Warn("the host has something of a server that the store does not know; it is left as it is",
		"server", m.id, "directory", m.dir)
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.left, m.id)
}

// observe tells what there is of the server's guest, and takes note of an end and of what was asked since.
func (a *Agent) observe(ctx context.Context, m *machine, rec *state.Server) (guestState, error) {
	if m.state() == guestEnded {
		if err := a.noteEnd(ctx, m, rec); err != nil {
			return guestEnded, err
		}
	}
	g := m.state()
	l := m.remembered()
	if !acknowledge(rec, &l, g) {
		return g, nil
	}
	return g, m.update(func(l *local) { acknowledge(rec, l, g) })
}

// wanted is what is wanted of the server now; while the host goes down, that it stops.
func (a *Agent) wanted(m *machine, rec *state.Server, g guestState) (want, time.Duration) {
	l := m.remembered()
	w, again := decide(rec, &l, g, a.Now())
	if a.halting.Load() && w != wantDeleted {
		return wantStopped, 0
	}
	return w, again
}

// settle is the end of a run whose plan was carried out from g on: changes of the spec are carried over to a running
// guest, and the server is woken where a next plan goes on.
func (a *Agent) settle(ctx context.Context, m *machine, rec *state.Server, revision int64, w want, g guestState) error {
	now := m.state()
	if now == guestNone {
		if err := a.tear(m); err != nil {
			return err
		}
	}
	if now == guestRunning || now == guestPaused {
		if a.boot.queued(m.id) && a.up(ctx, m) {
			a.boot.done(m.id)
		}
		if err := a.resize(ctx, m, rec); err != nil {
			if ctx.Err() == nil {
				a.unchanged(ctx, m, rec, revision, w, err)
			}
			return err
		}
	}
	if w == wantPaused && now == guestRunning || now == guestEnded || g == guestEnded {
		a.loop.Wake(m.id)
	}
	a.report(m, rec, revision, w)
	return nil
}

// up tells whether a running guest's userspace was seen, where it can be.
func (a *Agent) up(ctx context.Context, m *machine) bool {
	if _, b := m.guestOf(); b == nil || b.Boot.Ready == "" {
		return true
	}
	st, err := a.Keeper.Get(ctx, m.id)
	return err != nil || !st.Ready.IsZero()
}

// tear takes note that nothing but the volume is left of a server's last run.
func (a *Agent) tear(m *machine) error {
	if m.torn {
		return nil
	}
	m.torn = true
	return m.update(func(l *local) { l.Torn = true })
}

// do carries out a plan. A wait of more than zero says that the guest must do something first.
func (a *Agent) do(ctx context.Context, m *machine, rec *state.Server, p stages) (wait time.Duration, err error) {
	for _, stage := range p {
		waits := make([]time.Duration, len(stage))
		errs := make([]error, len(stage))
		each(len(stage), func(i int) {
			waits[i], errs[i] = a.step(ctx, m, rec, stage[i])
		})
		if err := errors.Join(errs...); err != nil {
			return 0, err
		}
		for _, w := range waits {
			wait = max(wait, w)
		}
		if wait > 0 {
			return wait, nil
		}
	}
	return 0, nil
}

// step does one step, measured, and failed where a test asks for it.
func (a *Agent) step(ctx context.Context, m *machine, rec *state.Server, s step) (wait time.Duration, err error) {
	began := a.Now()
	defer func() {
		if p := recover(); p != nil { // one server's fault is not the others'
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
		a.metrics.step(s, a.Now().Sub(began), err)
		if err != nil {
			err = fmt.Errorf("%s: %w", s, err)
		}
	}()
	if err := a.fault(m.id, s.String()); err != nil {
		return 0, err
	}
	switch s {
	case stepPrepare:
		return 0, a.prepare(m, rec)
	case stepRoot:
		return 0, a.makeRoot(ctx, m, rec)
	case stepPorts:
		return 0, a.attachPorts(ctx, m, rec)
	case stepCgroup:
		e, err := a.engine(rec.Engine)
		if err != nil {
			return 0, err
		}
		if e.Overhead(&rec.Spec) > rec.Overhead {
			if err := a.Control.Readmit(ctx, m.id); err != nil {
				return 0, err
			}
		}
		return 0, a.divider.admit(m.id, rec, e)
	case stepLaunch:
		return 0, a.launch(ctx, m, rec)
	case stepPause:
		return 0, a.pause(ctx, m, true)
	case stepResume:
		return 0, a.pause(ctx, m, false)
	case stepShutdown:
		return a.shutdown(ctx, m, rec)
	case stepRelease:
		return 0, a.release(ctx, m)
	case stepUnport:
		return 0, a.detachPorts(ctx, m)
	case stepUncgroup:
		return 0, a.removeCgroup(ctx, m)
	case stepClose:
		return 0, a.Pool.Close(ctx, m.id)
	case stepClean:
		return 0, a.clean(ctx, m, rec)
	case stepDelete:
		return 0, a.delete(ctx, m)
	case stepGone:
		a.status.forget(m.id) // nothing is written of it after its records are gone
		return 0, a.Control.Gone(ctx, m.id)
	}
	return 0, fmt.Errorf("unknown step %d", s)
}

// fault is where a test may have something go wrong.
func (a *Agent) fault(id, at string) error {
	if a.Fault == nil {
		return nil
	}
	return a.Fault(id, at)
}

// failed decides what follows from a plan that failed. A start that failed is undone as far as its volume, and tried
// again with growing delays; one that can't succeed as it is asked for is held.
func (a *Agent) failed(ctx context.Context, m *machine, rec *state.Server, revision int64, w want, cause error) (time.Duration, error) {
	if ctx.Err() != nil {
		return 0, ctx.Err() // the daemon ends; the next one goes on from here
	}
	if w != wantRunning && w != wantPaused || m.state() != guestNone {
		a.report(m, rec, revision, w)
		return 0, cause
	}
	a.metrics.failure(m.id)
	// The engine has undone its own part, and what it leaves (firmware's variables, the console's log) is the server's.
	if _, err := a.do(ctx, m, rec, stages{{stepUnport, stepClose, stepUncgroup}}); err != nil {
		a.Logger.Error("undo a start that failed", "server", m.id, "error", err)
		a.report(m, rec, revision, wantStopped)
		return 0, errors.Join(cause, err)
	} else if err := a.tear(m); err != nil {
		return 0, errors.Join(cause, err)
	}
	hopeless := errors.Is(cause, engine.ErrUnsupported) || errors.Is(cause, image.ErrBad)
	var delay time.Duration
	err := m.update(func(l *local) {
		l.Failure = explain(cause)
		if l.Held = hopeless || l.InRow > 0 && rec.Spec.Restart.MaxRetries > 0 && l.InRow >= rec.Spec.Restart.MaxRetries; l.Held {
			return
		}
		delay = backoff(l.InRow)
		l.NextStart = a.Now().Add(delay)
		l.InRow++
	})
	if err != nil {
		return 0, errors.Join(cause, err)
	}
	a.boot.done(m.id)
	a.Logger.Error("server did not start", "server", m.id, "name", rec.Meta.Name, "tenant", rec.Meta.Tenant, "error", cause, "again", delay)
	a.event(rec, "StartFailed", explain(cause), true)
	a.report(m, rec, revision, wantStopped)
	return delay, nil
}

// explain adds what to do to an error whose cause is known.
func explain(err error) string {
	if errors.Is(err, pool.ErrFull) {
		return err.Error() + ": free some space, or move servers to another host"
	}
	return err.Error()
}

// noteEnd takes note of the end of a guest, and decides whether and when it is started again.
func (a *Agent) noteEnd(ctx context.Context, m *machine, rec *state.Server) error {
	g, _ := m.guestOf()
	exit := g.Exit()
	asked := !m.stopAt.IsZero() || rec == nil || stopAsked(rec, m.remembered())
	takenBack := !asked && exit.Reason == exitAsked // by a start, which a guest that shuts down does not hear of
	switch {
	case asked && exit.Reason != exitOOM:
		exit.Reason = exitAsked
	case takenBack:
		exit.Reason = "exited"
	}
	l := m.remembered()
	if l.Exit != nil && l.Exit.Time.Equal(exit.Time) {
		return nil // noted already
	}
	m.stopAt = time.Time{}
	v, ran := verdict{}, exit.Time.Sub(l.Started)
	switch {
	case asked:
	case takenBack:
		v = afterReboot(ran, l.InRow)
	default:
		v = afterExit(rec.Spec.Restart, exit, ran, l.InRow)
	}
	err := m.update(func(l *local) {
		l.Exit, l.InRow, l.NextStart, l.Failure = &exit, v.InRow, time.Time{}, ""
		switch {
		case asked:
		case v.Restart:
			if v.Delay > 0 {
				l.NextStart = a.Now().Add(v.Delay)
				l.Failure = ended(exit)
			}
		default:
			l.Held = true
			if exit.Code != 0 || exit.Reason == exitLost {
				l.Failure = ended(exit)
			}
		}
	})
	if err != nil {
		return err
	}
	a.Logger.Info("guest ended", "server", m.id, "code", exit.Code, "reason", exit.Reason, "restart", v.Restart, "delay", v.Delay)
	a.event(rec, "Exited", ended(exit), !asked && exit.Code != 0)
	return nil
}

func ended(e api.Exit) string {
	switch e.Reason {
	case exitAsked:
		return "stopped as asked"
	case "poweroff":
		return "the guest powered itself off"
	case exitReboot:
		return "the guest rebooted"
	case exitOOM:
		return "the guest was ended for want of memory: raise memory.limit"
	case exitLost:
		return "the guest ended while nobody watched it"
	}
	return fmt.Sprintf("the guest ended with code %d", e.Code)
}

// each runs f for 0 to n-1 at the same time; alone where there is one.
func each(n int, f func(i int)) {
	if n == 1 {
		f(0)
		return
	}
	done := make(chan struct{}, n)
	for i := range n {
		go func() {
			defer func() { done <- struct{}{} }()
			f(i)
		}()
	}
	for range n {
		<-done
	}
}
