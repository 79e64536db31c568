package qemu

import (
	"context"
	"fmt"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/qemu/qmp"
)

// answerLimit is how long QEMU may take to answer where the caller sets no earlier deadline.
const answerLimit = 10 * time.Second

// control connects to QEMU for the length of act. QEMU serves one connection at a time; the next one waits.
func (l *life) control(ctx context.Context, act func(*qmp.Client) error) error {
	if l.ended() {
		return engine.ErrGone
	}
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	client, err := dialQMP(ctx, l.paths.control, l.user, nil)
	if err != nil {
		return err
	}
	defer client.Close()
	return act(client)
}

func (g guest) Pause(ctx context.Context) error  { return g.run(ctx, "pause", "stop") }
func (g guest) Resume(ctx context.Context) error { return g.run(ctx, "resume", "cont") }

func (g guest) run(ctx context.Context, act, command string) error {
	err := g.control(ctx, func(c *qmp.Client) error { return c.Execute(ctx, command, nil, nil) })
	if err != nil {
		return fmt.Errorf("%s %s: %w", act, g.id, err)
	}
	return nil
}

// Paused asks QEMU whether the guest is halted.
func (g guest) Paused(ctx context.Context) (is bool, err error) {
	err = g.control(ctx, func(c *qmp.Client) error {
		is, err = paused(ctx, c)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("state of %s: %w", g.id, err)
	}
	return is, nil
}

func paused(ctx context.Context, c *qmp.Client) (bool, error) {
	var status struct {
		Status string `json:"status"`
	}
	if err := c.Execute(ctx, "query-status", nil, &status); err != nil {
		return false, err
	}
	return status.Status == "paused", nil
}

// balloonLimit is how long a guest may take to give memory back.
const balloonLimit = 5 * time.Second

// Resize changes the guest's memory below what it was started with, by the balloon. A guest that does not give memory
// back in time (it has no driver, or needs it) keeps what it had, and the change waits for the next start.
func (g guest) Resize(ctx context.Context, from, to *api.ServerSpec) error {
	switch {
	case from.CPU.Count != to.CPU.Count:
		return fmt.Errorf("%w: the number of virtual CPUs changes at the next start", engine.ErrUnsupported)
	case from.Memory.HugePages != to.Memory.HugePages:
		return fmt.Errorf("%w: huge pages change at the next start", engine.ErrUnsupported)
	case from.Memory.Limit == to.Memory.Limit:
		return nil // the rest is the cgroup's
	case from.Memory.HugePages:
		return fmt.Errorf("%w: memory on huge pages changes at the next start", engine.ErrUnsupported)
	}
	// Room for the change, which takes the guest a while.
	err := g.control(ctx, func(c *qmp.Client) error { return balloon(ctx, c, from.Memory.Limit, to.Memory.Limit) })
	if err != nil {
		return fmt.Errorf("resize %s: %w", g.id, err)
	}
	return nil
}

// balloon sets the guest's memory, and waits until a smaller amount is reached.
func balloon(ctx context.Context, c *qmp.Client, from, to api.Bytes) error {
	var size struct {
		Base int64 `json:"base-memory"`
	}
	if err := c.Execute(ctx, "query-memory-size-summary", nil, &size); err != nil {
		return err
	}
	if to > api.Bytes(size.Base) {
		return fmt.Errorf("%w: memory beyond the %v that the guest was started with comes at the next start", engine.ErrUnsupported, api.Bytes(size.Base))
	}
	events := qmp.NewEvents(64)
	c.Subscribe(events)
	if err := setBalloon(ctx, c, to); err != nil || to >= from {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, balloonLimit)
	defer cancel()
	for {
		var now struct {
			Actual int64 `json:"actual"`
		}
		if err := c.Execute(ctx, "query-balloon", nil, &now); err != nil {
			return err
		}
		if api.Bytes(now.Actual) <= to {
			return nil
		}
		// Each step of the guest is an event; QEMU sends at most one a second, the last one always.
		if _, err := events.Next(wait); err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			if err := setBalloon(undo, c, from); err != nil {
				return err
			}
			return fmt.Errorf("%w: the guest does not give memory back while it runs (its kernel needs the virtio balloon driver): less memory comes at the next start", engine.ErrUnsupported)
		}
	}
}

func setBalloon(ctx context.Context, c *qmp.Client, to api.Bytes) error {
	return c.Execute(ctx, "balloon", map[string]int64{"value": int64(to)}, nil)
}
