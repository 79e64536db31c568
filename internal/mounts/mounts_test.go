package mounts

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRemoveAllSparesWhatIsMounted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts")
	}
	data, dir := t.TempDir(), filepath.Join(t.TempDir(), "a b")
	kept := filepath.Join(data, "kept")
	inner := filepath.Join(dir, "grant", "0")
	for _, err := range []error{os.WriteFile(kept, nil, 0o600), os.MkdirAll(inner, 0o700), unix.Mount(data, inner, "", unix.MS_BIND, "")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { unix.Unmount(inner, unix.MNT_DETACH) })
	if at, err := Below(dir); err != nil || len(at) != 1 || at[0] != inner {
		t.Errorf("mounted: %v, %v", at, err)
	}
	for range 2 {
		if err := RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("what was mounted: %v", err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory: %v", err)
	}
}

// What is mounted after the list of mounts was read, as by a program that still runs.
func TestRemovalStaysOnItsMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts")
	}
	dir, data := t.TempDir(), t.TempDir()
	inner, kept := filepath.Join(dir, "tree", "dev", "shm"), filepath.Join(data, "kept")
	for _, err := range []error{os.MkdirAll(inner, 0o700), os.WriteFile(kept, nil, 0o600), unix.Mount(data, inner, "", unix.MS_BIND, "")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { unix.Unmount(inner, unix.MNT_DETACH) })
	parent, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer parent.Close()
	if err := removeAt(int(parent.Fd()), "tree", filepath.Join(dir, "tree")); err == nil {
		t.Error("a directory with a mount in it was removed")
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("what was mounted: %v", err)
	}
}

func TestRemoveAllOfAnything(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	outside := filepath.Join(t.TempDir(), "outside")
	for _, err := range []error{os.Mkdir(outside, 0o700), os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o700), os.Symlink(outside, filepath.Join(dir, "a/link"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3000 {
		if err := os.WriteFile(filepath.Join(dir, "a", strconv.Itoa(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory: %v", err)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("what a link led to: %v", err)
	}
	if err := RemoveAll(filepath.Join(dir, "a", "b")); err != nil {
		t.Errorf("what is not there: %v", err)
	}
}
