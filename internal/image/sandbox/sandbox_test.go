package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "probe":
			os.Exit(child(probe))
		case "parent":
			os.Exit(parent(os.Args[2], os.Args[3]))
		case "hang":
			os.Exit(child(func() any { return unix.Pause() }))
		case "large":
			os.Exit(child(func() any { return os.WriteFile(Work+"/large", make([]byte, 3<<20), 0o600) == nil }))
		}
	}
	os.Exit(m.Run())
}

// child confines itself, and reports what f found.
func child(f func() any) int {
	if err := Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := json.NewEncoder(os.Stdout).Encode(f()); err != nil {
		return 1
	}
	return 0
}

// findings are what the child could and could not do.
type findings struct {
	Root    []string
	Allowed []string // acts that should have failed, and didn't
	Refused []string // acts that should have succeeded, and didn't
	PID     int
	Devices int
}

func probe() any {
	f := findings{PID: os.Getpid()}
	entries, _ := os.ReadDir("/")
	for _, e := range entries {
		f.Root = append(f.Root, e.Name())
	}
	links, _ := net.Interfaces()
	f.Devices = len(links)
	forbidden := map[string]func() error{
		"read the host's passwords": func() error { _, err := os.ReadFile("/etc/shadow"); return err },
		"read processes":            func() error { _, err := os.ReadDir("/proc"); return err },
		"write to /":                func() error { return os.WriteFile("/new", nil, 0o600) },
		"write to /usr":             func() error { return os.WriteFile("/usr/new", nil, 0o600) },
		"make a device node":        func() error { return unix.Mknod(Work+"/null", unix.S_IFCHR|0o666, 1<<8|3) },
		"mount":                     func() error { return unix.Mount("x", Work, "tmpfs", 0, "") },
		"unmount":                   func() error { return unix.Unmount(Work, unix.MNT_DETACH) },
		"open a socket":             func() error { _, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); return err },
		"make a user namespace":     func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
		"make one by clone": func() error {
			cmd := exec.Command("qemu-img", "--version")
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}
			return cmd.Run()
		},
		"trace":       func() error { return unix.PtraceAttach(1) },
		"change root": func() error { return unix.Chroot(Work) },
		"open by handle": func() error {
			h := unix.NewFileHandle(1, make([]byte, 8))
			_, err := unix.OpenByHandleAt(unix.AT_FDCWD, h, 0)
			return err
		},
	}
	for name, act := range forbidden {
		if act() == nil {
			f.Allowed = append(f.Allowed, name)
		}
	}
	needed := map[string]func() error{
		"read the input":   func() error { _, err := os.ReadFile(Work + "/input"); return err },
		"write a file":     func() error { return os.WriteFile(Work+"/output", []byte("x"), 0o600) },
		"give a file away": func() error { return os.Chown(Work+"/output", 42, 43) },
		"set setuid":       func() error { return unix.Chmod(Work+"/output", 0o4711) },
		"rename across": func() error {
			return errors.Join(os.Mkdir(Work+"/d", 0o700), os.Rename(Work+"/output", Work+"/d/output"))
		},
		"run a program": func() error {
			cmd := exec.Command("qemu-img", "--version")
			cmd.Stdin = strings.NewReader("")
			_, err := cmd.CombinedOutput()
			return err
		},
	}
	for _, name := range []string{"read the input", "write a file", "give a file away", "set setuid", "rename across", "run a program"} {
		if err := needed[name](); err != nil {
			f.Refused = append(f.Refused, fmt.Sprint(name, ": ", err))
		}
	}
	return f
}

func run(t *testing.T, ctx context.Context, command string, timeout time.Duration) (string, []byte, error) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("the sandbox's mounts need root")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "input"), []byte("in"), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := Run(ctx, Command{Executable: self, Args: []string{command}, Dir: dir, FileLimit: 2 * api.MiB, Timeout: timeout})
	return dir, out, err
}

func TestChildCanDoItsJobAndNothingElse(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("qemu-img is not installed")
	}
	dir, out, err := run(t, t.Context(), "probe", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	var f findings
	if err := json.Unmarshal(out, &f); err != nil {
		t.Fatal(err)
	}
	if len(f.Allowed) > 0 {
		t.Errorf("the child could %q", f.Allowed)
	}
	if len(f.Refused) > 0 {
		t.Errorf("the child could not %q", f.Refused)
	}
	if f.PID != 1 || f.Devices > 1 {
		t.Errorf("pid %d, %d network devices: the child is not alone", f.PID, f.Devices)
	}
	for _, name := range []string{"home", "root", "old", "proc", "sys", "dev", "tmp", "var"} {
		if slices.Contains(f.Root, name) {
			t.Errorf("the child sees /%s", name)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "d/output"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Uid != 42 || st.Gid != 43 || st.Mode&0o7777 != 0o4711 {
		t.Errorf("the child's file belongs to %d:%d with mode %o, want 42:43 and 4711", st.Uid, st.Gid, st.Mode&0o7777)
	}
}

func TestChildIsEndedInTime(t *testing.T) {
	if _, _, err := run(t, t.Context(), "hang", 300*time.Millisecond); !errors.Is(err, ErrTimeout) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, _, err := run(t, ctx, "hang", time.Minute); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestChildWritesNoLargerFile(t *testing.T) {
	_, out, err := run(t, t.Context(), "large", time.Minute)
	if err == nil && strings.TrimSpace(string(out)) != "false" {
		t.Errorf("the child wrote a file above its limit: %s", out)
	}
}
