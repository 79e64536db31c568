package agent

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/state"
)

// ready follows the status of the test's network until it gives a reason; empty: until there is none.
func (h *host) ready(reason string) (c api.Condition) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	defer cancel()
	const key = state.NetworkStatus + "net1"
	records, rev, err := h.store.List(ctx, key)
	if err != nil {
		h.t.Fatal(err)
	}
	last := ""
	see := func(value []byte) bool {
		var st state.NetStatus
		if err := json.Unmarshal(value, &st); err != nil || len(st.Conditions) != 1 {
			h.t.Fatalf("status %s, %v", value, err)
		}
		c = st.Conditions[0]
		last = c.Reason
		return last == reason
	}
	for _, r := range records {
		if see(r.Value) {
			return c
		}
	}
	if len(records) == 0 && reason == "" {
		return c
	}
	for batch := range h.store.Watch(ctx, key, rev+1) {
		for _, e := range batch.Changes {
			if e.Deleted && reason == "" || !e.Deleted && see(e.Value) {
				return c
			}
		}
	}
	h.t.Fatalf("the network never came to be %q; it is %q", reason, last)
	return c
}

func TestNetworkStatus(t *testing.T) {
	h := newHost(t)
	a, _ := h.agent()
	h.mu.Lock()
	h.noNet = errors.New("no room for a bridge")
	h.mu.Unlock()
	h.server("a", nil)
	if c := h.ready("SetFailed"); c.Status || c.Message != "no room for a bridge; it is tried again" {
		t.Errorf("a network that can't be made: %+v", c)
	}
	h.mu.Lock()
	h.noNet = nil
	h.mu.Unlock()
	if c := h.ready("NoUplink"); c.Status {
		t.Errorf("a network without a way out: %+v", c)
	}
	h.phase("a", api.PhaseRunning)
	h.mu.Lock()
	h.uplink = "eth0"
	sets := h.sets
	h.mu.Unlock()
	a.SetNetworks()
	if c := h.ready("Set"); !c.Status {
		t.Errorf("a network that is there: %+v", c)
	}
	h.mu.Lock()
	if h.sets == sets {
		t.Error("was not set anew")
	}
	h.mu.Unlock()
	h.server("a", asked(api.StateStopped))
	h.phase("a", api.PhaseStopped)
	h.ready("")
}
