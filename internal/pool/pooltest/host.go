package pooltest

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// as runs f on a thread with the file system ids of a user, as a process of that user's would access files. The thread
// ends with it.
func as(t *testing.T, id int, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread is not used again
		_ = unix.Setfsgid(id)
		_ = unix.Setfsuid(id)
		f()
	}()
	<-done
}

func wantOwner(t *testing.T, path string, want uint32) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	if st.Uid != want || st.Gid != want {
		t.Errorf("%s belongs to %d:%d, want %d", path, st.Uid, st.Gid, want)
	}
}

// wantNoMounts checks that nothing is mounted beside root, and that no loop device is left of its volume.
func wantNoMounts(t *testing.T, root string) {
	t.Helper()
	volume := filepath.Dir(root)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, volume+"/") {
			t.Errorf("still mounted: %s", line)
		}
	}
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	must(t, err)
	for _, path := range loops {
		if text, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(text), volume+"/") {
			t.Errorf("still attached: %s is %s", path, text)
		}
	}
}

// listing describes every file of a tree.
func listing(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %o %d:%d %d %d.%d\n", path, st.Mode, st.Uid, st.Gid, st.Size, st.Mtim.Sec, st.Mtim.Nsec)
		return nil
	}))
	return b.String()
}

// usage is the room that the files of a directory take on its file system, not of those mounted in it.
func usage(t *testing.T, dir string) int64 {
	t.Helper()
	var top unix.Stat_t
	must(t, unix.Lstat(dir, &top))
	total := int64(0)
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if st.Dev != top.Dev {
			return fs.SkipDir
		}
		total += st.Blocks * 512
		return nil
	}))
	return total
}

// fill writes a file of a size, and has it reach the disk.
func fill(dir string, size int64) error {
	f, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		return err
	}
	defer f.Close()
	chunk := make([]byte, 1<<20)
	for i := range chunk {
		chunk[i] = byte(i)
	}
	for written := int64(0); written < size; written += int64(len(chunk)) {
		if _, err := f.Write(chunk); err != nil {
			return err
		}
	}
	return f.Sync()
}

// capable tells whether this process has a capability (capabilities(7)).
func capable(t *testing.T, capability int) bool {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	must(t, unix.Capget(&header, &data[0]))
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}
