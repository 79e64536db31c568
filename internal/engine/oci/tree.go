package oci

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// tree reads a guest's root without ever leaving it: the guest writes there, so a path in it may be a link to anywhere.
// Links are resolved as the guest would resolve them (openat2(2), RESOLVE_IN_ROOT).
type tree struct {
	path string
	dir  *os.File
}

func openTree(path string) (*tree, error) {
	dir, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open root of guest: %w", err)
	}
	return &tree{path: path, dir: dir}, nil
}

func (t *tree) close() { t.dir.Close() }

// find opens name as a place only (O_PATH): a device or FIFO that the guest put there is not touched.
func (t *tree) find(name string) (*os.File, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(int(t.dir.Fd()), name, how)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue // the tree was changed meanwhile
		}
		if err != nil {
			return nil, &os.PathError{Op: "open in guest", Path: name, Err: err}
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// read returns at most limit bytes of a regular file.
func (t *tree) read(name string, limit int64) ([]byte, error) {
	place, err := t.find(name)
	if err != nil {
		return nil, err
	}
	defer place.Close()
	return readPlace(place, limit)
}

func readPlace(place *os.File, limit int64) ([]byte, error) {
	info, err := place.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s in the guest is no regular file", place.Name())
	}
	file, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", place.Fd()))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, limit))
}

// real is the path of a place in the guest, with links resolved.
func (t *tree) real(place *os.File) string {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", place.Fd()))
	if err != nil {
		return place.Name()
	}
	root, err := filepath.EvalSymlinks(t.path)
	if err != nil {
		root = t.path
	}
	return strings.TrimPrefix(path, strings.TrimSuffix(root, "/"))
}
