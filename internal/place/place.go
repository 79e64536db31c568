// Package place opens the places of the host that servers are granted, for keeping: what is opened is what was granted,
// whatever becomes of the path meanwhile.
package place

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Open opens a path as a place (open(2), O_PATH), with further flags. No part of it may be a symbolic link: a guest that
// writes in one granted directory could lead the next grant, below it, to wherever it likes.
func Open(path string, flags int) (*os.File, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags:   uint64(unix.O_PATH | unix.O_CLOEXEC | flags),
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ELOOP) {
		return nil, errors.New("the path has a symbolic link in it; name the real path")
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// OpenTree opens a directory and what is mounted below it as a mount of its own, attached nowhere: no ".." leads out of
// it, and it can be read-only where the directory isn't. It needs CAP_SYS_ADMIN, and is gone when the last process has
// closed it.
func OpenTree(path string, readOnly bool) (*os.File, error) {
	dir, err := Open(path, unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("open directory %s: %w", path, err)
	}
	defer dir.Close()
	fd, err := unix.OpenTree(int(dir.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return nil, fmt.Errorf("open tree %s: %w", path, err)
	}
	tree := os.NewFile(uintptr(fd), path)
	attrs := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if readOnly {
		attrs.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attrs); err != nil {
		return nil, errors.Join(fmt.Errorf("restrict tree %s: %w", path, err), tree.Close())
	}
	return tree, nil
}
