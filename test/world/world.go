// Package world gives a test a host of its own on this machine: a network namespace that is the host's, another that is
// the outside, a daemon process with directories of its own, a client of it, and the proof that nothing is left of it.
package world

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
)

// Tenant that tests use.
const Tenant = "default"

// Patience is how long a test waits for an event that must come. The lab guest (scripts/lab.sh) is emulated, and its guests
// with kernels of their own are again.
var Patience = 2 * time.Minute

// emulated says that the host's KVM is emulated too, as in the lab guest.
var emulated = os.Getenv("CROFT_LAB") != ""

func init() {
	if emulated {
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

// Create creates a server, and returns at once.
func (w *World) Create(t testing.TB, name string, spec api.ServerSpec) *api.Server {
	t.Helper()
	s, err := w.Servers(Tenant).Create(t.Context(), client.Create[api.ServerSpec]{Name: name, Spec: spec})
	if err != nil {
		t.Fatalf("create %s: %v", name, err)
	}
	return s
}

// Run creates a server and waits until its userspace is up.
func (w *World) Run(t testing.TB, name string, spec api.ServerSpec) *api.Server {
	t.Helper()
	w.Create(t, name, spec)
	return w.Ready(t, name)
}

// Ready waits until a server's userspace is up.
func (w *World) Ready(t testing.TB, name string) *api.Server {
	t.Helper()
	return w.ReadyOf(t, Tenant, name)
}

// ReadyOf is Ready for a server of any tenant.
func (w *World) ReadyOf(t testing.TB, tenant, name string) *api.Server {
	t.Helper()
	up := func(s *api.Server) bool { return s.Status.Phase == api.PhaseRunning && !s.Status.Ready.IsZero() }
	if emulated {
		// Emulated KVM hangs a guest in its firmware now and then, before it has printed a word. It is reset, once.
		before := w.consoleOf(tenant, name)
		s, ok := w.follow(t, tenant, name, Patience/2, up)
		if ok {
			return s
		}
		if s != nil && s.Status.Phase == api.PhaseRunning && s.Status.Accelerator == "kvm" && w.consoleOf(tenant, name) == before {
			t.Logf("%s hangs in its firmware under emulated KVM: reset", name)
			if _, err := w.Power(t.Context(), tenant, name, api.PowerRestart, true); err != nil {
				t.Fatal(err)
			}
		}
	}
	return w.waitOf(t, tenant, name, "ready", up)
}

// Phase waits until a server is in a phase.
func (w *World) Phase(t testing.TB, name string, p api.Phase) *api.Server {
	t.Helper()
	return w.Wait(t, name, string(p), func(s *api.Server) bool { return s.Status.Phase == p })
}

// Wait follows a server until ok. A server that failed, where that is not what is waited for, fails the test at once.
func (w *World) Wait(t testing.TB, name, what string, ok func(*api.Server) bool) *api.Server {
	t.Helper()
	return w.waitOf(t, Tenant, name, what, ok)
}

func (w *World) waitOf(t testing.TB, tenant, name, what string, ok func(*api.Server) bool) *api.Server {
	t.Helper()
	last, there := w.follow(t, tenant, name, Patience, ok)
	if !there {
		t.Fatalf("%s never came to be %s: %s\nconsole:\n%s", name, what, describe(last), tail(w.consoleOf(tenant, name), 4096))
	}
	return last
}

// follow returns the server as it was last, and whether it came to be ok in the time.
func (w *World) follow(t testing.TB, tenant, name string, limit time.Duration, ok func(*api.Server) bool) (last *api.Server, there bool) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for c, err := range w.Servers(tenant).Watch(ctx, client.ListOptions{}, 0) {
		if err != nil {
			break
		}
		if c.Object.Name != name {
			continue
		}
		s := c.Object
		last = &s
		if ok(last) {
			return last, true
		}
		if last.Status.Phase == api.PhaseFailed && last.Status.Observed >= last.Revision {
			break
		}
	}
	return last, false
}

func describe(s *api.Server) string {
	if s == nil {
		return "it was not seen"
	}
	return fmt.Sprintf("it is %s: %s (exit %+v)", s.Status.Phase, s.Status.Message, s.Status.Exit)
}

// Console is what a server has printed.
func (w *World) Console(name string) string { return w.consoleOf(Tenant, name) }

func (w *World) consoleOf(tenant, name string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	log, err := w.Client.Log(ctx, tenant, name, false)
	if err != nil {
		return err.Error()
	}
	defer log.Close()
	data, _ := io.ReadAll(log)
	return string(data)
}

// Output runs a command in an os server, and returns what it prints. Any exit code but zero fails the test.
func (w *World) Output(t testing.TB, name string, args ...string) string {
	t.Helper()
	code, out := w.Exec(t, name, args...)
	if code != 0 {
		t.Fatalf("%s in %s: exit code %d\n%s", strings.Join(args, " "), name, code, out)
	}
	return out
}

// Exec runs a command in an os server, and returns its exit code and what it prints.
func (w *World) Exec(t testing.TB, name string, args ...string) (int, string) {
	t.Helper()
	return w.ExecOf(t, Tenant, name, args...)
}

// ExecOf is Exec in a server of any tenant.
func (w *World) ExecOf(t testing.TB, tenant, name string, args ...string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	var out bytes.Buffer
	code, err := w.Client.Exec(ctx, tenant, name, client.Exec{Args: args, Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatalf("%s in %s: %v", strings.Join(args, " "), name, err)
	}
	return code, out.String()
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
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

// makeNet makes two namespaces joined by a veth: the host's, whose uplink it is, and the outside.
func (w *World) makeNet(t testing.TB) {
	t.Helper()
	name := filepath.Base(w.RunDir)
	host, outside := NewNetNS(t, name), NewNetNS(t, name+"-out")
	w.NetNS = "/run/netns/" + name
	h, err := netlink.NewHandleAt(host)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	o, err := netlink.NewHandleAt(outside)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "out0", PeerNamespace: netlink.NsFd(outside)}
	must(t, h.LinkAdd(veth))
	w.Outside = netip.MustParseAddr("192.0.2.1") // TEST-NET-1 (RFC 5737)
	address(t, o, "out0", "192.0.2.1/24")
	address(t, h, "up0", "192.0.2.2/24")
	must(t, h.RouteAdd(&netlink.Route{Gw: w.Outside.AsSlice()}))
}

// NewNetNS makes a named network namespace with its loopback up, for the time of the test.
func NewNetNS(t testing.TB, name string) netns.NsHandle {
	t.Helper()
	done := make(chan error, 1)
	var ns netns.NsHandle
	go func() { // on a thread that ends with it: it is in the new namespace afterwards
		runtime.LockOSThread()
		var err error
		ns, err = netns.NewNamed(name)
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("make network namespace %s: %v", name, err)
	}
	t.Cleanup(func() {
		ns.Close()
		if err := netns.DeleteNamed(name); err != nil {
			t.Errorf("remove network namespace %s: %v", name, err)
		}
	})
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	must(t, err)
	must(t, h.LinkSetUp(lo))
	return ns
}

func address(t testing.TB, h *netlink.Handle, device, prefix string) {
	t.Helper()
	link, err := h.LinkByName(device)
	must(t, err)
	addr, err := netlink.ParseAddr(prefix)
	must(t, err)
	must(t, h.AddrAdd(link, addr))
	must(t, h.LinkSetUp(link))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
