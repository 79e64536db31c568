package uml

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
)

// memoryMargin is what a tmpfs has beyond the guest's memory: the kernel tries out a file before it makes its own.
const memoryMargin = 4 * api.MiB

// memoryFiles is how many inodes it has. The kernel needs two, one of them the directory.
const memoryFiles = 64

// mountMemory mounts a tmpfs for a guest's memory at dir, which must not be there; only the guest's user enters it. The
// size is no reservation: a page is taken when it is first written, and charged to the cgroup of who wrote it (tmpfs(5)).
// noexec must not be set: the kernel's processes execute from this memory.
func mountMemory(dir string, memory api.Bytes, user uint32) error {
	if err := os.Mkdir(dir, 0); err != nil {
		return err
	}
	options := fmt.Sprintf("mode=0700,uid=%d,gid=%d,size=%d,nr_inodes=%d", user, user, memory+memoryMargin, memoryFiles)
	if err := unix.Mount("croft-memory", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return &os.PathError{Op: "mount", Path: dir, Err: err}
	}
	return nil
}

// unmountMemory undoes mountMemory, from whatever point it came to. What processes still have open goes with them.
func unmountMemory(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // EINVAL: nothing is mounted there
		return &os.PathError{Op: "unmount", Path: dir, Err: err}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
