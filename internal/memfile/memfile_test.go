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

func TestKept(t *testing.T) {
	refused := errors.New("not now")
	answers := []error{refused, nil}
	kept := memfile.Kept{Name: "kept", Content: func() ([]byte, error) {
		err := answers[0]
		answers = answers[1:]
		return []byte("x"), err
	}}
	if _, err := kept.File(); !errors.Is(err, refused) {
		t.Errorf("%v, want %v", err, refused)
	}
	first, err := kept.File()
	if err != nil {
		t.Fatalf("a failure is kept: %v", err)
	}
	defer first.Close()
	if second, err := kept.File(); err != nil || second != first {
		t.Errorf("another file, or %v", err)
	}
}
