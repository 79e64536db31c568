// Package sandbox runs a parser of untrusted input as a process that can do nothing else.
//
// The process is the program itself, started anew in namespaces of its own: it has no network, sees no other process,
// and is root only over a range of ids that belongs to nobody. Its root directory holds the work directory, the host's
// programs read-only, and nothing else; owners in the work directory are shifted, so that what it gives to id n is
// stored as n. Landlock, seccomp and resource limits come on top, so that one hole is not enough.
//
// The parent calls Run; the child, first thing, Enter.
package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/cgroup"
	"github.com/croftproject/croft/internal/idmap"
)

// Work is where the child finds its work directory.
const Work = "/work"

// The child's ids: a range that no server is given, as those begin far below.
const (
	firstID = 1_900_000_000
	idCount = 65536
)

// The child's file descriptors: the shifted mount of its work directory, and the program that it is started from, as
// the way to its path may be closed to the child's ids.
const (
	treeFD    = 3
	programFD = 4
)

// Command is what to run.
type Command struct {
	Executable string
	Args       []string
	Dir        string    // the work directory; all that the child can write to
	FileLimit  api.Bytes // largest file that it may write
	Timeout    time.Duration
	Groups     Groups // nil: the child stays in the caller's control group
}

// ErrTimeout says that the child was ended because it took too long.
var ErrTimeout = errors.New("took too long")

// Run runs the child to its end and returns what it wrote to its standard output.
func Run(ctx context.Context, c Command) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, ErrTimeout)
	defer cancel()
	ns, err := idmap.New(firstID, idCount)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	tree, err := ns.Clone(c.Dir, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, err
	}
	file := tree.File()
	defer file.Close()

	program, err := os.Open(c.Executable)
	if err != nil {
		return nil, err
	}
	defer program.Close()

	maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: firstID, Size: idCount}}
	cmd := exec.CommandContext(ctx, fmt.Sprintf("/proc/self/fd/%d", programFD), c.Args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", limitVariable + "=" + strconv.FormatInt(int64(c.FileLimit), 10)}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{file, program}
	cmd.WaitDelay = time.Second
	// The child waits for the end of its input, so that it begins with its limits around it.
	begin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	var stdout, stderr limitedBuffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
			unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UidMappings:                maps,
		GidMappings:                maps,
		GidMappingsEnableSetgroups: true,
		Credential:                 &syscall.Credential{Uid: 0, Gid: 0},
		Setsid:                     true,
		Pdeathsig:                  unix.SIGKILL, // with it everything in its process namespace
	}
	// The signal is sent when the thread that forked ends (PR_SET_PDEATHSIG(2const)): it stays until the child has ended.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start sandbox: %w", err)
	}
	free, enclosed := Enclose(c.Groups, cmd.Process.Pid, cgroup.Limits{Shares: Shares, MemoryLimit: addressSpace, PIDs: mostTasks})
	defer free()
	if enclosed != nil {
		cancel()
	} else {
		enclosed = begin.Close()
	}
	if err := cmd.Wait(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		if enclosed != nil {
			err = enclosed
		}
		return nil, fmt.Errorf("sandboxed %s: %w: %s", c.Args[0], err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// limitedBuffer keeps the beginning of what is written to it: the writer is not trusted to stop.
type limitedBuffer struct{ bytes.Buffer }

const outputLimit = 1 << 20

func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.Buffer.Write(p[:min(len(p), outputLimit-b.Len())])
	return len(p), nil
}
