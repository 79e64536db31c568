package daemon

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/agent"
	"github.com/croftproject/croft/internal/cgroup"
	"github.com/croftproject/croft/internal/image"
)

// What is no server's is ended with its group; a server's process is left alone, and refused.
func TestCleanRemovesGroups(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes control groups")
	}
	if _, err := cgroup.Detect(); err != nil {
		t.Skip(err)
	}
	group := fmt.Sprintf("croft-test-%08x", rand.Uint32())
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(func() {
		defer cancel()
		if err := removeGroups(ctx, group); err != nil {
			t.Error(err)
		}
	})
	run := func(group string) (pid int) {
		t.Helper()
		place, err := cgroup.Make(group)
		if err != nil {
			t.Fatal(err)
		}
		if pid, err = place.Start("/bin/sleep", []string{"sleep", "60"}, &syscall.ProcAttr{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			unix.Kill(pid, unix.SIGKILL)
			unix.Wait4(pid, nil, 0, nil)
		})
		return pid
	}
	ended := func(pid int) bool {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		return err == nil && info.Signo == int32(unix.SIGCHLD)
	}

	server := run(group + "/a1b2")
	if err := removeGroups(ctx, group); !errors.Is(err, ErrServersRun) || ended(server) {
		t.Errorf("while a server runs: %v; it has ended: %v", err, ended(server))
	}
	unix.Kill(server, unix.SIGKILL)
	var info unix.Siginfo
	unix.Waitid(unix.P_PID, server, &info, unix.WEXITED|unix.WNOWAIT, nil)

	others := []int{run(group + "-keeper"), run(group + "/" + agent.ProbeGroup), run(group + "/" + image.GroupPrefix + "x")}
	for range 2 {
		if err := removeGroups(ctx, group); err != nil {
			t.Error(err)
		}
	}
	for _, pid := range others {
		if !ended(pid) {
			t.Errorf("process %d is left", pid)
		}
	}
}
