package cli

import (
	"slices"
	"testing"

	"github.com/croftproject/croft/api"
)

func TestStateGoal(t *testing.T) {
	ended := &api.Server{Spec: api.ServerSpec{State: api.StateRunning}, Status: api.ServerStatus{Phase: api.PhaseStopped, Exit: &api.Exit{}}}
	stopped := &api.Server{Spec: api.ServerSpec{State: api.StateStopped}, Status: api.ServerStatus{Phase: api.PhaseStopped}}
	for _, c := range []struct {
		name   string
		before *api.Server
		state  api.PowerState
		want   []api.Phase
	}{
		{"created", nil, api.StateRunning, []api.Phase{api.PhaseRunning}},
		{"created, the state left out", nil, "", []api.Phase{api.PhaseRunning}},
		{"created stopped", nil, api.StateStopped, []api.Phase{api.PhaseStopped}},
		{"created paused", nil, api.StatePaused, []api.Phase{api.PhasePaused}},
		{"started", stopped, api.StateRunning, []api.Phase{api.PhaseRunning}},
		{"changed after its end", ended, api.StateRunning, []api.Phase{api.PhaseRunning, api.PhaseStopped}},
		{"paused after its end", ended, api.StatePaused, []api.Phase{api.PhasePaused}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := stateGoal(c.before, &api.Server{Spec: api.ServerSpec{State: c.state}})
			if !slices.Equal(g.phases, c.want) {
				t.Errorf("got %v, want %v", g.phases, c.want)
			}
		})
	}
}
