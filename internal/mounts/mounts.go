// Package mounts removes directories in which something may be mounted: what is mounted is let go of, never deleted.
package mounts

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Below lists what is mounted at or below a directory, the deepest first (proc_pid_mountinfo(5)).
func Below(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	dir = filepath.Clean(dir)
	var found []string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		at := unescape(fields[4])
		if at == dir || strings.HasPrefix(at, dir+"/") {
			found = append(found, at)
		}
	}
	slices.Reverse(found) // mounts are listed in the order in which they were made
	return found, lines.Err()
}

// unescape reads the octal escapes that the kernel writes for white space and backslashes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// RemoveAll unmounts everything at or below a directory, and then removes the directory. It removes nothing while
// anything is mounted there: what is mounted can be somebody's data. A directory that is not there is no error.
func RemoveAll(dir string) error {
	at, err := Below(dir)
	if err != nil {
		return err
	}
	for _, m := range at {
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	if at, err = Below(dir); err != nil {
		return err
	}
	if len(at) > 0 {
		return fmt.Errorf("remove %s: %s is still mounted; unmount it first", dir, at[0])
	}
	return os.RemoveAll(dir)
}
