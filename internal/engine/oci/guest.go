package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/keeper"
)

// Guest is a guest that the runtime started. It keeps no state of its own: two that stand for the same guest, in two
// daemons even, tell the same.
type Guest struct {
	engine *Engine
	m      *engine.Machine
	saved  saved
	pid    int
	done   <-chan struct{}

	mu   sync.Mutex
	exit *api.Exit // once it was told
}

func (e *Engine) guest(m *engine.Machine, s saved, status keeper.Status) *Guest {
	return &Guest{engine: e, m: m, saved: s, pid: status.PID, done: e.keeper.Done(m.ID)}
}

// Handle holds what the bundle holds too.
func (g *Guest) Handle() engine.Handle {
	return engine.Handle{Engine: g.engine.Traits().Name, Version: handleVersion, Data: g.saved.encode()}
}

// PID is the guest's first process, as the host counts.
func (g *Guest) PID() int { return g.pid }

// Done is the keeper's word.
func (g *Guest) Done() <-chan struct{} { return g.done }

func (g *Guest) ended() bool {
	select {
	case <-g.done:
		return true
	default:
		return false
	}
}

// keeperTime is how long the keeper may take to answer, where the contract passes no context.
const keeperTime = 5 * time.Second

// Exit reads how it ended off the keeper, the control group and the mark of a stop.
func (g *Guest) Exit() api.Exit {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.exit != nil {
		return *g.exit
	}
	ctx, cancel := context.WithTimeout(context.Background(), keeperTime)
	defer cancel()
	status, err := g.engine.keeper.Get(ctx, g.m.ID)
	if err != nil || status.Ended.IsZero() {
		return api.Exit{Code: -1, Reason: "lost"}
	}
	exit := exitOf(status, g.saved.System, g.asked(), g.engine.groups.oomKills(guestGroup(g.m)))
	g.exit = &exit
	return exit
}

// exitOf tells why a guest ended. reboot(2) in a process namespace ends its first process with SIGINT to halt or power
// off, and with SIGHUP to restart (pid_namespaces(7)).
func exitOf(status keeper.Status, system, asked bool, oomKills int) api.Exit {
	exit := api.Exit{Code: status.Code, Time: status.Ended}
	sig := unix.Signal(status.Signal)
	off := system && sig == unix.SIGINT
	again := system && sig == unix.SIGHUP
	if off || again {
		exit.Code = 0 // a proper end
	}
	switch {
	case asked:
		exit.Reason = "asked"
	case status.Code < 0:
		exit.Reason = "lost"
	case off:
		exit.Reason = "poweroff"
	case again:
		exit.Reason = "reboot"
	case sig == unix.SIGKILL && oomKills > 0:
		exit.Reason = "oom"
	case sig != 0:
		exit.Reason = "signal"
	default:
		exit.Reason = "exited"
	}
	return exit
}

// The mark of a stop is a file: the daemon that is asked may not be the one that sees the end.
func (g *Guest) mark() string { return bundleOf(g.m).file("asked") }

func (g *Guest) asked() bool {
	_, err := os.Lstat(g.mark())
	return err == nil
}

// Stop signals the guest's first process. See engine.Guest.
func (g *Guest) Stop(ctx context.Context, mode engine.StopMode) error {
	if g.ended() {
		return nil
	}
	if err := os.WriteFile(g.mark(), nil, 0o600); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("note the stop of %s: %w", g.m.ID, err)
	}
	if mode == engine.Graceful {
		return g.engine.signal(ctx, g.m.ID, g.saved.PowerOff.signal())
	}
	if err := g.engine.signal(ctx, g.m.ID, unix.SIGKILL); err != nil {
		return err
	}
	g.engine.groups.thaw(guestGroup(g.m)) // what is frozen does not die
	return nil
}

// Release removes what Launch made, but for the console log. See engine.Guest.
func (g *Guest) Release(ctx context.Context) error {
	if !g.ended() {
		return fmt.Errorf("release %s: the guest still runs", g.m.ID)
	}
	g.Exit() // while the keeper knows
	return g.engine.clear(ctx, g.m)
}

// Pause halts every process of the guest.
func (g *Guest) Pause(ctx context.Context) error {
	if paused, err := g.Paused(ctx); err != nil || paused {
		return err
	}
	return g.engine.runtime.do(ctx, "pause", g.m.ID)
}

// Resume lets them go on.
func (g *Guest) Resume(ctx context.Context) error {
	if paused, err := g.Paused(ctx); err != nil || !paused {
		return err
	}
	return g.engine.runtime.do(ctx, "resume", g.m.ID)
}

// Paused asks the freezer.
func (g *Guest) Paused(context.Context) (bool, error) {
	return g.engine.groups.frozen(guestGroup(g.m))
}

// Resize has nothing to tell: the guest lives on the host's kernel, and its control group has the limits.
func (g *Guest) Resize(context.Context, *api.ServerSpec, *api.ServerSpec) error { return nil }
