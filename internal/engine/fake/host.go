// Package fake is an engine without a machine: its guests are entries in a map. It keeps the whole contract of package
// engine, so whatever stands on an engine can be tested without privileges and by the thousand.
//
// A Host holds the guests and outlives the engines made on it, as a physical host outlives the daemon: a restart of the
// daemon is a second New on the same Host. Guests run until they are stopped, ended (Host.End) or cleaned away. A guest
// costs a map entry and a channel; there is no goroutine behind it.
package fake

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/croftproject/croft/api"
)

// firstPID is above what Linux gives to processes (proc(5), pid_max is at most 2^22), so that a fake guest's PID is
// never taken for a process.
const firstPID = 1 << 23

// Hooks let a test interfere. Each is called with the machine's ID before the act; an error that it returns is the
// act's, which then has not happened. Nil does nothing.
type Hooks struct {
	Launch, Recover, Stop, Pause, Release, Clean func(id string) error
	// Deaf tells whether the guest ignores a graceful stop.
	Deaf func(id string) bool
}

// Host is the host that fake guests live on.
type Host struct {
	mu     sync.Mutex
	guests map[string]*guest
	last   int
	hooks  Hooks
}

// NewHost makes an empty host.
func NewHost() *Host { return &Host{guests: map[string]*guest{}} }

// Hook sets the hooks.
func (h *Host) Hook(hooks Hooks) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hooks = hooks
}

func (h *Host) hook(pick func(Hooks) func(string) error, id string) error {
	h.mu.Lock()
	f := pick(h.hooks)
	h.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(id)
}

func (h *Host) deaf(id string) bool {
	h.mu.Lock()
	f := h.hooks.Deaf
	h.mu.Unlock()
	return f != nil && f(id)
}

// Running lists the machines whose guests run.
func (h *Host) Running() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var ids []string
	for id, g := range h.guests {
		if g.running() {
			ids = append(ids, id)
		}
	}
	return ids
}

// Known tells whether anything is left of a machine.
func (h *Host) Known(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.guests[id] != nil
}

// Alive tells whether a guest with this PID runs.
func (h *Host) Alive(pid int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, g := range h.guests {
		if g.pid == pid && g.running() {
			return true
		}
	}
	return false
}

// End has a guest end by itself, with a code and a reason such as "poweroff". Unknown and ended guests are left alone.
func (h *Host) End(id string, code int, reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if g := h.guests[id]; g != nil {
		g.end(api.Exit{Code: code, Reason: reason})
	}
}

// Console attaches to a running guest's console, which shows what is typed.
func (h *Host) Console(id string) (io.ReadWriteCloser, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if g := h.guests[id]; g == nil || !g.running() {
		return nil, fmt.Errorf("console of %s: the guest does not run", id)
	}
	return newEcho(), nil
}

// guest is what the host knows of one guest. It is guarded by the host's mu.
type guest struct {
	id     string
	pid    int
	done   chan struct{}
	exit   api.Exit
	paused bool
	asked  bool
}

func (g *guest) running() bool {
	select {
	case <-g.done:
		return false
	default:
		return true
	}
}

func (g *guest) end(exit api.Exit) {
	if !g.running() {
		return
	}
	exit.Time = time.Now()
	if g.asked {
		exit.Reason = "asked"
	}
	g.exit = exit
	close(g.done)
}
