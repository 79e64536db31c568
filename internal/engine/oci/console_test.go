package oci

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A process that has taken over the id of a guest's keeps its terminal.
func TestForeignConsoleIsLeft(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("taking a terminal takes root")
	}
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	cat := exec.Command("/bin/cat")
	cat.Stdin = terminal
	cat.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cat.Process.Kill(); _ = cat.Wait() }()
	for _, ours := range []bool{false, true} {
		if err := freeConsole(t.Context(), cat.Process.Pid, func(int) bool { return ours }); err != nil {
			t.Fatal(err)
		}
		if has, err := hasTerminal(cat.Process.Pid); err != nil || has == ours {
			t.Errorf("ours %v: it has a terminal: %v, %v", ours, has, err)
		}
	}
}
