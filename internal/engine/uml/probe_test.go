package uml_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/engine/uml"
)

// probeCommand makes the test program a daemon that probes again and again.
const probeCommand = "probe-in-test"

func probeOn(runDir string) error {
	e := uml.New(uml.Config{RunDir: runDir, Confine: []string{"/proc/self/exe", uml.ConfineCommand}})
	for {
		if r := e.Probe(context.Background()); !r.Available {
			return fmt.Errorf("probe: %s", r.Reason)
		}
	}
}

// A daemon that is killed while it probes leaves no kernel behind; what was the kernel's goes with the next probe.
func TestProbeEndsWithTheDaemon(t *testing.T) {
	w := newWorld(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command(self, probeCommand, w.dir)
	daemon.Stderr = os.Stderr
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	defer daemon.Wait()
	defer daemon.Process.Kill()
	var probed []unix.PollFd
	defer func() {
		for _, p := range probed {
			_ = unix.PidfdSendSignal(int(p.Fd), unix.SIGKILL, nil, 0)
			unix.Close(int(p.Fd))
		}
	}()
	end := time.Now().Add(10 * time.Second)
	for held := false; !held; { // until a probe is caught that has not ended by itself, with a helper
		if time.Now().After(end) {
			t.Fatal("no probe was caught")
		}
		for _, p := range probed {
			unix.Close(int(p.Fd))
		}
		probed = probed[:0]
		for _, pid := range named(t, "uml_dir="+filepath.Join(w.dir, "uml-probe")) {
			if fd, err := unix.PidfdOpen(pid, 0); err == nil {
				probed = append(probed, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
			}
		}
		if len(probed) < 2 || unix.PidfdSendSignal(int(probed[0].Fd), unix.SIGSTOP, nil, 0) != nil {
			continue
		}
		n, err := unix.Poll(probed[:1], 0)
		held = n == 0 && err == nil
	}
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	ended := func(p *unix.PollFd) {
		t.Helper()
		for {
			n, err := unix.Poll([]unix.PollFd{*p}, int(max(0, time.Until(end)/time.Millisecond)))
			if n == 1 {
				return
			}
			if err != unix.EINTR {
				t.Fatalf("a process of the probe goes on: %v", err)
			}
		}
	}
	ended(&probed[0])
	if r := uml.New(uml.Config{RunDir: w.dir}).Probe(within(t, time.Minute)); !r.Available {
		t.Error(r.Reason)
	}
	for i := range probed {
		ended(&probed[i])
	}
}

// named lists the processes that have an argument.
func named(t *testing.T, argument string) (pids []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if strings.Contains("\x00"+string(cmdline), "\x00"+argument+"\x00") {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}
