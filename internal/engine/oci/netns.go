package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/memfile"
)

// A guest's power over its network (addresses, firewall, raw sockets, low ports, its own /sys) hangs on who owns the
// network namespace: the user namespace in which it was made (network_namespaces(7), ioctl_ns(2)). So the namespace is
// made inside a user namespace with the server's ids, and the guest joins both. One that the host's own user namespace
// owns is refused: the runtime could not enter it again for an exec, as it enters the user namespace first and has no
// power over the host's from there.

// makeNetNS makes a user namespace with these ids, a network namespace that it owns, and binds the latter at path. One
// that is bound there already is left alone.
func makeNetNS(path string, ids engine.IDRange) error {
	if isNSFS(path) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make network namespace: %w", err)
	}
	child, err := newHolder(ids)
	if err != nil {
		return fmt.Errorf("make network namespace of ids %d+%d: %w", ids.Base, ids.Size, err)
	}
	defer child.end()
	file, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return fmt.Errorf("make network namespace: %w", err)
	}
	file.Close()
	if err := unix.Mount(fmt.Sprintf("/proc/%d/ns/net", child.Pid), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind network namespace at %s: %w", path, err)
	}
	return nil
}

// holder is a process that is stopped in namespaces of its own.
type holder struct {
	*os.Process
	ended bool
}

// holderProgram is what a holder runs.
var holderProgram = memfile.Kept{Name: "croft-netns", Content: namespacesProgram}

// newHolder starts a process in a user namespace with these ids, and in a network namespace that it owns. A program of
// some instructions enters them: were it this process that forks into them, the kernel would mark all of its memory for
// copying, which costs more than the namespaces. The child is traced, so that it is known where it stands; ptrace(2)
// belongs to the thread that started it, which the caller keeps until end.
func newHolder(ids engine.IDRange) (*holder, error) {
	program, err := holderProgram.File()
	if err != nil {
		return nil, err
	}
	goruntime.LockOSThread()
	child, err := os.StartProcess("/proc/self/fd/3", []string{"croft-netns"}, &os.ProcAttr{
		Env:   []string{},
		Files: []*os.File{nil, nil, nil, program},
		Sys:   &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		goruntime.UnlockOSThread()
		return nil, err
	}
	h := &holder{Process: child}
	if err := h.enter(ids); err != nil {
		h.end()
		return nil, err
	}
	return h, nil
}

// enter sees the program through. It stops when it was executed, in its user namespace, and in its network namespace;
// what that shows belongs to the server's root only if its ids were there before.
func (h *holder) enter(ids engine.IDRange) error {
	if err := h.stopped(unix.SIGTRAP); err != nil {
		return err
	}
	if err := h.goOn(); err != nil {
		return err
	}
	shift := fmt.Appendf(nil, "0 %d %d", ids.Base, ids.Size)
	for _, name := range []string{"uid_map", "gid_map"} {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", h.Pid, name), shift, 0); err != nil {
			return err
		}
	}
	return h.goOn()
}

// goOn lets the process go on until it stops by itself.
func (h *holder) goOn() error {
	if err := unix.PtraceCont(h.Pid, 0); err != nil {
		return err
	}
	return h.stopped(unix.SIGSTOP)
}

// stopped waits until a signal stops the process.
func (h *holder) stopped(by unix.Signal) error {
	for {
		var ws unix.WaitStatus
		_, err := unix.Wait4(h.Pid, &ws, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case ws.Stopped() && ws.StopSignal() == by:
			return nil
		}
		h.ended = !ws.Stopped()
		if ws.Exited() && ws.ExitStatus() != 0 {
			return unix.Errno(ws.ExitStatus())
		}
		return fmt.Errorf("the process that makes it did not stop as it should (wait status %#x)", uint32(ws))
	}
}

// end ends the process; what is bound of its namespaces stays.
func (h *holder) end() {
	if h.ended {
		_ = h.Release() // its id may be another's by now
	} else {
		_ = h.Kill()
		_, _ = h.Wait()
	}
	goruntime.UnlockOSThread()
}

func isNSFS(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && int64(st.Type) == unix.NSFS_MAGIC
}

// ownerOf opens the user namespace that owns a network namespace, which must not be this process's own.
func ownerOf(netns string) (*os.File, error) {
	file, err := os.Open(netns)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	defer file.Close()
	fd, err := unix.IoctlRetInt(int(file.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return nil, fmt.Errorf("find the owner of network namespace %s: %w", netns, err)
	}
	owner := os.NewFile(uintptr(fd), "user namespace")
	theirs, err := owner.Stat()
	if err == nil {
		var ours os.FileInfo
		if ours, err = os.Stat("/proc/self/ns/user"); err == nil && os.SameFile(theirs, ours) {
			err = errors.New("it belongs to the host; it must have been made by MakeNetNS")
		}
	}
	if err != nil {
		owner.Close()
		return nil, fmt.Errorf("owner of network namespace %s: %w", netns, err)
	}
	return owner, nil
}

// within runs f on a thread that is in the network namespace.
func within(netns string, f func() error) error {
	there, err := os.Open(netns)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer there.Close()
	// The thread goes back. It must not be left to end with its goroutine: were it the process's first, it would stay,
	// and with it what the whole process shows as its namespace (/proc/self/ns/net).
	goruntime.LockOSThread()
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		goruntime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer here.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		goruntime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", netns, err)
	}
	err = f()
	if back := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("leave network namespace %s: %w", netns, back)) // locked: nothing else runs on it
	}
	goruntime.UnlockOSThread()
	return err
}

// idSpan is the guest's ids as the host counts them, as ping_group_range takes them (icmp(7)).
func idSpan(ids engine.IDRange) string {
	return fmt.Sprintf("%d %d", ids.Base, uint64(ids.Base)+uint64(ids.Size)-1)
}

// openNetwork lets the guest's users take low ports and ping, whoever owns the namespace.
func openNetwork(m *engine.Machine) error {
	for name, value := range netSysctls(m.IDs) {
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("set %s in the guest's network: %w", name, err)
		}
	}
	return nil
}
