//go:build cgo

package sandbox

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// showThreads makes the list of this process's threads visible, and nothing else of /proc. In a program with cgo a system
// call reaches all threads through libpsx, which finds them there; go-landlock lets it. free is an empty directory.
func showThreads(root, free string) error {
	threads := fmt.Sprintf("/%d/task", os.Getpid())
	if err := unix.Mount("proc", free, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount proc (which a program built without cgo does without): %w", err)
	}
	if err := os.MkdirAll(root+"/proc"+threads, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(free+threads, root+"/proc"+threads, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("show threads: %w", err)
	}
	return unix.Unmount(free, 0)
}
