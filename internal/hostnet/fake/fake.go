// Package fake is a hostnet.Host that records what it is told, for tests of those who use one.
package fake

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/croftproject/croft/internal/hostnet"
)

// Host remembers networks and makes none. The zero value is ready.
type Host struct {
	// Fail, if set, is asked before each call ("Set", "Remove") on a network; its error is returned and nothing recorded.
	Fail func(call, network string) error

	mu       sync.Mutex
	networks map[string]hostnet.Network
	calls    []string
	counters map[string]hostnet.Counters
	closed   bool
}

var _ hostnet.Host = (*Host)(nil)

func (h *Host) Set(ctx context.Context, n hostnet.Network) error {
	if err := h.begin(ctx, "Set", n.ID); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.networks == nil {
		h.networks = map[string]hostnet.Network{}
	}
	n.Subnets, n.Forwarders, n.Records = slices.Clone(n.Subnets), slices.Clone(n.Forwarders), slices.Clone(n.Records)
	n.Ports = slices.Clone(n.Ports)
	h.networks[n.ID] = n
	return nil
}

func (h *Host) Remove(ctx context.Context, id string) error {
	if err := h.begin(ctx, "Remove", id); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.networks, id)
	return nil
}

func (h *Host) begin(ctx context.Context, call, network string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if h.Fail != nil {
		if err := h.Fail(call, network); err != nil {
			return err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, call+" "+network)
	return nil
}

func (h *Host) List(context.Context) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var ids []string
	for id := range h.networks {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids, nil
}

// Attachment names places of the same form as the real ones.
func (h *Host) Attachment(networkID string, p hostnet.Port) hostnet.Attachment {
	if p.Kind == hostnet.Namespace {
		return hostnet.Attachment{NetNS: "/fake/netns/s-" + p.Server, Device: p.Guest}
	}
	return hostnet.Attachment{NetNS: "/fake/netns/n-" + networkID, Device: "p" + p.ID}
}

func (h *Host) Counters(_ context.Context, networkID, portID string) (hostnet.Counters, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.networks[networkID].Ports {
		if p.ID == portID {
			return h.counters[portID], nil
		}
	}
	return hostnet.Counters{}, fmt.Errorf("network %s has no port %s", networkID, portID)
}

func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	return nil
}

// Network returns a network as it was last set.
func (h *Host) Network(id string) (hostnet.Network, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, ok := h.networks[id]
	return n, ok
}

// Calls returns the calls that changed something, in order: "Set ID", "Remove ID".
func (h *Host) Calls() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.calls)
}

// SetCounters makes Counters of a port return c.
func (h *Host) SetCounters(portID string, c hostnet.Counters) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.counters == nil {
		h.counters = map[string]hostnet.Counters{}
	}
	h.counters[portID] = c
}

// Closed tells whether Close was called.
func (h *Host) Closed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.closed
}
