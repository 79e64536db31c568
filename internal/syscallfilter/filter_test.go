package syscallfilter

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if len(os.Args) < 3 || os.Args[1] != "child" {
		os.Exit(m.Run())
	}
	if os.Args[3] == "filtered" {
		if err := Enter([]string{"unshare"}, unix.AF_UNIX); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	fmt.Print(attempts[os.Args[2]]())
	os.Exit(0)
}

// attempts are made by a child, which prints what comes of them.
var attempts = map[string]func() any{
	"clone3":         func() any { return try(unix.SYS_CLONE3, 0, 0) },
	"user namespace": func() any { return fork(unix.CLONE_NEWUSER) },
	"net namespace":  func() any { return fork(unix.CLONE_NEWNET | unix.CLONE_NEWUSER) },
	"plain clone":    func() any { return fork(0) },
	"by name":        func() any { return try(unix.SYS_UNSHARE, unix.CLONE_FS, 0) },
	"unix socket":    func() any { return try(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM) },
	"netlink socket": func() any { return try(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW) },
	"vsock, high bits": func() any {
		return try(unix.SYS_SOCKET, 1<<32|unix.AF_VSOCK, unix.SOCK_STREAM)
	},
	"foreign ABI": func() any { return foreign() },
	"x32":         func() any { return try(foreignNumbers|unix.SYS_GETPID, 0, 0) },
}

func try(number, a, b uintptr) syscall.Errno {
	_, _, errno := unix.RawSyscall(number, a, b, 0)
	return errno
}

func fork(flags uintptr) error {
	c := exec.Command("/bin/true")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	return c.Run()
}

// foreign asks for the process id as a 32-bit program does: mov eax, 20; int 0x80; ret.
func foreign() error {
	code := []byte{0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3}
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	copy(page, code)
	entry := unsafe.Pointer(&page[0])
	function := &entry
	(*(*func())(unsafe.Pointer(&function)))()
	return nil
}

// child makes an attempt, and returns what it printed, or the signal that ended it.
func child(t *testing.T, attempt, how string) string {
	t.Helper()
	out, err := exec.Command("/proc/self/exe", "child", attempt, how).Output()
	if err == nil {
		return string(out)
	}
	if exit, ok := err.(*exec.ExitError); ok && exit.Sys().(syscall.WaitStatus).Signaled() {
		return exit.Sys().(syscall.WaitStatus).Signal().String()
	}
	t.Fatalf("%s: %v: %s", attempt, err, out)
	return ""
}

func TestFilter(t *testing.T) {
	for attempt, want := range map[string]string{
		"clone3":           unix.ENOSYS.Error(),
		"user namespace":   "operation not permitted",
		"net namespace":    "operation not permitted",
		"plain clone":      "<nil>",
		"by name":          unix.EPERM.Error(),
		"unix socket":      "errno 0",
		"netlink socket":   unix.EAFNOSUPPORT.Error(),
		"vsock, high bits": unix.EAFNOSUPPORT.Error(),
	} {
		if got := child(t, attempt, "filtered"); !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", attempt, got, want)
		}
	}
}

// A call by another ABI has other numbers: it must not pass as one that the list doesn't name.
func TestForeignABI(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the code that makes a foreign call is that of x86")
	}
	if got := child(t, "x32", "filtered"); got != "bad system call" {
		t.Errorf("x32: %s", got)
	}
	if got := child(t, "foreign ABI", "free"); got != "<nil>" {
		t.Skip("the kernel runs no 32-bit programs (CONFIG_IA32_EMULATION): ", got)
	}
	if got := child(t, "foreign ABI", "filtered"); got != "bad system call" {
		t.Errorf("int 0x80: %s", got)
	}
}
