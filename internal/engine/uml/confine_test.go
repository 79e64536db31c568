package uml_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/engine/uml"
)

// attemptCommand has the test binary try what a guest that took over its kernel's process would.
const attemptCommand = "attempt"

func attempt() {
	for name, family := range map[string]uintptr{"vsock": unix.AF_VSOCK, "alg": unix.AF_ALG, "netlink": unix.AF_NETLINK, "inet": 1<<32 | unix.AF_INET} {
		if _, _, errno := unix.RawSyscall(unix.SYS_SOCKET, family, unix.SOCK_DGRAM, 0); errno != unix.EAFNOSUPPORT {
			fmt.Printf("socket %s: %v\n", name, errno)
		}
	}
	if _, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0); err != nil {
		fmt.Printf("unix socket: %v\n", err)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_CLONE3, 0, 0, 0); errno != unix.ENOSYS {
		fmt.Printf("clone3: %v\n", errno)
	}
	// Flags that no thread group could be made with: without the filter they are EINVAL.
	if _, _, errno := unix.RawSyscall(unix.SYS_CLONE, unix.CLONE_NEWUSER|unix.CLONE_THREAD, 0, 0); errno != unix.EPERM {
		fmt.Printf("clone with a user namespace: %v\n", errno)
	}
	fmt.Print("done")
}

// The guest's process can make no namespace and no socket but a unix one.
func TestConfinedCalls(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("becoming the guest's user takes root")
	}
	dir, err := os.MkdirTemp("/tmp", "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "program") // where the guest's user can reach it
	command(t, "cp", "/proc/"+fmt.Sprint(os.Getpid())+"/exe", program)
	limits, err := json.Marshal(uml.Confinement{
		Program: program, Args: []string{program, attemptCommand}, Read: []string{program}, Write: []string{"/dev/null"},
		ReadBelow: []string{"/lib", "/lib64", "/usr/lib", "/sys", "/proc"},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(program, uml.ConfineCommand, string(limits))
	c.Dir = "/"
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 700001, Gid: 700001}}
	if out, err := c.CombinedOutput(); err != nil || string(out) != "done" {
		t.Errorf("%v: %s", err, out)
	}
}
