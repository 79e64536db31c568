package mounts

import (
	"os"
	"path/filepath"
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
