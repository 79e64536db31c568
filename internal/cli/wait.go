package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
)

// goal is what a server is waited for.
type goal struct {
	phases []api.Phase // any of them
	gone   bool        // deleted
	doing  string      // what is under way, until the host says more
	now    bool        // the phase counts as it is; else it must speak of the revision that was asked for
	unlike time.Time   // for a restart: Started must be another
}

func powerGoal(action api.PowerAction, before *api.Server) goal {
	switch action {
	case api.PowerStop:
		return goal{phases: []api.Phase{api.PhaseStopped}, doing: "stopping"}
	case api.PowerPause:
		return goal{phases: []api.Phase{api.PhasePaused}, doing: "pausing"}
	case api.PowerResume:
		return goal{phases: []api.Phase{api.PhaseRunning}, doing: "resuming"}
	case api.PowerRestart:
		return goal{phases: []api.Phase{api.PhaseRunning}, doing: "restarting", unlike: before.Status.Started}
	}
	return goal{phases: []api.Phase{api.PhaseRunning}, doing: "starting", now: before.Status.Phase == api.PhaseRunning}
}

// stateGoal is what a server is waited for that was created (before is nil) or changed: the state that it is to be kept in.
func stateGoal(before, s *api.Server) goal {
	g := goal{phases: []api.Phase{api.PhaseRunning}, doing: "creating"}
	switch s.Spec.State {
	case api.StateStopped:
		g.phases[0] = api.PhaseStopped
	case api.StatePaused:
		g.phases[0] = api.PhasePaused
	}
	if before == nil {
		return g
	}
	g.doing = "changing"
	if before.Spec.State == s.Spec.State && before.Status.Phase == api.PhaseStopped {
		g.phases = append(g.phases, api.PhaseStopped) // it has ended by itself; the change alone does not start it
	}
	return g
}

// met tells whether s, of which revision was asked for, is what was waited for.
func (g goal) met(s *api.Server, revision int64) bool {
	if g.gone || !slices.Contains(g.phases, s.Status.Phase) {
		return false
	}
	if !g.unlike.IsZero() && s.Status.Started.Equal(g.unlike) {
		return false
	}
	return g.now || s.Status.Observed == 0 || s.Status.Observed >= revision
}

// rests tells whether s has ended by itself while it is waited for to run, or to be paused. A restart passes through that
// too.
func (g goal) rests(s *api.Server) bool {
	runs := slices.Contains(g.phases, api.PhaseRunning) || slices.Contains(g.phases, api.PhasePaused)
	return runs && s.Status.Phase == api.PhaseStopped && s.Status.Exit != nil
}

// lost tells whether s will not become what is waited for since began.
func (g goal) lost(s *api.Server, revision int64, began time.Time) bool {
	if g.gone || slices.Contains(g.phases, s.Status.Phase) || s.Status.Observed < revision {
		return false
	}
	switch s.Status.Phase {
	case api.PhaseFailed, api.PhaseBackoff:
		return true
	case api.PhaseStopped:
		return g.rests(s) && g.unlike.IsZero() && s.Status.Exit.Time.After(began)
	}
	return false
}

// waiter waits for one server, and tells how it gets on.
type waiter struct {
	*app
	cmd    *cobra.Command
	tenant string
	name   string
	began  time.Time
	line   *progress
}

func (a *app) newWaiter(cmd *cobra.Command, tenant, name string) *waiter {
	out := cmd.OutOrStdout()
	if a.output != "table" {
		out = cmd.ErrOrStderr()
	}
	return &waiter{app: a, cmd: cmd, tenant: tenant, name: name, began: now(), line: newProgress(out, name)}
}

// recheck is how often a waiter looks for itself, in case that a change was missed.
const recheck = 2 * time.Second

// until waits until the goal is met; server is what the request was answered with.
func (w *waiter) until(timeout time.Duration, server *api.Server, g goal) error {
	ctx, cancel := context.WithTimeout(w.cmd.Context(), timeout)
	defer cancel()
	c, err := w.client()
	if err != nil {
		return err
	}
	w.line.say(g.doing)
	changes := w.watch(ctx, c, server, g)
	again := recheck
	if g.gone {
		again /= 8 // a watch that begins late says nothing of what is gone
	}
	tick := time.NewTicker(again)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return w.gaveUp(server, g)
		case change := <-changes:
			if change.err != nil {
				w.line.end()
				return change.err
			}
			if change.server == nil {
				return w.finishGone(server, g)
			}
			server = change.server
		case <-tick.C:
			found, err := c.Servers(w.tenant).Get(ctx, server.Name)
			if client.IsNotFound(err) || (err == nil && found.ID != server.ID) {
				return w.finishGone(server, g)
			}
			if err != nil {
				continue // the watch tells what is wrong, when it lasts
			}
			if g.rests(server) && g.rests(found) && found.Status.Observed >= found.Revision {
				w.line.finish(styleOf(w.line.w).phase(string(found.Status.Phase)))
				return failed(found) // it stays so
			}
			server = found
		}
		if done, err := w.judge(server, g); done {
			return err
		}
	}
}

// judge tells whether the wait is over.
func (w *waiter) judge(s *api.Server, g goal) (bool, error) {
	switch {
	case g.met(s, s.Revision):
		return true, w.finish(s)
	case g.lost(s, s.Revision, w.began):
		w.line.finish(styleOf(w.line.w).phase(string(s.Status.Phase)))
		return true, failed(s)
	}
	if g.gone || s.Status.Phase != api.PhaseRunning {
		w.line.say(string(s.Status.Phase))
	}
	return false, nil
}

func failed(s *api.Server) error {
	text := fmt.Sprintf("server %s is %s", s.Name, s.Status.Phase)
	if s.Status.Message != "" {
		text += ": " + s.Status.Message
	} else if e := s.Status.Exit; e != nil {
		text += fmt.Sprintf(": it ended with exit code %d", e.Code)
	}
	name := argument(s)
	return hinted{errors.New(text), fmt.Sprintf("croft server log %s shows what it printed; croft event list --name %s tells what happened", name, name)}
}

// argument is how a server is named on the command line.
func argument(s *api.Server) string {
	if s.Tenant == "" || s.Tenant == defaultTenant() {
		return s.Name
	}
	return s.Name + " --tenant " + s.Tenant
}

// finishGone says that the server is gone; last is how it was seen last.
func (w *waiter) finishGone(last *api.Server, g goal) error {
	if !g.gone {
		w.line.end()
		return fmt.Errorf("%s was deleted meanwhile", w.name)
	}
	w.line.finish(fmt.Sprintf("deleted (%.2f s)", now().Sub(w.began).Seconds()))
	return w.print(last)
}

// finish says how it ended.
func (w *waiter) finish(s *api.Server) error {
	text := fmt.Sprintf("%s (%.2f s)", styleOf(w.line.w).phase(string(s.Status.Phase)), now().Sub(w.began).Seconds())
	if address := addressOf(s); address != "" && s.Status.Phase == api.PhaseRunning {
		text += " " + address
	}
	w.line.finish(text)
	return w.print(s)
}

// print writes the server where JSON or YAML was asked for.
func (w *waiter) print(s *api.Server) error {
	if w.output == "table" {
		return nil
	}
	return w.printResource(w.cmd.OutOrStdout(), "servers", s)
}

func (w *waiter) gaveUp(s *api.Server, g goal) error {
	w.line.end()
	if err := w.cmd.Context().Err(); err != nil {
		return err
	}
	return hinted{fmt.Errorf("server %s is still %s", s.Name, s.Status.Phase),
		fmt.Sprintf("it goes on by itself; croft server show %s tells how far it is", argument(s))}
}

// seen is what a watch told: a server, its deletion (nil), or an error.
type seen struct {
	server *api.Server
	err    error
}

// watch follows one server until ctx ends. For a deletion it begins at the revision that was answered, since what is
// gone is not among what there is.
func (w *waiter) watch(ctx context.Context, c *client.Client, s *api.Server, g goal) <-chan seen {
	out := make(chan seen)
	from := int64(0)
	if g.gone {
		from = s.Revision
	}
	o := client.ListOptions{Filter: map[string]string{"name": s.Name}}
	tell := func(change seen) bool {
		select {
		case out <- change:
			return true
		case <-ctx.Done():
			return false
		}
	}
	follow := func(from int64) error {
		for change, err := range c.Servers(w.tenant).Watch(ctx, o, from) {
			if err != nil {
				return err
			}
			if change.Object.ID != s.ID {
				continue
			}
			server := &change.Object
			if change.Type == api.ChangeDelete {
				server = nil
			}
			if !tell(seen{server: server}) {
				return nil
			}
		}
		return nil
	}
	go func() {
		err := follow(from)
		if api.CodeOf(err) == api.CodeExpired {
			err = follow(0) // the waiter looks for itself whether it is gone already
		}
		if err != nil {
			tell(seen{err: err})
		}
	}()
	return out
}

// progress is a line that changes on a terminal, and lines elsewhere.
type progress struct {
	w    io.Writer
	name string
	tty  bool
	last string
}

func newProgress(w io.Writer, name string) *progress {
	_, tty := terminal(w)
	return &progress{w: w, name: name, tty: tty}
}

// say tells what is under way.
func (p *progress) say(what string) {
	if what == p.last {
		return
	}
	p.last = what
	if p.tty {
		fmt.Fprintf(p.w, "\r\x1b[K%s: %s…", p.name, what)
		return
	}
	fmt.Fprintf(p.w, "%s: %s\n", p.name, what)
}

// finish says how it ended.
func (p *progress) finish(how string) {
	if p.tty {
		fmt.Fprintf(p.w, " %s\n", how)
	} else {
		fmt.Fprintf(p.w, "%s: %s\n", p.name, how)
	}
	p.last = ""
}

// end leaves the line as it is.
func (p *progress) end() {
	if p.tty && p.last != "" {
		fmt.Fprintln(p.w)
	}
	p.last = ""
}
