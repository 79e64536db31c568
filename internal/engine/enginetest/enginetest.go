// Package enginetest is the contract of package engine as a test suite. Every engine passes it:
//
//	func TestContract(t *testing.T) {
//		enginetest.Run(t, enginetest.Harness{
//			New:     func(t testing.TB) engine.Engine { return uml.New(…) },
//			Machine: func(t testing.TB, id string) *engine.Machine { … },
//			Ready:   func(ctx context.Context, t testing.TB, m *engine.Machine) { … },
//		})
//	}
//
// Only New and Machine are required. What a harness can't say is not tested, except the optional interfaces (Pauser,
// Execer, Resizer): a guest that has one is held to it.
//
// The suite waits on events, each with a deadline; it never sleeps.
package enginetest

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
)

// Harness connects the suite to an engine.
type Harness struct {
	// New makes the engine as the daemon does when it starts. It is called again to play a restart of the daemon; what
	// must outlive the daemon (a keeper, a fake host) is made once, outside of it.
	New func(t testing.TB) engine.Engine

	// Machine makes everything that launching machine id needs, and removes it in t.Cleanup. The machine's Dir, RunDir
	// and cgroup are its own and empty. Its guest runs until it is stopped.
	Machine func(t testing.TB, id string) *engine.Machine

	// Ready waits until the guest's userspace is up, so far that it answers a graceful stop. Nil: it is as soon as
	// Launch returns.
	Ready func(ctx context.Context, t testing.TB, m *engine.Machine)

	// Alive tells whether the process runs. Nil: asks the host's /proc.
	Alive func(pid int) bool

	// End ends the guest behind the engine's back. Nil: SIGKILL to Guest.PID.
	End func(t testing.TB, m *engine.Machine, pid int)

	// PowerOff has the guest power itself off from inside. Nil: not tested.
	PowerOff func(ctx context.Context, t testing.TB, m *engine.Machine)

	// Console attaches to the guest's console. Nil: not tested. The suite writes ConsoleSend and waits for
	// ConsoleExpect; the default is a line for a shell and what the shell makes of it.
	Console                    func(ctx context.Context, m *engine.Machine) (io.ReadWriteCloser, error)
	ConsoleSend, ConsoleExpect string

	// Bad are specs that Validate must reject, each with the field at fault.
	Bad []BadSpec

	// Commands are what Exec is tested with. Zero: ones for a guest with a POSIX shell.
	Commands Commands

	// Leaks tells what is left on the host of a machine that was cleaned, beyond what the suite looks for itself:
	// processes in its cgroup, mounts below and files in its Dir and RunDir.
	Leaks func(t testing.TB, m *engine.Machine) []string

	// LaunchLimit, ReadyLimit and StopLimit are how long each may take. Zero: 30 s.
	LaunchLimit, ReadyLimit, StopLimit time.Duration
}

// BadSpec is a spec that the engine must refuse: Machine's spec with one change.
type BadSpec struct {
	Name    string
	Change  func(*api.ServerSpec)
	Pointer string // the field that must be named, such as /spec/cpu/count
}

// Commands are argument lists that behave as described, in the engine's guest.
type Commands struct {
	Exit7   []string // exits with 7
	Streams []string // writes "out" to standard output and "err" to standard error
	Cat     []string // copies standard input to standard output
	Size    []string // prints the rows and columns of its terminal: "33 77"
	Hang    []string // prints its process id, then runs until it is killed
	Gone    func(pid string) []string
	Context []string // prints $CROFT_TEST, the working directory and the user id, one a line
}

// shell are the commands for a guest with a POSIX shell.
func shell() Commands {
	sh := func(script string) []string { return []string{"/bin/sh", "-c", script} }
	return Commands{
		Exit7:   sh("exit 7"),
		Streams: sh("printf out; printf err >&2"),
		Cat:     sh("exec cat"),
		Size:    sh("stty size"),
		Hang:    sh("echo $$; exec sleep 100000"),
		Gone:    func(pid string) []string { return sh("while kill -0 " + pid + " 2>/dev/null; do :; done") },
		Context: sh(`echo "$CROFT_TEST"; pwd; id -u`),
	}
}

func (h *Harness) defaults() {
	for _, limit := range []*time.Duration{&h.LaunchLimit, &h.ReadyLimit, &h.StopLimit} {
		if *limit == 0 {
			*limit = 30 * time.Second
		}
	}
	if h.Ready == nil {
		h.Ready = func(context.Context, testing.TB, *engine.Machine) {}
	}
	if h.Alive == nil {
		h.Alive = alive
	}
	if h.End == nil {
		h.End = kill
	}
	if h.Commands.Exit7 == nil {
		h.Commands = shell()
	}
	if h.ConsoleSend == "" {
		h.ConsoleSend, h.ConsoleExpect = "echo con$((40+2))sole\n", "con42sole"
	}
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	h.defaults()
	for _, test := range []struct {
		name string
		run  func(*testing.T, *Harness)
	}{
		{"traits", testTraits},
		{"probe", testProbe},
		{"validate", testValidate},
		{"life", testLife},
		{"end by itself", testPowerOff},
		{"kill", testKill},
		{"two at once", testTwoAtOnce},
		{"console", testConsole},
		{"recover running", testRecoverRunning},
		{"recover ended", testRecoverEnded},
		{"recover unknown", testRecoverUnknown},
		{"recover garbage", testRecoverGarbage},
		{"clean", testClean},
		{"cancelled launch", testCancelledLaunch},
		{"failed launch", testFailedLaunch},
		{"pause", testPause},
		{"resize", testResize},
		{"exec", testExec},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, &h) })
	}
}

// within is a context for one step of a test.
func within(t testing.TB, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

// machine makes a machine and sees to it that nothing of it is left when the test ends, however it ends.
func (h *Harness) machine(t testing.TB, e engine.Engine) *engine.Machine {
	t.Helper()
	m := h.Machine(t, newID())
	t.Cleanup(func() {
		if err := e.Clean(within(t, h.StopLimit), m); err != nil {
			t.Errorf("clean %s: %v", m.ID, err)
		}
	})
	return m
}

// launch launches a machine that was just made.
func (h *Harness) launch(t testing.TB, e engine.Engine, m *engine.Machine) engine.Guest {
	t.Helper()
	g, err := e.Launch(within(t, h.LaunchLimit), m)
	if err != nil {
		t.Fatalf("launch: %v", err)
	}
	return g
}

// running launches a new machine and waits for its userspace.
func (h *Harness) running(t testing.TB, e engine.Engine) (*engine.Machine, engine.Guest) {
	t.Helper()
	m := h.machine(t, e)
	g := h.launch(t, e, m)
	h.Ready(within(t, h.ReadyLimit), t, m)
	return m, g
}

// ended waits for the guest's end and returns how it ended.
func (h *Harness) ended(t testing.TB, g engine.Guest) api.Exit {
	t.Helper()
	timer := time.NewTimer(h.StopLimit)
	defer timer.Stop()
	select {
	case <-g.Done():
		return g.Exit()
	case <-timer.C:
		t.Fatalf("guest has not ended within %v", h.StopLimit)
		return api.Exit{}
	}
}

// release releases an ended guest, twice, and checks that it left nothing in RunDir.
func (h *Harness) release(t testing.TB, m *engine.Machine, g engine.Guest) {
	t.Helper()
	for range 2 {
		if err := g.Release(within(t, h.StopLimit)); err != nil {
			t.Fatalf("release: %v", err)
		}
	}
	if left := files(m.RunDir); len(left) > 0 {
		t.Errorf("left in RunDir after release: %v", left)
	}
}

func open(g engine.Guest) bool {
	select {
	case <-g.Done():
		return false
	default:
		return true
	}
}

// alive tells whether a process runs; a zombie does not.
func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, ok := strings.Cut(string(stat), ") ") // proc_pid_stat(5): the name may hold anything but ends the parentheses
	for ok && strings.Contains(rest, ") ") {
		_, rest, _ = strings.Cut(rest, ") ")
	}
	return ok && !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

func kill(t testing.TB, _ *engine.Machine, pid int) {
	p, err := os.FindProcess(pid)
	if err == nil {
		err = p.Kill()
	}
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("kill %d: %v", pid, err)
	}
}
