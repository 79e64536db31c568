package control

import (
	"context"
	"slices"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/state"
)

// Power acts on a server. It returns the server with its new revision; the host carries the act out.
func (c *Control) Power(ctx context.Context, who httpapi.Caller, tenant, name string, action api.PowerAction, force bool) (*api.Server, error) {
	if powerReasons[action] == "" {
		return nil, api.Errorf(api.CodeInvalid, "%s is no act on a server's power", quote(string(action)))
	}
	if err := authorize(who, tenant); err != nil {
		return nil, err
	}
	meta := func(s *api.Server) *api.Meta { return &s.Meta }
	request := []any{"power", name, action, force}
	return once(ctx, c, who, kindServer, tenant, request, meta, func(keep remember) (*api.Server, error) {
		return c.power(ctx, who, tenant, name, action, force, keep)
	})
}

// powerReasons are the reasons of the events of acts.
var powerReasons = map[api.PowerAction]string{
	api.PowerStart: "StartAsked", api.PowerStop: "StopAsked", api.PowerRestart: "RestartAsked",
	api.PowerPause: "PauseAsked", api.PowerResume: "ResumeAsked",
}

// power notes an act in the server's record. With an Idempotency-Key the record is written even where nothing changes,
// so that its revision is that of the answer.
func (c *Control) power(ctx context.Context, who httpapi.Caller, tenant, name string, action api.PowerAction, force bool, keep remember) (*api.Server, error) {
	return servers{c}.change(ctx, who, tenant, name, 0, func(d *draft, now *api.Server, s *state.Server) error {
		old := *s
		if !s.Intent.Delete.IsZero() {
			return api.Errorf(api.CodeWrongState, "server %s is being deleted", s.Meta.Name)
		}
		if err := possible(d.ix, now, s, action); err != nil {
			return err
		}
		switch action {
		case api.PowerStart:
			setPower(s, api.StateRunning, force)
		case api.PowerStop:
			d.Frees = true
			setPower(s, api.StateStopped, force)
		case api.PowerPause:
			setPower(s, api.StatePaused, force)
		case api.PowerResume:
			if s.Spec.State != api.StateRunning {
				setPower(s, api.StateRunning, force) // a start too: its guest may have ended
			}
		case api.PowerRestart:
			s.Spec.State, s.Intent.Force = api.StateRunning, force
			s.Intent.Restart++
		}
		if changes(&old, s) {
			c.event(d, who, kindServer, &s.Meta, powerReasons[action], "")
		} else if who.Key != "" {
			d.put(state.Servers+s.Meta.ID, s)
		}
		var status *state.Status
		if r, ok := d.ix.statuses[s.Meta.ID]; ok {
			status = r.v
		}
		answer := state.JoinServer(s, status, 0)
		keep(d, &answer)
		return nil
	})
}

// setPower notes a state that was asked for.
func setPower(s *state.Server, to api.PowerState, force bool) {
	s.Spec.State, s.Intent.Force = to, false
	switch to {
	case api.StateRunning:
		s.Intent.Start++
	case api.StateStopped:
		s.Intent.Force = force
	}
}

// possible refuses acts that make no sense in the server's phase, and says what does.
func possible(ix *index, now *api.Server, s *state.Server, action api.PowerAction) error {
	phase := now.Status.Phase
	wrong := func(what string) error {
		return api.Errorf(api.CodeWrongState, "server %s is %s; %s", s.Meta.Name, phase, what)
	}
	switch action {
	case api.PowerStart:
		switch {
		case phase == api.PhasePaused || s.Spec.State == api.StatePaused:
			return wrong("resume it instead")
		case phase == api.PhaseRunning && s.Spec.State == api.StateRunning:
			return wrong("there is nothing to start")
		}
	case api.PowerStop:
		if s.Spec.State == api.StateStopped && (phase == api.PhaseStopped || phase == api.PhaseFailed || phase == api.PhasePending) {
			return wrong("there is nothing to stop")
		}
	case api.PowerRestart:
		if phase != api.PhaseRunning && phase != api.PhasePaused && phase != api.PhaseStarting && phase != api.PhaseBackoff {
			return wrong("start it instead")
		}
	case api.PowerPause:
		if phase != api.PhaseRunning {
			return wrong("only a running server can be paused")
		}
		if can := abilities(ix, s); can != nil && !slices.Contains(can, "pause") {
			return api.Errorf(api.CodeUnsupported, "engine %s can't pause a server on host %s", s.Engine, s.Host)
		}
	case api.PowerResume:
		if phase != api.PhasePaused && s.Spec.State != api.StatePaused {
			return wrong("only a paused server can be resumed")
		}
	}
	return nil
}
