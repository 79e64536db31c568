package qmp

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// A real QEMU without a machine: it speaks QMP on the socket that it is given.
func TestRealQEMU(t *testing.T) {
	binary, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	dir, err := os.MkdirTemp("/tmp", "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "qmp")
	// QEMU listens before it forks to the background: -daemonize is the sign that the socket is there.
	cmd := exec.CommandContext(t.Context(), binary, "-S", "-M", "none", "-nodefaults", "-display", "none",
		"-qmp", "unix:"+socket+",server=on,wait=off", "-daemonize", "-pidfile", filepath.Join(dir, "pid"))
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	events := NewEvents(10)
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(ctx, conn, events)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var status struct{ Status string }
	if err := c.Execute(ctx, "query-status", nil, &status); err != nil || status.Status != "prelaunch" {
		t.Errorf("status %q, %v", status.Status, err)
	}
	if err := c.Execute(ctx, "no-such-command", nil, nil); !IsClass(err, "CommandNotFound") {
		t.Errorf("got %v", err)
	}
	greeting := c.Greeting()
	t.Log("QEMU", greeting.String())
	if err := c.Execute(ctx, "quit", nil, nil); err != nil {
		t.Errorf("quit: %v", err)
	}
	if event, err := events.Next(ctx); err != nil || event.Name != "SHUTDOWN" {
		t.Errorf("event %+v, %v", event, err)
	}
	if _, err := events.Next(ctx); !errors.Is(err, ErrLost) {
		t.Errorf("after the end: %v", err)
	}
}
