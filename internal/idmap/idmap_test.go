package idmap

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestBindShiftsOwnersBothWays(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	source, target := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "old"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Bind(source, target, 700000, 65536, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	if got := owner(t, filepath.Join(target, "old")); got != 700000 {
		t.Errorf("root's file shows as %d, want 700000", got)
	}
	if err := os.Mkdir(filepath.Join(target, "old.d"), 0o755); err == nil {
		t.Error("host root, which has no id in the mapping, could create a file")
	}
	if err := os.Chown(filepath.Join(target, "old"), 700005, 700005); err != nil {
		t.Fatal(err)
	}
	if got := owner(t, filepath.Join(source, "old")); got != 5 {
		t.Errorf("file of 700005 is stored as %d, want 5", got)
	}
}

func TestNamespaceLeavesNoProcess(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mapping foreign ids needs root")
	}
	ns, err := New(700000, 65536)
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil); err != syscall.ECHILD {
		t.Errorf("a child is left: pid %d, %v", pid, err)
	}
}

func owner(t *testing.T, path string) uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Uid
}

func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		ns, err := New(700000, 65536)
		if err != nil {
			b.Fatal(err)
		}
		ns.Close()
	}
}
