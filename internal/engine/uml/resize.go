package uml

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
)

// headroom is what taking memory away must leave free: the kernel would kill its processes for less.
const headroom = 8 * api.MiB

// Resize takes memory from the running guest, or gives back what was taken. The guest goes on showing the total that it
// was started with; what was taken is in use by its kernel. More than at its start, or less than it has in use, needs a
// restart.
func (g *Guest) Resize(ctx context.Context, from, to *api.ServerSpec) error {
	if from.CPU.Count != to.CPU.Count {
		return fmt.Errorf("%w: the engine uml gives one virtual CPU", engine.ErrUnsupported)
	}
	grow := to.Memory.Limit - from.Memory.Limit
	switch {
	case grow == 0:
		return nil
	case to.Memory.Limit > api.Bytes(g.memory):
		return fmt.Errorf("%w: the guest was started with %v and gets more at its next start", engine.ErrUnsupported, api.Bytes(g.memory))
	case grow < 0:
		available, err := g.available(ctx)
		if err != nil {
			return fmt.Errorf("resize %s: %w", g.m.ID, err)
		}
		if -grow > available-headroom {
			return fmt.Errorf("%w: the guest has %v of memory to spare; it gives back %v at its next start", engine.ErrUnsupported,
				max(0, available-headroom), -grow)
		}
	}
	change := fmt.Sprintf("%+dK", grow/api.KiB)
	if err := g.console.Configure(ctx, "mem", change); err != nil {
		return fmt.Errorf("resize %s: %w", g.m.ID, err)
	}
	return nil
}

// available is MemAvailable of the guest (proc_meminfo(5)).
func (g *Guest) available(ctx context.Context) (api.Bytes, error) {
	meminfo, err := g.console.Do(ctx, "proc meminfo")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(meminfo, "MemAvailable:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0, fmt.Errorf("the guest's meminfo names no available memory")
	}
	kib, err := strconv.ParseInt(fields[0], 10, 48)
	return api.Bytes(kib) * api.KiB, err
}
