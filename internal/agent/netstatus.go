package agent

import (
	"context"
	"errors"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/hostnet"
	"github.com/croftproject/croft/internal/state"
	"github.com/croftproject/croft/internal/store"
)

// condition tells how a network does after a Set that ended with err.
func (n *networks) condition(config hostnet.Network, err error) api.Condition {
	c := api.Condition{Type: "Ready"}
	if err != nil {
		c.Reason, c.Message = "SetFailed", err.Error()+"; it is tried again"
		return c
	}
	if up, ok := n.a.Net.(hostnet.Uplinker); ok && config.NAT {
		if device, err := up.Uplink(); err == nil && device == "" {
			c.Reason, c.Message = "NoUplink", "the host has no uplink: servers reach each other, and nothing else"
			return c
		}
	}
	c.Status, c.Reason = true, "Set"
	return c
}

// stands has a network's status written where it changed.
func (n *networks) stands(id string, c api.Condition) {
	n.mu.Lock()
	net := n.by[id]
	if net == nil {
		n.mu.Unlock()
		return
	}
	if c.Since = n.a.Now(); c.Status == net.ready.Status && net.ready.Type != "" {
		c.Since = net.ready.Since
	}
	net.ready = c
	n.mu.Unlock()
	n.reports.Wake(id)
}

// report writes a network's status; a network that is on no host has none. What is written of a network whose record
// has changed or gone meanwhile is left to the Set that follows from that.
func (n *networks) report(ctx context.Context, id string) (time.Duration, error) {
	n.mu.Lock()
	net := n.by[id]
	if net == nil || net.ready == net.told || net.spec == nil {
		n.mu.Unlock()
		return 0, nil
	}
	c, revision := net.ready, net.revision
	n.mu.Unlock()
	tx := store.Tx{Reports: true, Checks: []store.Check{{Key: state.Networks + id, Revision: revision}}}
	if c.Type == "" {
		tx.Deletes = []string{state.NetworkStatus + id}
	} else {
		tx.Puts = []store.Put{store.Encode(state.NetworkStatus+id, state.NetStatus{HostID: n.a.HostID, Conditions: []api.Condition{c}})}
	}
	if _, err := n.a.Store.Commit(ctx, tx); err != nil && !errors.Is(err, store.ErrConflict) {
		return 0, err
	} else if err != nil {
		return 0, nil
	}
	n.mu.Lock()
	net.told = c
	n.mu.Unlock()
	return 0, nil
}
