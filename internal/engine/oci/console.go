package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/memfile"
)

// freeConsole takes a system's console from its first process, which the runtime makes the terminal's controlling
// process. An init such as busybox's or sysvinit's never gives it up, and then the session of a getty can't have it: no
// job control, no Ctrl-C (ioctl_tty(2), TIOCSCTTY: taking it needs CAP_SYS_ADMIN on the host). A process of the host that
// takes it, and ends, leaves it free for the first who opens it.
//
// The guest may have ended meanwhile, and its process id gone to a process of the host, whose terminal must not be taken:
// so ours says whether the id is the guest's, and it is held by a pidfd while it is looked at.
func freeConsole(ctx context.Context, pid int, ours func(pid int) bool) error {
	held, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("hold process %d: %w", pid, err)
	}
	defer unix.Close(held)
	if !ours(pid) {
		return nil
	}
	controlled, err := hasTerminal(pid)
	if err != nil || !controlled {
		return err
	}
	console, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/0", pid), os.O_RDWR|unix.O_NOCTTY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // it has ended already
	}
	if err != nil {
		return fmt.Errorf("open the console: %w", err)
	}
	defer console.Close()
	if err := unix.PidfdSendSignal(held, 0, nil, 0); errors.Is(err, unix.ESRCH) {
		return nil // what was opened may be another's
	} else if err != nil {
		return fmt.Errorf("look at process %d: %w", pid, err)
	}
	taker, err := takerProgram.File()
	if err != nil {
		return fmt.Errorf("free the console: %w", err)
	}
	c := exec.CommandContext(ctx, "/proc/self/fd/3")
	c.ExtraFiles = []*os.File{taker}
	c.Stdin = console
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := c.Run(); err != nil {
		if ctx.Err() != nil { // it was killed for that
			err = ctx.Err()
		}
		return fmt.Errorf("free the console: %w", err)
	}
	return nil
}

// takerProgram is what takes a console, and ends.
var takerProgram = memfile.Kept{Name: "croft-console", Content: func() ([]byte, error) { return exitProgram(0) }}

// hasTerminal tells whether a process has a controlling terminal: field tty_nr of proc(5), stat.
func hasTerminal(pid int) (bool, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	return len(fields) > 4 && !bytes.Equal(fields[4], []byte("0")), nil
}
