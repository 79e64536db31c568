package place

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	for _, err := range []error{os.MkdirAll(filepath.Join(dir, "real/below"), 0o755), os.Symlink("real", filepath.Join(dir, "link"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]bool{"real/below": true, "link": false, "link/below": false, "none": false} {
		f, err := Open(filepath.Join(dir, path), unix.O_DIRECTORY)
		if (err == nil) != want {
			t.Errorf("%s: %v", path, err)
		}
		if err == nil {
			f.Close()
		}
	}
}

func TestOpenTree(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("cloning a mount takes root")
	}
	dir := t.TempDir()
	granted := filepath.Join(dir, "granted")
	for _, err := range []error{os.Mkdir(granted, 0o755), os.WriteFile(filepath.Join(dir, "secret"), nil, 0o644), os.Symlink("granted", filepath.Join(dir, "link"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if tree, err := OpenTree(filepath.Join(dir, "link"), false); err == nil {
		tree.Close()
		t.Error("a link was followed")
	}
	for _, readOnly := range []bool{false, true} {
		tree, err := OpenTree(granted, readOnly)
		if err != nil {
			t.Fatal(err)
		}
		path := fmt.Sprintf("/proc/self/fd/%d", tree.Fd())
		err = os.WriteFile(path+"/f", nil, 0o644)
		if readOnly != errors.Is(err, unix.EROFS) || !readOnly && err != nil {
			t.Errorf("read-only %v: %v", readOnly, err)
		}
		if _, err := os.Stat(path + "/../secret"); err == nil {
			t.Error("\"..\" leads out of it")
		}
		tree.Close()
	}
}
