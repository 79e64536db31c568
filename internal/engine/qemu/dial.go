package qemu

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/engine/qemu/qmp"
)

// dialQMP connects to one of QEMU's monitors; see dial.
func dialQMP(ctx context.Context, path string, owner uint32, events *qmp.Events) (*qmp.Client, error) {
	conn, err := dial(ctx, path, owner)
	if err != nil {
		return nil, fmt.Errorf("connect to QEMU: %w", err)
	}
	return qmp.New(ctx, conn, events)
}

// dial connects to a socket in a directory that QEMU can write to. A QEMU that its guest has taken over could put there a
// link to a socket of the host's, which would take the daemon for whoever may speak to it. So no link is followed, and
// what is connected to is the very socket whose owner was checked.
func dial(ctx context.Context, path string, owner uint32) (net.Conn, error) {
	fd, err := openSocket(path, owner)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return (&net.Dialer{}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
}

// openSocket opens a socket of owner's as a place (open(2), O_PATH).
func openSocket(path string, owner uint32) (int, error) {
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, filepath.Base(path), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		unix.Close(fd)
		return -1, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFSOCK || stat.Uid != owner {
		unix.Close(fd)
		return -1, fmt.Errorf("%s is not a socket of user %d", path, owner)
	}
	return fd, nil
}
