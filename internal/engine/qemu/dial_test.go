package qemu

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What lies in the place of QEMU's socket is not connected to, unless it is a socket of QEMU's user.
func TestDialTrustsNobody(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	real := filepath.Join(dir, "real")
	server, err := net.Listen("unix", real)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	us := uint32(os.Geteuid())
	conn, err := dial(t.Context(), real, us)
	if err != nil {
		t.Fatalf("a socket of its user: %v", err)
	}
	_ = conn.Close()

	link, fifo, below := filepath.Join(dir, "link"), filepath.Join(dir, "fifo"), filepath.Join(dir, "below")
	for _, err := range []error{os.Symlink(real, link), unix.Mkfifo(fifo, 0o600), os.Symlink(dir, below)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		path  string
		owner uint32
	}{
		"link": {link, us}, "pipe": {fifo, us}, "linked directory": {filepath.Join(below, "real"), us}, "another's": {real, us + 1},
	} {
		if conn, err := dial(t.Context(), test.path, test.owner); err == nil {
			_ = conn.Close()
			t.Errorf("%s: connected", name)
		}
	}
}
