package agent

import (
	"fmt"
	"strings"
	"testing"

	"github.com/croftproject/croft/api"
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
