// Package world gives a test a host of its own on this machine: a network namespace that is the host's, another that is
// the outside, a daemon process with directories of its own, a client of it, and the proof that nothing is left of it.
package world

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
)

// Tenant that tests use.
const Tenant = "default"

// Patience is how long a test waits for an event that must come. The lab guest (scripts/lab.sh) is emulated, and its guests
// with kernels of their own are again.
var Patience = 2 * time.Minute

func init() {
	if os.Getenv("CROFT_LAB") != "" {
		Patience = 6 * time.Minute
	}
}

// World is a host of a test's own.
type World struct {
	*client.Client
	StateDir string
	RunDir   string
	NetNS    string     // path of the namespace that is the host's
	Outside  netip.Addr // address of the machine outside; the host's uplink leads to it

	product string // the binary under test
	binary  string // what is started as the daemon
	args    []string
	env     []string
	mu      sync.Mutex
	daemon  *exec.Cmd
	ended   chan struct{}
	log     bytes.Buffer
}

// Options of a world.
type Options struct {
	Env  []string // for the daemon, after those of the test
	Args []string // for `croft daemon`, after the directories
	// Binary is the program to start as the daemon; empty: the product, which CROFT_BIN names.
	Binary string
	// Base is the directory that the state directory is made below; empty: /var/tmp.
	Base string
}

// cache is where downloaded packages are kept, for all tests, so that they are fetched once.
const cache = "/var/tmp/croft-test-cache"

// Binary is the product, or the reason to skip.
func Binary(t testing.TB) string {
	t.Helper()
	binary := os.Getenv("CROFT_BIN")
	if binary == "" {
		t.Skip("CROFT_BIN does not name the program: run `make test`")
	}
	return binary
}

// New makes a host and starts its daemon. It ends with the test, and everything of it is removed then; a guest, mount,
// namespace, device or group that is left fails the test.
func New(t testing.TB, o Options) *World {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes namespaces, control groups and devices")
	}
	product := Binary(t)
	if o.Binary == "" {
		o.Binary = product
	}
	// Paths of sockets are short, so the directories are, too.
	base := o.Base
	if base == "" {
		base = "/var/tmp"
	}
	dir, err := os.MkdirTemp(base, "croft-w")
	if err != nil {
		t.Fatal(err)
	}
	w := &World{StateDir: filepath.Join(dir, "state"), RunDir: "/run/" + filepath.Base(dir), product: product, binary: o.Binary, args: o.Args, env: o.Env}
	must(t, errors.Join(os.MkdirAll(w.StateDir, 0o711), os.Chmod(dir, 0o711), os.MkdirAll(cache, 0o711)))
	must(t, os.Symlink(cache, filepath.Join(w.StateDir, "cache")))
	t.Cleanup(func() {
		if err := errors.Join(os.RemoveAll(dir), os.RemoveAll(w.RunDir)); err != nil {
			t.Errorf("remove the host's directories: %v", err)
		}
	})
	w.makeNet(t)
	if w.Client, err = client.New(client.Options{Address: w.Socket()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.end(t) })
	w.Start(t)
	return w
}

// Socket is the path of the daemon's socket.
func (w *World) Socket() string { return filepath.Join(w.RunDir, "croft.sock") }

// Start starts the daemon, and returns when it answers.
func (w *World) Start(t testing.TB) {
	t.Helper()
	args := []string{"daemon", "--state-dir", w.StateDir, "--run-dir", w.RunDir, "--netns", w.NetNS, "--host", "test"}
	c := exec.Command(w.binary, append(args, w.args...)...)
	c.Env = append(os.Environ(), w.env...)
	ready := newWatcher(`"msg":"ready"`)
	c.Stdout, c.Stderr = io.MultiWriter(w, ready), io.MultiWriter(w, ready)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { c.Wait(); close(ended) }()
	w.mu.Lock()
	w.daemon, w.ended = c, ended
	w.mu.Unlock()
	select {
	case <-ready.seen:
	case <-ended:
		t.Fatalf("the daemon ended: %s\n%s", c.ProcessState, w.Log())
	case <-time.After(Patience):
		t.Fatalf("the daemon did not become ready:\n%s", w.Log())
	}
}

// Use has the next Start start another binary as the daemon, with more environment; an empty one is the product.
func (w *World) Use(binary string, env ...string) {
	w.binary, w.env = binary, env
	if binary == "" {
		w.binary = w.product
	}
}

// Kill ends the daemon as a crash would.
func (w *World) Kill(t testing.TB) { w.signal(t, unix.SIGKILL) }

// Stop ends the daemon in order.
func (w *World) Stop(t testing.TB) { w.signal(t, unix.SIGTERM) }

func (w *World) signal(t testing.TB, s unix.Signal) {
	t.Helper()
	w.mu.Lock()
	c, ended := w.daemon, w.ended
	w.daemon = nil
	w.mu.Unlock()
	if c == nil {
		return
	}
	select {
	case <-ended:
		return
	default:
	}
	if err := c.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal the daemon: %v", err)
	}
	select {
	case <-ended:
	case <-time.After(Patience):
		c.Process.Kill()
		t.Errorf("the daemon did not end on %s:\n%s", s, w.Log())
	}
}

// Died is closed when the daemon has ended.
func (w *World) Died() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ended
}

// PID of the daemon.
func (w *World) PID() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.daemon.Process.Pid
}

// Write takes the daemon's log.
func (w *World) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(p)
}

// Log is what the daemon has logged.
func (w *World) Log() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.String()
}

// end deletes every server, ends the daemon and its keeper, and fails the test where anything is left.
func (w *World) end(t testing.TB) {
	w.mu.Lock()
	alive := w.daemon != nil
	w.mu.Unlock()
	select {
	case <-w.Died():
		alive = false
	default:
	}
	if !alive {
		w.Use("")
		w.Start(t)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	w.DeleteAll(t, ctx)
	for _, l := range w.promises() {
		t.Errorf("left in the ledgers: %s", l)
	}
	if t.Failed() {
		t.Logf("log of the daemon:\n%s", tail(w.Log(), 16<<10))
	}
	w.Stop(t)
	if out, err := exec.Command(w.product, "keeper", "--shutdown", "--dir", filepath.Join(w.RunDir, "keeper")).CombinedOutput(); err != nil {
		t.Errorf("end the keeper: %v\n%s", err, out)
	}
	w.NoTrace(t)
	w.DropGroups()
}

// DeleteAll deletes every server, and waits until they are gone.
func (w *World) DeleteAll(t testing.TB, ctx context.Context) {
	var gone sync.WaitGroup
	for s, err := range w.Servers("").List(ctx, client.ListOptions{}) {
		if err != nil {
			t.Errorf("list what is to be deleted: %v", err)
			break
		}
		gone.Go(func() {
			if err := w.Delete(ctx, s.Tenant, s.Name); err != nil {
				t.Errorf("delete %s/%s: %v", s.Tenant, s.Name, err)
			}
		})
	}
	gone.Wait()
}

// Delete deletes a server, hard, and waits until it is gone. It may be on its way already.
func (w *World) Delete(ctx context.Context, tenant, name string) error {
	servers := w.Servers(tenant)
	s, err := servers.Get(ctx, name)
	if client.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	asked := false
	for c, err := range servers.Watch(ctx, client.ListOptions{}, 0) { // from before the deletion, so that its end is seen
		if err != nil {
			return err
		}
		if !asked {
			asked = true
			if _, err := servers.Delete(ctx, s.ID, client.DeleteOptions{Force: true}); client.IsNotFound(err) {
				return nil
			} else if err != nil {
				return err
			}
		}
		if c.Object.ID == s.ID && c.Type == api.ChangeDelete {
			return nil
		}
	}
	return ctx.Err()
}

// watcher closes seen when a text was written to it.
type watcher struct {
	text []byte
	have []byte
	once sync.Once
	seen chan struct{}
}

func newWatcher(text string) *watcher { return &watcher{text: []byte(text), seen: make(chan struct{})} }

func (w *watcher) Write(p []byte) (int, error) {
	w.have = append(w.have, p...)
	if bytes.Contains(w.have, w.text) {
		w.once.Do(func() { close(w.seen) })
	}
	if len(w.have) > 1<<16 {
		w.have = w.have[len(w.have)-len(w.text):]
	}
	return len(p), nil
}
