package qemu_test

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
	"sync/atomic"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/cgroup"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/qemu"
	"github.com/croftproject/croft/internal/keeper"
)

// TestMain makes the test binary the keeper too, and a daemon that probes.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "keeper" {
		if err := keeper.Run(context.Background(), os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 3 && os.Args[1] == "probe" {
		qemu.NewFull(nil, qemu.Options{Binary: os.Args[2]}).Probe(context.Background())
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// bench is what the tests of this package run guests on: a keeper, a cgroup and a directory of their own.
type bench struct {
	keeper *keeper.Client
	groups *cgroup.Tree
	dir    string
	next   atomic.Uint32
}

// newBench makes the bench, or skips where the host can't run one. It goes when the test ends.
func newBench(t testing.TB) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to run guests as users of their own")
	}
	if _, err := exec.LookPath(qemu.DefaultBinary); err != nil {
		t.Skip(qemu.DefaultBinary + " is not installed")
	}
	dir, err := os.MkdirTemp("/tmp", "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	groups, err := cgroup.New("croft-test-" + strings.ToLower(rand.Text()[:8]))
	if err != nil {
		t.Fatal(err)
	}
	k, err := keeper.Connect(t.Context(), filepath.Join(dir, "keeper"), keeper.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := groups.Kill(ctx, ""); err != nil {
			t.Error(err)
		}
		left, err := k.List(ctx)
		if err != nil {
			t.Error(err)
		}
		for _, process := range left {
			<-k.Done(process.ID)
		}
		if err := k.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := groups.Remove(ctx, ""); err != nil {
			t.Error(err)
		}
	})
	return &bench{keeper: k, groups: groups, dir: dir}
}

// machine makes a machine with directories, a user and a cgroup of its own, and nothing to boot from.
func (b *bench) machine(t testing.TB, id string, model api.Model) *engine.Machine {
	t.Helper()
	base := 700000 + b.next.Add(1)
	m := &engine.Machine{
		ID: id, Name: "test", Host: "test", Cgroup: b.groups.Path(id), IDs: engine.IDRange{Base: base, Size: 1},
		Dir: filepath.Join(b.dir, fmt.Sprintf("d%d", base)), RunDir: filepath.Join(b.dir, fmt.Sprintf("r%d", base)),
		Spec: &api.ServerSpec{Model: model, CPU: api.CPU{Count: 1}, Memory: api.Memory{Limit: 64 * api.MiB}, PIDs: 4096},
	}
	for _, dir := range []string{m.Dir, m.RunDir, m.Dir + ".disks"} {
		if err := os.Mkdir(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.groups.Set(id, cgroup.Limits{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := b.groups.Kill(ctx, id); err != nil {
			t.Error(err)
		}
		if err := b.groups.Remove(ctx, id); err != nil {
			t.Error(err)
		}
	})
	return m
}

// file writes one of the machine's disks.
func (b *bench) file(t testing.TB, m *engine.Machine, name string, parts ...[]byte) string {
	t.Helper()
	return writeFile(t, m.Dir+".disks", name, parts...)
}

// tiny is a machine that boots the tiny guest of its model.
func (b *bench) tiny(t testing.TB, id string, model api.Model) *engine.Machine {
	t.Helper()
	m := b.machine(t, id, model)
	m.Boot.Ready = "CROFT-READY"
	if model == api.ModelFull {
		m.Root = engine.Root{Path: b.file(t, m, "disk", bootSector(), make([]byte, 1<<20-512)), Format: "raw"}
	} else {
		m.Root = engine.Root{Path: b.file(t, m, "rootfs", make([]byte, 1<<20)), Format: "raw"}
		m.Boot.Kernel = b.file(t, m, "kernel", pvhKernel())
	}
	return m
}

// attach opens the guest's console.
func (b *bench) attach(ctx context.Context, m *engine.Machine) (io.ReadWriteCloser, error) {
	return b.keeper.Attach(ctx, m.ID, nil)
}

// await reads the guest's console until it has shown a text.
func (b *bench) await(ctx context.Context, t testing.TB, m *engine.Machine, text string) string {
	t.Helper()
	console, err := b.attach(ctx, m)
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	defer console.Close()
	defer context.AfterFunc(ctx, func() { _ = console.Close() })()
	var seen bytes.Buffer
	buffer := make([]byte, 4096)
	for !strings.Contains(seen.String(), text) {
		n, err := console.Read(buffer)
		seen.Write(buffer[:n])
		if err != nil && !strings.Contains(seen.String(), text) {
			t.Fatalf("the console ended with %v before %q; it showed:\n%s", err, text, seen.String())
		}
	}
	return seen.String()
}

// typeIn writes to the guest's console.
func (b *bench) typeIn(ctx context.Context, t testing.TB, m *engine.Machine, text string) {
	t.Helper()
	console, err := b.attach(ctx, m)
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	defer console.Close()
	if _, err := console.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// within is a context for one step of a test.
func within(t testing.TB, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

// ended waits for a guest's end.
func ended(t testing.TB, g engine.Guest, limit time.Duration) api.Exit {
	t.Helper()
	select {
	case <-g.Done():
		return g.Exit()
	case <-within(t, limit).Done():
		t.Fatalf("the guest has not ended within %v", limit)
		return api.Exit{}
	}
}
