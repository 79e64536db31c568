package mconsole

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// guest is a fake guest's kernel: it answers each command with the packets that its script has for it.
func guest(t *testing.T, script map[string][][]byte) *Client {
	t.Helper()
	base, err := os.MkdirTemp("/tmp", "c") // a socket's path is short (unix(7))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	dir, local := filepath.Join(base, "u"), filepath.Join(base, "l")
	for _, d := range []string{dir, local} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: filepath.Join(dir, "mconsole")})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFromUnix(buf)
			if err != nil {
				return
			}
			if n < header || binary.NativeEndian.Uint32(buf) != magic || binary.NativeEndian.Uint32(buf[4:]) != version ||
				int(binary.NativeEndian.Uint32(buf[8:])) != n-header {
				t.Errorf("malformed request %x", buf[:n])
			}
			for _, packet := range script[string(buf[header:n])] {
				conn.WriteToUnix(packet, from)
			}
		}
	}()
	c := New(dir, local, uint32(os.Getuid()))
	c.Timeout = 100 * time.Millisecond
	return c
}

func packet(failed, more uint32, data string) []byte {
	p := make([]byte, header)
	binary.NativeEndian.PutUint32(p[0:], failed)
	binary.NativeEndian.PutUint32(p[4:], more)
	binary.NativeEndian.PutUint32(p[8:], uint32(len(data)))
	return append(p, data...)
}

func TestAnswers(t *testing.T) {
	part := strings.Repeat("x", maxData)
	liar := packet(0, 0, "short")
	binary.NativeEndian.PutUint32(liar[8:], 400)
	endless := make([][]byte, 0, maxReply/maxData+2)
	for range cap(endless) {
		endless = append(endless, packet(0, 1, part))
	}
	c := guest(t, map[string][][]byte{
		"one":     {packet(0, 0, "Linux\x00")},
		"many":    {packet(0, 1, part), packet(0, 1, "y"), packet(0, 0, "\x00")},
		"no":      {packet(1, 0, "Unknown command\x00")},
		"errno":   {packet(0xffffffea, 0, "Bad value\x00")},
		"short":   {[]byte("x")},
		"empty":   {{}},
		"liar":    {liar},
		"half":    {packet(0, 1, "the rest never comes")},
		"endless": endless,
		"stop":    {packet(1, 0, "Already stopped\x00")},
		"go":      {packet(1, 0, "Not stopped\x00")},
	})
	for _, test := range []struct {
		command, want string
		err           func(error) bool
	}{
		{"one", "Linux", nil},
		{"many", part + "y", nil},
		{"no", "", func(err error) bool { r := new(Refused); return errors.As(err, &r) && r.Reason == "Unknown command" }},
		{"errno", "", func(err error) bool { r := new(Refused); return errors.As(err, &r) && r.Reason == "Bad value" }},
		{"short", "", func(err error) bool { return errors.Is(err, errPacket) }},
		{"empty", "", func(err error) bool { return errors.Is(err, errPacket) }},
		{"liar", "", func(err error) bool { return errors.Is(err, errPacket) }},
		{"half", "", func(err error) bool { return errors.Is(err, ErrSilent) }},
		{"silence", "", func(err error) bool { return errors.Is(err, ErrSilent) }},
		{"endless", "", func(err error) bool { return errors.Is(err, errPacket) || errors.Is(err, ErrSilent) }},
		{strings.Repeat("x", maxData), "", func(err error) bool { return err != nil }},
	} {
		t.Run(test.command[:min(8, len(test.command))], func(t *testing.T) {
			got, err := c.Do(context.Background(), test.command)
			if test.err == nil && err != nil || test.err != nil && !test.err(err) || got != test.want {
				t.Errorf("got %.20q, %v; want %.20q", got, err, test.want)
			}
		})
	}
	if err := c.Stop(context.Background()); err != nil {
		t.Errorf("stopping a stopped guest: %v", err)
	}
	if err := c.Go(context.Background()); err != nil {
		t.Errorf("continuing a running guest: %v", err)
	}
	if left, _ := os.ReadDir(c.Local); len(left) > 0 {
		t.Errorf("sockets are left: %v", left)
	}
}

func TestCancel(t *testing.T) {
	c := guest(t, nil)
	c.Timeout = time.Hour
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.Do(ctx, "version"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A guest's process may put anything in place of its socket.
func TestTraps(t *testing.T) {
	for _, test := range []struct {
		name string
		set  func(path string) error
		want func(error) bool
	}{
		{"nothing", func(string) error { return nil }, func(err error) bool { return errors.Is(err, fs.ErrNotExist) }},
		{"link", func(p string) error { return os.Symlink("/run/systemd/notify", p) }, func(err error) bool { return err != nil }},
		{"file", func(p string) error { return os.WriteFile(p, nil, 0o666) }, func(err error) bool { return err != nil }},
		{"directory", func(p string) error { return os.Mkdir(p, 0o777) }, func(err error) bool { return err != nil }},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := New(t.TempDir(), t.TempDir(), uint32(os.Getuid()))
			if err := test.set(filepath.Join(c.Dir, c.Name)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Do(context.Background(), "version"); !test.want(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(packet(0, 0, "Linux\x00"))
	f.Add(packet(1, 1, ""))
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decode(data)
		if err != nil {
			return
		}
		if len(r.data) > maxData || !bytes.Contains(data, r.data) {
			t.Errorf("%x decoded to %+v", data, r)
		}
	})
}
