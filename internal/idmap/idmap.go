// Package idmap shifts the owners that a directory tree shows, without changing the tree: an idmapped mount
// (mount_setattr(2), MOUNT_ATTR_IDMAP; Linux 5.12). What is owned by id n on disk appears as base+n, and what base+n
// writes is stored as n.
package idmap

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Namespace is a user namespace that exists only to describe a mapping: id n in it is host id base+n.
type Namespace struct{ file *os.File }

// New makes the user namespace of a range. Close frees it; mounts that use it keep what they need.
//
// A user namespace needs a process to be born in it. The child is traced, so that it stops before its first
// instruction: it never runs, and is killed once the namespace is held by its file descriptor.
func New(base, size uint32) (*Namespace, error) {
	// ptrace belongs to the thread that started the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(base), Size: int(size)}}
	child, err := os.StartProcess("/proc/self/exe", []string{"croft-idmap"}, &os.ProcAttr{
		Env: []string{},
		Sys: &syscall.SysProcAttr{
			Cloneflags:                 unix.CLONE_NEWUSER,
			UidMappings:                maps,
			GidMappings:                maps,
			GidMappingsEnableSetgroups: true,
			Ptrace:                     true,
			Pdeathsig:                  syscall.SIGKILL,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("make user namespace of ids %d+%d: %w", base, size, err)
	}
	defer func() {
		_ = child.Kill()
		_, _ = child.Wait()
	}()
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", child.Pid))
	if err != nil {
		return nil, fmt.Errorf("hold user namespace of ids %d+%d: %w", base, size, err)
	}
	return &Namespace{file: file}, nil
}

// Close lets go of the namespace. It is idempotent.
func (n *Namespace) Close() error {
	if err := n.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Tree is a detached copy of a mount with its owners shifted; it vanishes with Close unless it was attached.
type Tree struct{ fd int }

// Clone makes a detached, idmapped copy of the mount at path, from path downwards. attrs are further attributes
// (unix.MOUNT_ATTR_*) to set. The error wraps ErrUnsupported where the file system can't be idmapped.
func (n *Namespace) Clone(path string, attrs uint64) (*Tree, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("clone mount at %s: %w", path, err)
	}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set:  attrs | unix.MOUNT_ATTR_IDMAP,
		Userns_fd: uint64(n.file.Fd()),
	})
	if err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			err = fmt.Errorf("%w: the file system of %s has no idmapped mounts; put it on ext4, xfs or btrfs", ErrUnsupported, path)
		}
		return nil, fmt.Errorf("shift owners of %s: %w", path, err)
	}
	return &Tree{fd: fd}, nil
}

// ErrUnsupported says that a file system can't be mounted with shifted owners.
var ErrUnsupported = errors.New("not supported")

// Attach mounts the tree at path.
func (t *Tree) Attach(path string) error {
	err := unix.MoveMount(t.fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("attach mount at %s: %w", path, err)
	}
	return nil
}

// File hands the tree over as an open file, for a child process to attach in a mount namespace of its own.
func (t *Tree) File() *os.File { return os.NewFile(uintptr(t.fd), "tree") }

// Close lets go of the tree; attached, it stays mounted.
func (t *Tree) Close() error { return unix.Close(t.fd) }

// Bind mounts the tree of source at target with its owners shifted by base.
func Bind(source, target string, base, size uint32, attrs uint64) error {
	ns, err := New(base, size)
	if err != nil {
		return err
	}
	defer ns.Close()
	tree, err := ns.Clone(source, attrs)
	if err != nil {
		return err
	}
	defer tree.Close()
	return tree.Attach(target)
}
