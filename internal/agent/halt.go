package agent

import (
	"context"
	"time"
)

// haltLook is how often Halt looks whether every guest has gone.
const haltLook = 100 * time.Millisecond

// Halt stops every guest, each gracefully within its stop timeout, because the host goes down. What is wanted of the
// servers stays as it is: after the reboot those start again that should. From now on this agent starts none. It returns
// once there is no guest, or with ctx's error.
func (a *Agent) Halt(ctx context.Context) error {
	a.halting.Store(true)
	tick := time.NewTicker(haltLook)
	defer tick.Stop()
	woken := map[string]bool{}
	for {
		alive := a.alive()
		if len(alive) == 0 {
			return nil
		}
		for _, id := range alive {
			if !woken[id] {
				woken[id] = true
				a.loop.Wake(id)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// alive lists the servers that have a guest.
func (a *Agent) alive() (ids []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, m := range a.machines {
		if m.state() != guestNone {
			ids = append(ids, id)
		}
	}
	return ids
}
