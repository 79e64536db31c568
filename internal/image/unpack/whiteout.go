package unpack

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Names by which a layer takes away what lower layers hold (OCI image-spec, layer.md).
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// whiteout obeys one entry of a layer that removes something from the directory parent.
func whiteout(parent int, base string) error {
	if base == whiteoutOpaque {
		return emptyAt(parent)
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		return bad("it removes nothing that can be named")
	}
	return removeAt(parent, name)
}

// removeAt removes what an opened directory holds under a name, with all that is below it.
func removeAt(parent int, name string) error {
	err := unix.Unlinkat(parent, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	dir, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := emptyAt(dir); err != nil {
		return err
	}
	return unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
}

// emptyAt removes everything in a directory.
func emptyAt(dir int) error {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	listing := os.NewFile(uintptr(fd), "directory")
	defer listing.Close()
	names, err := listing.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := removeAt(dir, name); err != nil {
			return err
		}
	}
	return nil
}
