package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/cgroup"
	"github.com/croftproject/croft/internal/image"
)

// parent runs a sandbox that never ends, as a daemon would.
func parent(group, dir string) int {
	groups, err := cgroup.New(group)
	if err == nil {
		_, err = Run(context.Background(), Command{
			Executable: "/proc/self/exe", Args: []string{"hang"}, Dir: dir, FileLimit: api.MiB, Timeout: time.Minute, Groups: groups,
		})
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// until looks every few milliseconds, as the kernel tells nobody of a group's members.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("it never came to be: %s", what)
		}
	}
}

func TestChildIsLimitedAndEndsWithItsParent(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("control groups need root")
	}
	name := fmt.Sprintf("croft-test-sandbox-%d", os.Getpid())
	groups, err := cgroup.New(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := groups.Kill(context.Background(), ""); err != nil {
			t.Error(err)
		}
		if err := groups.Remove(context.Background(), ""); err != nil {
			t.Error(err)
		}
	})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command(self, "parent", name, t.TempDir())
	daemon.Stderr = os.Stderr
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	var group string
	inside := func() int64 {
		u, err := groups.Usage(group)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // it is being made, one hierarchy after the other
			t.Fatal(err)
		}
		return u.PIDs
	}
	until(t, "a child in a group of its own", func() bool {
		names, err := groups.List()
		if err != nil {
			t.Fatal(err)
		}
		if len(names) != 1 || !strings.HasPrefix(names[0], image.GroupPrefix) {
			return false
		}
		group = names[0]
		return inside() > 0
	})
	if err := daemon.Process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = daemon.Wait() // "signal: killed"
	until(t, "the child's end with its parent's", func() bool { return inside() == 0 })
	if err := Sweep(groups); err != nil {
		t.Fatal(err)
	}
	if names, err := groups.List(); err != nil || len(names) > 0 {
		t.Errorf("after the sweep: %v, %v", names, err)
	}
}
