package qemu_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A daemon that is killed while it probes leaves no QEMU behind.
func TestProbeEndsWithTheDaemon(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // it runs as nobody
		t.Fatal(err)
	}
	binary, said := filepath.Join(dir, "qemu"), filepath.Join(dir, "pid")
	if err := unix.Mkfifo(said, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(said, 0o666); err != nil { // past the umask
		t.Fatal(err)
	}
	// Open for both, so that it needs no writer yet, and reads can be given up.
	pipe, err := os.OpenFile(said, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	if err := pipe.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(binary, fmt.Appendf(nil, "#!/bin/sh\necho $$ > %s\nexec tail -f /dev/null\n", said), 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command(self, "probe", binary)
	daemon.Stderr = os.Stderr
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	defer daemon.Wait()
	defer daemon.Process.Kill()
	line, err := bufio.NewReader(pipe).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(line)))
	if err != nil {
		t.Fatal(err)
	}
	probed, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(probed)
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	ended := []unix.PollFd{{Fd: int32(probed), Events: unix.POLLIN}}
	for end := time.Now().Add(20 * time.Second); ; {
		n, err := unix.Poll(ended, int(max(0, time.Until(end)/time.Millisecond)))
		if n == 1 {
			break
		}
		if err != unix.EINTR {
			_ = unix.PidfdSendSignal(probed, unix.SIGKILL, nil, 0)
			t.Fatalf("the probed process goes on: %v", err)
		}
	}
}
