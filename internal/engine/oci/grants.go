package oci

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/idmap"
	"github.com/croftproject/croft/internal/place"
)

// grantDirectory mounts the directory at point, with owners shifted into the guest's ids: its root is the directory's
// root, and owners beyond the guest's range are nobody to it. Mounts below the directory are not part of the grant.
func grantDirectory(shift *idmap.Namespace, g api.Grant, point string) error {
	dir, err := place.Open(g.Source, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	attrs := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
	if g.ReadOnly {
		attrs |= unix.MOUNT_ATTR_RDONLY
	}
	clone, err := shift.Clone(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), attrs)
	if err != nil {
		return err
	}
	defer clone.Close()
	if err := os.Mkdir(point, 0o755); err != nil {
		return err
	}
	return clone.Attach(point)
}

// grantDevice makes a node of the device at point that belongs to the guest's root. The host's own node, with its owner
// and mode, is not touched.
func grantDevice(g api.Grant, point string, ids engine.IDRange) (Device, error) {
	node, err := place.Open(g.Source, 0)
	if err != nil {
		return Device{}, err
	}
	defer node.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(node.Fd()), &st); err != nil {
		return Device{}, err
	}
	device := Device{Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)), ReadOnly: g.ReadOnly}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		device.Type = "c"
	case unix.S_IFBLK:
		device.Type = "b"
	default:
		return Device{}, errors.New("is no device")
	}
	mode := uint32(0o600)
	if g.ReadOnly {
		mode = 0o400
	}
	if err := unix.Mknod(point, st.Mode&unix.S_IFMT|mode, int(st.Rdev)); err != nil {
		return Device{}, fmt.Errorf("make node: %w", err)
	}
	if err := os.Chown(point, int(ids.Base), int(ids.Base)); err != nil {
		return Device{}, err
	}
	return device, bindNode(point)
}

// bindNode mounts a node upon itself, usable where the file system around it has no devices (/run, as a rule).
func bindNode(point string) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, point, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone mount of node: %w", err)
	}
	defer unix.Close(fd)
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC,
		Attr_clr: unix.MOUNT_ATTR_NODEV,
	})
	if err != nil {
		return fmt.Errorf("allow devices at node: %w", err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, point, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount node: %w", err)
	}
	return nil
}
