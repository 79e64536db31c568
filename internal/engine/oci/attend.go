package oci

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// AttendCommand is the word that the program calls Attend for.
const AttendCommand = "attend-oci"

// notAttended is Attend's exit code where the runtime started no process. What tells it from a process's own code is
// that there is no file with its pid.
const notAttended = 255

// Attend runs the runtime's exec command, detached, and waits for the process that it leaves, whose exit code is the
// result. Attached, the runtime would hold the process's output by pipes of its own and wait for their end, which
// children that the process left behind may put off for ever. args are the file that the runtime writes the pid to, the
// runtime and its arguments.
func Attend(args []string) int {
	code, err := attend(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "attend:", err)
		return notAttended
	}
	return code
}

func attend(args []string) (int, error) {
	if len(args) < 2 {
		return 0, errors.New("a pid file and a command are expected")
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("become a subreaper: %w", err)
	}
	start := exec.Command(args[1], args[2:]...)
	start.Stdin, start.Stdout, start.Stderr = os.Stdin, os.Stdout, os.Stderr
	start.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := start.Run(); errors.As(err, new(*exec.ExitError)) {
		return notAttended, nil // the runtime's log tells why
	} else if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(args[0])
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, err
	}
	for {
		var status unix.WaitStatus
		switch _, err := unix.Wait4(pid, &status, 0, nil); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for process %d: %w", pid, err)
		case status.Signaled():
			return 128 + int(status.Signal()), nil
		case status.Exited():
			return status.ExitStatus(), nil
		}
	}
}
