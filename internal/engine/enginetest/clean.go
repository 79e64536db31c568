package enginetest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/croftproject/croft/internal/engine"
)

// newID makes a server id that no other run uses.
func newID() string { return "t" + strings.ToLower(rand.Text()[:25]) }

func testClean(t *testing.T, h *Harness) {
	e := h.New(t)
	m := h.machine(t, e)
	h.checkClean(t, e, m) // nothing was ever launched
	g := h.launch(t, e, m)
	h.checkClean(t, h.New(t), m) // by a daemon that knows nothing of the launch
	h.ended(t, g)
	h.checkClean(t, e, m)
	h.checkRestart(t, e, m)
}

// testCancelledLaunch cancels a launch at each point at which the engine looks at its context, until a launch gets
// through. Whatever was done by then must have been undone.
func testCancelledLaunch(t *testing.T, h *Harness) {
	e := h.New(t)
	m := h.machine(t, e)
	const most = 40
	for looks := range most {
		g, err := e.Launch(&impatient{Context: within(t, h.LaunchLimit), left: looks}, m)
		if err == nil {
			if looks == 0 {
				t.Error("Launch does not look at its context at all")
			}
			if !open(g) {
				t.Error("launched, but ended")
			}
			h.checkClean(t, e, m)
			return
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled at look %d: %v; want context.Canceled", looks, err)
		}
		h.checkNothing(t, m, fmt.Sprintf("after a launch cancelled at look %d", looks))
	}
	h.checkClean(t, e, m)
}

// testFailedLaunch launches a machine whose root is missing.
func testFailedLaunch(t *testing.T, h *Harness) {
	e := h.New(t)
	m := h.machine(t, e)
	broken := *m
	broken.Root.Path = filepath.Join(m.RunDir, "no-such-root")
	if g, err := e.Launch(within(t, h.LaunchLimit), &broken); err == nil {
		t.Errorf("launched process %d without a root", g.PID())
	} else if !strings.Contains(err.Error(), "no-such-root") {
		t.Errorf("the error does not name what is missing: %v", err)
	}
	h.checkNothing(t, m, "after a failed launch")
	h.checkRestart(t, e, m)
}

// impatient is a context that is cancelled at the left-th look at it: a call of Err or Done.
type impatient struct {
	context.Context
	mu   sync.Mutex
	left int
	done chan struct{}
}

func (c *impatient) look() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
	}
	c.left--
	if c.left == -1 {
		close(c.done)
	}
	return c.left < 0
}

func (c *impatient) Done() <-chan struct{} {
	c.look()
	return c.done
}

func (c *impatient) Err() error {
	if c.look() {
		return context.Canceled
	}
	return c.Context.Err()
}

// checkClean cleans twice and looks for what is left.
func (h *Harness) checkClean(t testing.TB, e engine.Engine, m *engine.Machine) {
	t.Helper()
	for range 2 {
		if err := e.Clean(within(t, h.StopLimit), m); err != nil {
			t.Fatalf("clean: %v", err)
		}
	}
	h.checkNothing(t, m, "after clean")
	for _, dir := range []string{m.Dir, m.RunDir} {
		if left := files(dir); len(left) > 0 {
			t.Errorf("left after clean: %v", left)
		}
	}
}

// checkNothing looks for what a machine that does not run must not have.
func (h *Harness) checkNothing(t testing.TB, m *engine.Machine, when string) {
	t.Helper()
	if pids := processes(m); len(pids) > 0 {
		t.Errorf("%s: processes %v are left in cgroup %s", when, pids, m.Cgroup)
	}
	if mounts := mountsBelow(t, m.Dir, m.RunDir); len(mounts) > 0 {
		t.Errorf("%s: mounts are left: %v", when, mounts)
	}
	if left := files(m.RunDir); len(left) > 0 {
		t.Errorf("%s: files are left in RunDir: %v", when, left)
	}
	if h.Leaks != nil {
		for _, leak := range h.Leaks(t, m) {
			t.Errorf("%s: %s", when, leak)
		}
	}
}

// checkProcesses checks that a guest that has ended left no helper behind. Done may come from the guest's main process;
// the others are dying then, so it waits for them.
func (h *Harness) checkProcesses(t testing.TB, m *engine.Machine, pid int) {
	t.Helper()
	for deadline := time.Now().Add(h.StopLimit); len(processes(m)) > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("processes %v outlive guest %d in cgroup %s", processes(m), pid, m.Cgroup)
		}
	}
}

// processes are the live processes in the machine's cgroup and below it.
func processes(m *engine.Machine) []int {
	if m.Cgroup == "" {
		return nil
	}
	entries, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	var pids []int
	for _, path := range entries {
		data, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(data), m.Cgroup) {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(path, "/")[2]); err == nil && alive(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func mountsBelow(t testing.TB, dirs ...string) []string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(data)) {
		point := strings.Fields(line)[4] // proc_pid_mountinfo(5): mount point
		for _, dir := range dirs {
			if dir != "" && strings.HasPrefix(point, dir+"/") {
				found = append(found, point)
			}
		}
	}
	return found
}

// files are the paths of everything in a directory; none where there is no such directory.
func files(dir string) []string {
	if dir == "" {
		return nil
	}
	var found []string
	filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != dir {
			found = append(found, path)
		}
		return nil
	})
	return found
}
