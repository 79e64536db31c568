package agent

import (
	"fmt"
	"strings"
	"testing"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/pool"
	"github.com/croftproject/croft/internal/state"
)

func condition(s *state.Status, kind string) *api.Condition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == kind {
			return &s.Conditions[i]
		}
	}
	return nil
}

// A status speaks of a changed spec only once the change is carried out; one that fails is told, once as an event.
func TestAChangeThatFails(t *testing.T) {
	h := newHost(t)
	_, stop := h.agent()
	h.server("a", nil)
	first := h.phase("a", api.PhaseRunning)
	h.mu.Lock()
	h.grow = fmt.Errorf("grow: %w", pool.ErrFull)
	h.mu.Unlock()
	larger := func(r *state.Server) { r.Spec.Disk.Size = api.GiB }
	h.server("a", larger)
	failing := func(s *state.Status) bool {
		if s.Observed != first.Observed {
			t.Errorf("a change that was not carried out is told as observed: %d, after %d", s.Observed, first.Observed)
		}
		c := condition(s, "ChangeFailed")
		return c != nil && strings.Contains(c.Message, "free some space") && s.Phase == api.PhaseRunning
	}
	h.waitFor("a", "told of the change that fails", failing)
	h.eventually("the change is tried again", func() bool { return h.grown > 2 })
	stop()
	h.agent() // another daemon tells the same
	h.waitFor("a", "told of the change that fails", failing)
	events, _, err := h.store.List(t.Context(), state.Events)
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	for _, e := range events {
		if strings.Contains(string(e.Value), "ChangeFailed") {
			told++
		}
	}
	if told < 1 || told > 2 { // each daemon once
		t.Errorf("told by %d events", told)
	}
	h.mu.Lock()
	h.grow = nil
	h.mu.Unlock()
	h.waitFor("a", "changed", func(s *state.Status) bool {
		return s.Observed > first.Observed && condition(s, "ChangeFailed") == nil
	})
}

// A tree grows below its guest; a disk that a guest has open is left alone until the next start.
func TestDiskGrows(t *testing.T) {
	for model, live := range map[api.Model]bool{api.ModelOS: true, api.ModelPara: false} {
		t.Run(string(model), func(t *testing.T) {
			h := newHost(t)
			h.model = model
			h.agent()
			h.server("a", nil)
			first := h.phase("a", api.PhaseRunning)
			h.mu.Lock()
			before := h.grown
			h.mu.Unlock()
			h.server("a", func(r *state.Server) { r.Spec.Disk.Size = api.GiB })
			st := h.waitFor("a", "changed", func(s *state.Status) bool { return s.Observed > first.Observed })
			c := condition(st, "RestartNeeded")
			h.mu.Lock()
			defer h.mu.Unlock()
			if waits, grew := c != nil && c.Status, h.grown > before; waits == live || grew != live {
				t.Errorf("told to wait %v, grown %v", waits, grew)
			}
		})
	}
}

// A running server that gives up a part of its reservation is no longer spared, and is again once it reserves all.
func TestAReservationThatChanges(t *testing.T) {
	h := newHost(t)
	h.agent()
	h.server("a", nil)
	last := h.phase("a", api.PhaseRunning)
	for _, reservation := range []api.Bytes{32 * api.MiB, 64 * api.MiB} {
		var want int
		h.server("a", func(r *state.Server) {
			r.Spec.Memory.Reservation = reservation
			want = engine.OOMScore(&r.Spec)
		})
		before := last.Observed
		last = h.waitFor("a", "changed", func(s *state.Status) bool { return s.Observed > before })
		h.mu.Lock()
		if got, ok := h.scores["a"]; !ok || got != want {
			t.Errorf("with %s reserved its score is %d, %v, want %d", reservation, got, ok, want)
		}
		h.mu.Unlock()
	}
}

// Limits of I/O are kept, or the server is told that they can't be: they are never dropped in silence.
func TestIOLimitsAreKeptOrRefused(t *testing.T) {
	limited := func(r *state.Server) { r.Spec.Disk.WriteIOPS = 100 }
	t.Run("a device", func(t *testing.T) {
		h := newHost(t)
		h.device = 8
		h.agent()
		h.server("a", limited)
		h.phase("a", api.PhaseRunning)
		h.mu.Lock()
		defer h.mu.Unlock()
		if io := h.groups["a"].IO; len(io) != 1 || io[0].Major != 8 || io[0].WriteIOPS != 100 {
			t.Errorf("the group has %+v", io)
		}
	})
	t.Run("none", func(t *testing.T) {
		h := newHost(t)
		h.agent()
		h.server("a", limited)
		if st := h.phase("a", api.PhaseFailed); !strings.Contains(st.Message, "I/O limits can't be kept here") {
			t.Errorf("it says %q", st.Message)
		}
		h.server("a", func(r *state.Server) { r.Intent.Start = 1 })
		first := h.phase("a", api.PhaseRunning)
		h.server("a", func(r *state.Server) { r.Intent.Start = 1; limited(r) })
		h.waitFor("a", "told", func(s *state.Status) bool {
			c := condition(s, "ChangeFailed")
			return c != nil && strings.Contains(c.Message, "I/O limits can't be kept here") && s.Observed == first.Observed
		})
	})
}
