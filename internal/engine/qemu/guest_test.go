package qemu_test

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/qemu"
)

// TestLinuxOnMicroVM boots Debian's kernel as the para engine does it for real: disk, seed and memory are what they
// should be, memory is given back and taken, and the power button powers it off.
func TestLinuxOnMicroVM(t *testing.T) {
	b := newBench(t)
	kernel, initramfs := linux(t)
	m := b.machine(t, "linux", api.ModelPara)
	m.Spec.Memory.Limit = 256 * api.MiB
	m.Boot = engine.Boot{Kernel: kernel, Initrd: b.file(t, m, "initrd", initramfs), Cmdline: "quiet", Ready: "LINUX-READY"}
	m.Root = engine.Root{Path: b.file(t, m, "root", []byte("the-root\n"), make([]byte, 1<<20)), Format: "raw"}
	m.Seed = b.file(t, m, "seed", []byte("the-seed\n"), make([]byte, 1<<16))
	e := qemu.NewMicroVM(b.keeper, qemu.Options{})
	begin := time.Now()
	g, err := e.Launch(within(t, 20*time.Second), m)
	if err != nil {
		t.Fatal(err)
	}
	launched := time.Since(begin)
	shown := b.await(within(t, 60*time.Second), t, m, "LINUX-READY")
	status, err := b.keeper.Get(t.Context(), m.ID)
	if err != nil || status.Ready.IsZero() {
		t.Errorf("the keeper has not seen it: %+v, %v", status, err)
	}
	t.Logf("launched in %v, userspace after %v, QEMU has %v beyond the guest's", launched, status.Ready.Sub(begin), residentBeyond(t, e, g, m))
	if !strings.Contains(shown, "disk=theroot disks=vda vdb") {
		t.Errorf("the guest's disks are not root and seed:\n%s", shown)
	}

	resize := func(from, to api.Bytes) error {
		f, o := *m.Spec, *m.Spec
		f.Memory.Limit, o.Memory.Limit = from, to
		return g.(engine.Resizer).Resize(within(t, 20*time.Second), &f, &o)
	}
	if err := resize(256*api.MiB, 192*api.MiB); err != nil {
		t.Errorf("less memory: %v", err)
	}
	if err := resize(192*api.MiB, 256*api.MiB); err != nil {
		t.Errorf("as much as at first: %v", err)
	}
	if err := resize(256*api.MiB, 512*api.MiB); !errors.Is(err, engine.ErrUnsupported) {
		t.Errorf("more than at first: %v", err)
	}
	pausedThenStopped(t, g)
}

// pausedThenStopped stops a guest gracefully that is paused: it must be continued to see the power button.
func pausedThenStopped(t *testing.T, g engine.Guest) {
	t.Helper()
	if err := g.(engine.Pauser).Pause(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := g.Stop(within(t, 10*time.Second), engine.Graceful); err != nil {
		t.Fatal(err)
	}
	if exit := ended(t, g, 20*time.Second); exit.Reason != "asked" || exit.Code != 0 {
		t.Errorf("exit is %+v", exit)
	}
}

// A guest without the balloon's driver keeps its memory, and the caller learns that.
func TestMemoryThatTheGuestKeeps(t *testing.T) {
	b := newBench(t)
	m := b.tiny(t, "keeps", api.ModelPara)
	g, err := qemu.NewMicroVM(b.keeper, qemu.Options{}).Launch(within(t, 20*time.Second), m)
	if err != nil {
		t.Fatal(err)
	}
	to := *m.Spec
	to.Memory.Limit = 32 * api.MiB
	if err := g.(engine.Resizer).Resize(within(t, 20*time.Second), m.Spec, &to); !errors.Is(err, engine.ErrUnsupported) {
		t.Errorf("less memory: %v", err)
	}
	to = *m.Spec
	to.CPU.Count = 2
	if err := g.(engine.Resizer).Resize(within(t, 20*time.Second), m.Spec, &to); !errors.Is(err, engine.ErrUnsupported) {
		t.Errorf("another CPU: %v", err)
	}
}

// TestDisplay connects to the display of a full server: it speaks RFB (RFC 6143, 7.1.1).
func TestDisplay(t *testing.T) {
	b := newBench(t)
	m := b.tiny(t, "display", api.ModelFull)
	e := qemu.NewFull(b.keeper, qemu.Options{})
	g, err := e.Launch(within(t, 20*time.Second), m)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("QEMU has %v beyond the guest's", residentBeyond(t, e, g, m))
	conn, err := g.(engine.Displayer).Display(within(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	version := make([]byte, 12)
	if _, err := io.ReadFull(conn, version); err != nil || string(version) != "RFB 003.008\n" {
		t.Errorf("the display says %q, %v", version, err)
	}
}

// QEMU's user owns its sockets' directory only: what the daemon reads and marks lies beyond its reach.
func TestRunDirIsNotQEMUs(t *testing.T) {
	b := newBench(t)
	m := b.tiny(t, "rundir", api.ModelFull)
	if _, err := qemu.NewFull(b.keeper, qemu.Options{}).Launch(within(t, 20*time.Second), m); err != nil {
		t.Fatal(err)
	}
	for path, owner := range map[string]uint32{m.RunDir: 0, m.RunDir + "/stderr": 0, m.RunDir + "/q": m.IDs.Base, m.RunDir + "/q/vnc": m.IDs.Base} {
		var stat unix.Stat_t
		if err := unix.Lstat(path, &stat); err != nil || stat.Uid != owner {
			t.Errorf("%s belongs to %d, not %d: %v", path, stat.Uid, owner, err)
		}
	}
}

// Somebody who talks nonsense to QEMU, or holds its control connection, must not take the guest away from us for long.
func TestNoiseOnTheControlSocket(t *testing.T) {
	b := newBench(t)
	m := b.tiny(t, "noise", api.ModelFull)
	g, err := qemu.NewFull(b.keeper, qemu.Options{}).Launch(within(t, 20*time.Second), m)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", m.RunDir+"/q/control")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("\x00\xff}{ nonsense \n{\"execute\": 5}\n")); err != nil {
		t.Fatal(err)
	}
	held := within(t, 300*time.Millisecond)
	if _, err := g.(engine.Pauser).Paused(held); err == nil {
		t.Error("two were served at a time")
	}
	_ = conn.Close()
	if is, err := g.(engine.Pauser).Paused(within(t, 10*time.Second)); err != nil || is {
		t.Errorf("after the noise: %v, %v", is, err)
	}
}

// A QEMU that hangs is found again all the same, and can be killed.
func TestHungQEMUIsRecovered(t *testing.T) {
	b := newBench(t)
	m := b.tiny(t, "hung", api.ModelFull)
	g, err := qemu.NewFull(b.keeper, qemu.Options{}).Launch(within(t, 20*time.Second), m)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.keeper.Signal(t.Context(), m.ID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	found, err := qemu.NewFull(b.keeper, qemu.Options{}).Recover(within(t, 5*time.Second), m, g.Handle())
	if err != nil {
		t.Fatal(err)
	}
	if err := found.Stop(within(t, 300*time.Millisecond), engine.Graceful); err == nil {
		t.Error("a hung QEMU took the order to stop")
	}
	if err := found.Stop(within(t, 10*time.Second), engine.Kill); err != nil {
		t.Fatal(err)
	}
	if exit := ended(t, found, 10*time.Second); exit.Reason != "asked" || exit.Code != 137 {
		t.Errorf("exit is %+v", exit)
	}
}

// QEMU's own complaint is the error of a launch that fails in it.
func TestFailureCarriesQEMUsWords(t *testing.T) {
	b := newBench(t)
	m := b.tiny(t, "fails", api.ModelFull)
	if err := os.Chmod(m.Root.Path, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := qemu.NewFull(b.keeper, qemu.Options{}).Launch(within(t, 20*time.Second), m)
	if err == nil || !strings.Contains(err.Error(), "Permission denied") || !strings.Contains(err.Error(), m.Root.Path) {
		t.Errorf("got %v", err)
	}
}

// A grant whose path leads over a link is refused: the tenant could have made it, to lead anywhere.
func TestGrantOverLink(t *testing.T) {
	b := newBench(t)
	m := b.tiny(t, "link", api.ModelFull)
	link := m.Dir + "/link"
	if err := os.Symlink("/etc", link); err != nil {
		t.Fatal(err)
	}
	m.Grants = []api.Grant{{Kind: api.GrantDirectory, Source: link + "/ssl", Target: "t"}}
	if _, err := qemu.NewFull(b.keeper, qemu.Options{}).Launch(within(t, 20*time.Second), m); err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Errorf("got %v", err)
	}
}

// A machine with everything that this host can hand over starts: a qcow2 disk with I/O limits, and directories.
func TestGrantsAndFormats(t *testing.T) {
	b := newBench(t)
	for model, newEngine := range engines {
		t.Run(string(model), func(t *testing.T) {
			m := b.tiny(t, "grants-"+string(model), model)
			raw := m.Root.Path
			m.Root = engine.Root{Path: raw + ".qcow2", Format: "qcow2"}
			if out, err := exec.Command("qemu-img", "convert", "-O", "qcow2", raw, m.Root.Path).CombinedOutput(); err != nil {
				t.Skipf("qemu-img: %v %s", err, out)
			}
			// QEMU opens them as the machine's user.
			if err := errors.Join(os.Chmod(m.Root.Path, 0o666), os.Chmod(m.Dir+".disks", 0o777)); err != nil {
				t.Fatal(err)
			}
			m.Spec.Disk.ReadIOPS = 1000
			m.Grants = []api.Grant{
				{Kind: api.GrantDirectory, Source: m.Dir + ".disks", Target: "rw"},
				{Kind: api.GrantDirectory, Source: m.Dir + ".disks", Target: "ro", ReadOnly: true},
				{Kind: api.GrantNesting},
			}
			if _, err := newEngine(b.keeper, qemu.Options{}).Launch(within(t, 20*time.Second), m); err != nil {
				t.Fatal(err)
			}
			b.await(within(t, 20*time.Second), t, m, m.Boot.Ready)
		})
	}
}
