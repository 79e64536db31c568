package build

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/cgroup"
	"github.com/croftproject/croft/internal/image/sandbox"
)

// programLimits are more than installing Debian takes, on a host with many processors too: the compressor of its initial
// RAM file system has a thread for each. Its share of the CPUs is what servers leave.
var programLimits = cgroup.Limits{Shares: sandbox.Shares, MemoryLimit: 4 * api.GiB, PIDs: 2048}

// heldBack becomes the program that its arguments name once a line is written to it, and ends where its parent does
// before. Programs look for themselves in /proc, so that it must be that of their namespace. It is a constant: what
// comes from elsewhere are arguments.
const heldBack = `read go && mount -t proc -o nosuid,nodev,noexec proc /proc && exec "$0" "$@"`

// outputDelay is how long output is waited for once the program has ended (os/exec, Cmd.WaitDelay).
const outputDelay = 10 * time.Second

// Run runs a program that a recipe needs; its output is part of the error. Whatever it starts ends with it, and whatever
// it mounts is seen by nobody else and gone after it: it has process and mount namespaces of its own, and a control
// group. All of it ends with the caller too.
func (o Options) Run(ctx context.Context, dir, program string, args ...string) ([]byte, error) {
	path, err := lookPath(program)
	if err != nil {
		return nil, err
	}
	running, end := context.WithCancel(ctx)
	defer end()
	cmd := exec.CommandContext(running, "/bin/sh", append([]string{"-c", heldBack, path}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH="+searchPath, "DEBIAN_FRONTEND=noninteractive")
	cmd.WaitDelay = outputDelay
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   unix.CLONE_NEWPID,
		Unshareflags: unix.CLONE_NEWNS, // by this flag of the two, package syscall makes the mounts private
		Setsid:       true,
		Pdeathsig:    unix.SIGKILL, // with it everything in its process namespace
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	begin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	// The signal is sent when the thread that forked ends (PR_SET_PDEATHSIG(2const)): it stays until the child has ended.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	free, failed := sandbox.Enclose(o.Groups, cmd.Process.Pid, programLimits)
	defer free()
	if failed == nil {
		failed = goAhead(begin)
	}
	if failed != nil {
		end()
	}
	if err := cmd.Wait(); err != nil {
		if failed != nil {
			err = failed
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, fmt.Errorf("%s: %w: %s", program, err, lastLines(stderr.String(), 5))
	}
	return stdout.Bytes(), nil
}

// goAhead lets a program begin that was held back. It finds its input empty.
func goAhead(begin io.WriteCloser) error {
	if _, err := begin.Write([]byte("\n")); err != nil {
		return err
	}
	return begin.Close()
}
