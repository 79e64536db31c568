package uml_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/cgroup"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/uml"
	"github.com/croftproject/croft/internal/keeper"
)

// TestMain makes the test binary the keeper and the program that confines guests, as the program croft is.
func TestMain(m *testing.M) {
	var err error
	switch {
	case len(os.Args) > 3 && os.Args[1] == "keeper":
		err = keeper.Run(context.Background(), os.Args[3])
	case len(os.Args) > 1 && os.Args[1] == uml.ConfineCommand:
		err = uml.Confine(os.Args[2:])
	case len(os.Args) > 2 && os.Args[1] == probeCommand:
		err = probeOn(os.Args[2])
	case len(os.Args) > 1 && os.Args[1] == attemptCommand:
		attempt()
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// ready is what the test image prints once its userspace is up.
const ready = "USERSPACE-IS-UP"

// world is a host for guests: a keeper, control groups, and an image.
type world struct {
	dir    string // passable for guests' users
	keeper *keeper.Client
	groups *cgroup.Tree
	image  string

	mu  sync.Mutex
	uid uint32
}

func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("guests are started by root only")
	}
	if _, err := os.Stat("/usr/bin/linux.uml"); err != nil {
		t.Skip("no User-Mode Linux kernel (package user-mode-linux): ", err)
	}
	w := &world{uid: 700000}
	var err error
	if w.dir, err = os.MkdirTemp("/tmp", "c"); err != nil { // short, for sockets
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(w.dir) })
	if err := os.Chmod(w.dir, 0o711); err != nil {
		t.Fatal(err)
	}
	parent := "croft-test-" + strings.ToLower(rand.Text()[:8])
	if w.groups, err = cgroup.New(parent); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeParent(t, parent) })
	if w.keeper, err = keeper.Connect(t.Context(), filepath.Join(w.dir, "k"), keeper.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := w.keeper.Shutdown(ctx); err != nil {
			t.Errorf("end the keeper: %v", err)
		}
		w.keeper.Close()
	})
	w.image = makeImage(t, w.dir)
	return w
}

func removeParent(t testing.TB, parent string) {
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*/" + parent)
	for _, dir := range append(dirs, "/sys/fs/cgroup/"+parent) {
		if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
			t.Errorf("group is left: %v", err)
		}
	}
}

func (w *world) engine(testing.TB) engine.Engine {
	return uml.New(uml.Config{Keeper: w.keeper, Groups: w.groups, OOMKilled: func(path string) bool {
		u, err := w.groups.Usage(filepath.Base(path))
		return err == nil && u.OOMKills > 0
	}})
}

// machine makes a machine with a copy of the image, and a user of its own.
func (w *world) machine(t testing.TB, id string) *engine.Machine {
	t.Helper()
	w.mu.Lock()
	w.uid += 65536
	uid := w.uid
	w.mu.Unlock()
	m := &engine.Machine{
		ID: id, Name: "web", Host: "web", Tenant: "acme",
		Dir: filepath.Join(w.dir, id+".d"), RunDir: filepath.Join(w.dir, id),
		Spec: &api.ServerSpec{
			Model: api.ModelPara, Engine: "auto", Image: "micro",
			CPU: api.CPU{Count: 1, Cap: 1000}, Memory: api.Memory{Limit: 64 * api.MiB, Reservation: 64 * api.MiB}, PIDs: 4096,
		},
		Cgroup: w.groups.Path(id),
		IDs:    engine.IDRange{Base: uid, Size: 65536},
		Boot:   engine.Boot{Ready: ready},
	}
	for _, dir := range []string{m.Dir, m.RunDir} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	disk := filepath.Join(w.dir, id+".img")
	command(t, "cp", "--sparse=always", w.image, disk)
	m.Root = engine.Root{Path: disk, Format: "raw", Size: 16 * api.MiB}
	limit := m.Spec.Memory.Limit + w.engine(t).Overhead(m.Spec)
	if err := w.groups.Set(id, cgroup.Limits{Shares: 100, MemoryLimit: limit, PIDs: 4096}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.groups.Remove(context.Background(), id); err != nil {
			t.Error(err)
		}
		os.RemoveAll(disk)
	})
	return m
}

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

const initScript = `#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
exec /bin/init
`

const inittab = `::sysinit:/bin/echo ` + ready + `
::respawn:-/bin/sh
::ctrlaltdel:/bin/poweroff -f
`

// makeImage makes a small ext4 file system of busybox: a shell on the console, and Ctrl-Alt-Del powers off.
func makeImage(t testing.TB, dir string) string {
	t.Helper()
	root := filepath.Join(dir, "root")
	for _, d := range []string{"bin", "sbin", "dev", "proc", "sys", "mnt", "etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("no busybox to make an image of (package busybox-static): ", err)
	}
	write := func(name string, content []byte, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(root, name), content, mode); err != nil {
			t.Fatal(err)
		}
	}
	write("bin/busybox", busybox, 0o755)
	write("sbin/init", []byte(initScript), 0o755)
	write("etc/inittab", []byte(inittab), 0o644)
	for _, name := range strings.Fields("sh mount umount ls cat echo ip nc sha256sum poweroff reboot head init dd uname hostname awk grep nslookup ps free stty sleep udhcpc touch test dmesg") {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(dir, "image")
	command(t, "mkfs.ext4", "-q", "-F", "-d", root, image, "16M")
	return image
}

// shell is a guest's console.
type shell struct {
	t    testing.TB
	conn io.ReadWriteCloser
	seen []byte
}

// shell attaches to a guest's console. Reads fail when ctx is over.
func (w *world) shell(ctx context.Context, t testing.TB, m *engine.Machine) *shell {
	t.Helper()
	conn, err := w.keeper.Attach(ctx, m.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	t.Cleanup(func() { conn.Close() })
	return &shell{t: t, conn: conn}
}

// wait reads until a text shows and returns what came before.
func (s *shell) wait(text string) string {
	s.t.Helper()
	buf := make([]byte, 4096)
	for {
		if before, after, ok := bytes.Cut(s.seen, []byte(text)); ok {
			s.seen = after
			return string(before)
		}
		n, err := s.conn.Read(buf)
		s.seen = append(s.seen, buf[:n]...)
		if err != nil {
			s.t.Fatalf("console ended (%v) before %q; it showed:\n%s", err, text, s.seen)
		}
	}
}

// run runs a line in the guest's shell and returns what it prints. The marks are written so that the echo of the line
// does not hold them.
func (s *shell) run(line string) string {
	s.t.Helper()
	if _, err := io.WriteString(s.conn, "echo ==BE''GIN; "+line+"; echo ==E''ND\n"); err != nil {
		s.t.Fatal(err)
	}
	s.wait("==BEGIN")
	return strings.TrimSpace(strings.ReplaceAll(s.wait("==END"), "\r", ""))
}
