package memfile_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/memfile"
)

func TestNew(t *testing.T) {
	program, err := os.ReadFile("/bin/echo")
	if err != nil {
		t.Fatal(err)
	}
	f, err := memfile.New("echo", program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	path := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	if out, err := exec.Command(path, "hello").Output(); err != nil || string(out) != "hello\n" {
		t.Errorf("executed: %q, %v", out, err)
	}
	if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("written to: %v, want EPERM", err)
	}
	if err := f.Truncate(0); !errors.Is(err, unix.EPERM) {
		t.Errorf("cut: %v, want EPERM", err)
	}
	if err := f.Truncate(int64(len(program)) + 1); !errors.Is(err, unix.EPERM) {
		t.Errorf("lengthened: %v, want EPERM", err)
	}
}
