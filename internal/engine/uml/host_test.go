package uml_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/uml/mconsole"
)

// boot launches a machine and opens its shell.
func (w *world) boot(t testing.TB, m *engine.Machine) (engine.Guest, *shell) {
	t.Helper()
	e := w.engine(t)
	t.Cleanup(func() {
		if err := e.Clean(within(t, 30*time.Second), m); err != nil {
			t.Error(err)
		}
	})
	g, err := e.Launch(within(t, 30*time.Second), m)
	if err != nil {
		t.Fatal(err)
	}
	s := w.shell(within(t, 60*time.Second), t, m)
	s.wait(ready)
	return g, s
}

// A guest's root reaches nothing of the host through hostfs but what was granted, and its process has no privilege.
func TestConfinement(t *testing.T) {
	w := newWorld(t)
	granted, readable, secret := filepath.Join(w.dir, "granted"), filepath.Join(w.dir, "readable"), filepath.Join(w.dir, "secret")
	for _, dir := range []string{granted, readable, secret} {
		if err := os.Mkdir(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o777); err != nil { // whatever the umask is: permissions are not what protects here
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte("from the host\n"), 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
	}
	m := w.machine(t, "confined")
	g, s := w.boot(t, m)
	for _, line := range []string{
		"mount -t hostfs none /mnt && cat /mnt/etc/passwd",
		"umount /mnt; mount -t hostfs -o /../../../../../../../.. none /mnt; cat /mnt/etc/passwd",
		"umount /mnt; mount -t hostfs -o /../../../../.." + secret + " none /mnt; cat /mnt/f; cat /mnt/link",
		"umount /mnt; mount -t hostfs -o /../../../../../../../proc/1 none /mnt; cat /mnt/status",
	} {
		if out := s.run(line); strings.Contains(out, "root:") || strings.Contains(out, "from the host") || strings.Contains(out, "Name:") {
			t.Errorf("%s\nread the host:\n%s", line, out)
		}
	}
	checkProcess(t, g.PID(), m.IDs.Base)

	m = w.machine(t, "grantee")
	m.Spec.Grants = []api.Grant{
		{Kind: api.GrantDirectory, Source: granted, Target: "/srv"},
		{Kind: api.GrantDirectory, Source: readable, ReadOnly: true},
	}
	m.Grants = m.Spec.Grants
	_, s = w.boot(t, m)
	if out := s.run("cat /proc/cmdline"); !strings.Contains(out, "croft.hostfs="+granted+",/srv,rw croft.hostfs="+readable+","+readable+",ro") {
		t.Errorf("the command line does not tell the grants: %s", out)
	}
	if out := s.run("mount -t hostfs -o " + granted + " none /mnt; cat /mnt/f; echo from the guest > /mnt/g; cat /mnt/link; umount /mnt"); !strings.Contains(out, "from the host") || strings.Contains(out, "root:") {
		t.Errorf("granted directory: %s", out)
	}
	if content, _ := os.ReadFile(filepath.Join(granted, "g")); string(content) != "from the guest\n" {
		t.Errorf("the guest's file in the granted directory holds %q", content)
	}
	if out := s.run("mount -t hostfs -o " + readable + " none /mnt; cat /mnt/f; echo changed > /mnt/f; touch /mnt/new; umount /mnt"); !strings.Contains(out, "from the host") {
		t.Errorf("directory granted for reading: %s", out)
	}
	if content, _ := os.ReadFile(filepath.Join(readable, "f")); string(content) != "from the host\n" {
		t.Errorf("the guest wrote %q to a directory granted for reading", content)
	}
	if _, err := os.Stat(filepath.Join(readable, "new")); err == nil {
		t.Error("the guest made a file in a directory granted for reading")
	}
	if out := s.run("mount -t hostfs -o " + secret + " none /mnt; cat /mnt/f"); strings.Contains(out, "from the host") {
		t.Error("the guest read a directory that was not granted")
	}
}

// A grant whose path leads over a link is refused: the tenant could have made it, to lead anywhere.
func TestGrantOverLink(t *testing.T) {
	w := newWorld(t)
	link := filepath.Join(w.dir, "elsewhere")
	if err := os.Symlink("/etc", link); err != nil {
		t.Fatal(err)
	}
	m := w.machine(t, "link")
	m.Spec.Grants = []api.Grant{{Kind: api.GrantDirectory, Source: link, Target: "/t"}}
	m.Grants = m.Spec.Grants
	if _, err := w.engine(t).Launch(within(t, 30*time.Second), m); err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Errorf("got %v", err)
	}
}

// checkProcess checks what proc_pid_status(5) tells of a guest's process.
func checkProcess(t *testing.T, pid int, uid uint32) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("\nUid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", uid), fmt.Sprintf("\nGid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", uid),
		"\nCapEff:\t0000000000000000\n", "\nCapPrm:\t0000000000000000\n", "\nNoNewPrivs:\t1\n", "\nSeccomp:\t2\n", "\nGroups:\t \n",
	} {
		if !strings.Contains(string(status), want) {
			t.Errorf("process status lacks %q:\n%s", want, status)
		}
	}
	for _, ns := range []string{"net", "ipc", "uts"} {
		guest, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		host, _ := os.Readlink("/proc/self/ns/" + ns)
		if err != nil || guest == host {
			t.Errorf("the guest's process shares the %s namespace: %s, %v", ns, guest, err)
		}
	}
}

// hostSide is a network namespace with a tap device, and servers in it.
type hostSide struct {
	path string // of the namespace
	tcp  [2]net.Listener
	udp  net.PacketConn
}

func newHostSide(t *testing.T, tap string, addr netip.Prefix) *hostSide {
	t.Helper()
	h := &hostSide{}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	defer func() {
		if err := netns.Set(home); err != nil {
			panic(err) // the thread is of no use to anyone
		}
	}()
	h.path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(ns))
	link := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: tap}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), 32)}}); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	for i := range h.tcp {
		if h.tcp[i], err = net.Listen("tcp4", fmt.Sprintf("%s:%d", addr.Addr(), 9000+i)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.tcp[i].Close() })
	}
	if h.udp, err = net.ListenPacket("udp4", addr.Addr().String()+":53"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.udp.Close() })
	return h
}

// TCP and UDP go both ways through the tap, checksums and all: a guest without offloads meets a host that has them.
func TestNetwork(t *testing.T) {
	w := newWorld(t)
	h := newHostSide(t, "t0", netip.MustParsePrefix("10.9.0.1/24"))
	m := w.machine(t, "net")
	mac, _ := net.ParseMAC("02:00:00:00:00:05")
	m.NICs = []engine.NIC{{Name: "eth0", MAC: mac, MTU: 1400, Tap: engine.Tap{NetNS: h.path, Device: "t0"}}}
	_, s := w.boot(t, m)
	s.run("ip addr add 10.9.0.2/24 dev vec0; ip link set vec0 up")
	if out := s.run("ip link show vec0"); !strings.Contains(out, mac.String()) || !strings.Contains(out, "mtu 1400") {
		t.Errorf("device: %s", out)
	}

	down := make([]byte, 8<<20)
	rand.Read(down)
	served := make(chan error, 1)
	go func() { served <- serve(h.tcp[0], down) }()
	before := time.Now()
	if out := s.run("nc 10.9.0.1 9000 < /dev/null | sha256sum"); !strings.Contains(out, sum(down)) {
		t.Errorf("host to guest: sent %s, got %s (%v)", sum(down), out, <-served)
	}

	t.Logf("host to guest: 8 MiB in %v", time.Since(before))

	type received struct {
		data []byte
		err  error
	}
	got := make(chan received, 1)
	go func() {
		conn, err := h.tcp[1].Accept()
		if err != nil {
			got <- received{nil, err}
			return
		}
		defer conn.Close()
		data, err := io.ReadAll(conn)
		got <- received{data, err}
	}()
	out := s.run("head -c 4000000 /dev/urandom > /tmp/x; sha256sum /tmp/x; nc 10.9.0.1 9001 < /tmp/x")
	if up := <-got; up.err != nil || !strings.Contains(out, sum(up.data)) || len(up.data) != 4000000 {
		t.Errorf("guest to host: %v, %d bytes, %s; sent %s", up.err, len(up.data), sum(up.data), out)
	}

	server := &dns.Server{PacketConn: h.udp, Handler: dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg)
		a.SetReply(q)
		if rr, err := dns.NewRR(q.Question[0].Name + " 60 A 10.9.0.77"); err == nil && q.Question[0].Qtype == dns.TypeA {
			a.Answer = append(a.Answer, rr)
		}
		rw.WriteMsg(a)
	})}
	over := make(chan error, 1)
	go func() { over <- server.ActivateAndServe() }()
	if out := s.run("nslookup db.corp.internal 10.9.0.1"); !strings.Contains(out, "10.9.0.77") {
		t.Errorf("UDP: %s", out)
	}
	server.Shutdown()
	<-over
}

func serve(l net.Listener, data []byte) error {
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write(data)
	return err
}

func sum(data []byte) string {
	digest := sha256.Sum256(data)
	return hex.EncodeToString(digest[:])
}

// How a guest ends shows in its exit.
func TestExit(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		name, line, reason string
		code               int
	}{
		{"power off", "poweroff -f", "poweroff", 0},
		{"reboot", "reboot -f", "reboot", 0},
		{"panic", "echo c > /proc/sysrq-trigger", "signal", 134},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := w.machine(t, strings.ReplaceAll(test.name, " ", "-"))
			g, s := w.boot(t, m)
			if _, err := io.WriteString(s.conn, test.line+"\n"); err != nil {
				t.Fatal(err)
			}
			select {
			case <-g.Done():
			case <-within(t, 30*time.Second).Done():
				t.Fatal("the guest has not ended")
			}
			if exit := g.Exit(); exit.Code != test.code || exit.Reason != test.reason {
				t.Errorf("got %+v", exit)
			}
			if err := g.Release(within(t, 30*time.Second)); err != nil {
				t.Error(err)
			}
			if left := processesOf(m.IDs.Base); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// The management console of a real kernel.
func TestManagementConsole(t *testing.T) {
	w := newWorld(t)
	m := w.machine(t, "mconsole")
	_, s := w.boot(t, m)
	ctx := within(t, 20*time.Second)
	c := mconsole.New(filepath.Join(m.RunDir, "u", "m"), m.RunDir, m.IDs.Base)
	if v, err := c.Version(ctx); err != nil || !strings.HasPrefix(v, "Linux ") {
		t.Errorf("version: %q, %v", v, err)
	}
	if v, err := c.Config(ctx, "con0"); err != nil || v != "fd:0,fd:1" {
		t.Errorf("config: %q, %v", v, err)
	}
	if help, err := c.Do(ctx, "help"); err != nil || len(help) < 600 {
		t.Errorf("an answer of several packets came as %q, %v", help, err)
	}
	var refused *mconsole.Refused
	if _, err := c.Do(ctx, "no-such-command"); !errors.As(err, &refused) {
		t.Errorf("unknown command: %v", err)
	}
	if err := errors.Join(c.Go(ctx), c.Stop(ctx), c.Stop(ctx), c.Go(ctx), c.Go(ctx)); err != nil {
		t.Error(err)
	}
	if err := c.SysRq(ctx, 's'); err != nil {
		t.Error(err)
	}
	s.wait("Emergency Sync")
	if err := c.CtrlAltDel(ctx); err != nil {
		t.Error(err)
	}
	<-w.keeper.Done(m.ID)
}

// Memory is taken from a running guest and given back, within what it was started with.
func TestResize(t *testing.T) {
	w := newWorld(t)
	m := w.machine(t, "resize")
	g, s := w.boot(t, m)
	s.run("head -c 8000000 /dev/urandom > /tmp/x; cat /tmp/x > /dev/null")
	free := func() (kib int) {
		if _, err := fmt.Sscan(s.run("awk '/^MemFree/{print $2}' /proc/meminfo"), &kib); err != nil {
			t.Fatal(err)
		}
		return kib
	}
	limit := func(b api.Bytes) *api.ServerSpec {
		spec := *m.Spec
		spec.Memory.Limit = b
		return &spec
	}
	r := g.(engine.Resizer)
	before := free()
	if err := r.Resize(within(t, 20*time.Second), limit(64*api.MiB), limit(48*api.MiB)); err != nil {
		t.Fatal(err)
	}
	if taken := before - free(); taken < 15<<10 || taken > 17<<10 {
		t.Errorf("the guest has %d KiB less free memory; want 16 MiB", taken)
	}
	if err := r.Resize(within(t, 20*time.Second), limit(48*api.MiB), limit(64*api.MiB)); err != nil {
		t.Fatal(err)
	}
	if missing := before - free(); missing > 1<<10 {
		t.Errorf("the guest misses %d KiB", missing)
	}
	for name, to := range map[string]api.Bytes{"more than at its start": 65 * api.MiB, "more than is free": 12 * api.MiB} {
		if err := r.Resize(within(t, 20*time.Second), limit(64*api.MiB), limit(to)); !errors.Is(err, engine.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if missing := before - free(); missing > 1<<10 {
		t.Errorf("a refused change took %d KiB", missing)
	}
}

// A paused guest does not run, whatever it was doing, and goes on where it was.
func TestPauseHalts(t *testing.T) {
	w := newWorld(t)
	m := w.machine(t, "paused")
	g, s := w.boot(t, m)
	p := g.(engine.Pauser)
	if _, err := io.WriteString(s.conn, "i=0; while :; do i=$((i+1)); done &\n"); err != nil {
		t.Fatal(err)
	}
	s.run("true")
	if err := p.Pause(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	before, err := w.groups.Usage(m.ID)
	if err != nil {
		t.Fatal(err)
	}
	<-within(t, 300*time.Millisecond).Done() // the event is that time passes
	after, err := w.groups.Usage(m.ID)
	if err != nil {
		t.Fatal(err)
	}
	if used := after.CPUTime - before.CPUTime; used > 30*time.Millisecond {
		t.Errorf("the paused guest used %v of 300 ms", used)
	}
	if err := p.Resume(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	s.run("true")
	if err := g.Stop(context.Background(), engine.Kill); err != nil {
		t.Fatal(err)
	}
	<-g.Done()
}
