package oci_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/oci"
	"github.com/croftproject/croft/internal/keeper"
)

// A guest whose files of users the runtime would hang on is refused at once.
func TestAccountsAreFiles(t *testing.T) {
	w := newWorld(t)
	for name, spoil := range map[string]func(etc string) error{
		"passwd a FIFO":      func(etc string) error { return unix.Mkfifo(filepath.Join(etc, "passwd"), 0o644) },
		"group a FIFO":       func(etc string) error { return unix.Mkfifo(filepath.Join(etc, "group"), 0o644) },
		"group a device":     func(etc string) error { return unix.Mknod(filepath.Join(etc, "group"), unix.S_IFCHR|0o666, 0x500) },
		"passwd a directory": func(etc string) error { return os.Mkdir(filepath.Join(etc, "passwd"), 0o755) },
		"link to a FIFO": func(etc string) error {
			return errors.Join(unix.Mkfifo(filepath.Join(etc, "f"), 0o644), os.Symlink("/etc/f", filepath.Join(etc, "passwd")))
		},
	} {
		m := w.machine(t, strings.ReplaceAll(name, " ", "-"))
		etc := filepath.Join(m.Root.Path, "etc")
		if err := os.Remove(filepath.Join(etc, strings.Fields(strings.ReplaceAll(name, "link to", "passwd"))[0])); err != nil {
			t.Fatal(err)
		}
		if err := spoil(etc); err != nil {
			t.Fatal(err)
		}
		if _, err := w.engine(t).Launch(limit(t, 10*time.Second), m); !errors.Is(err, engine.ErrUnsupported) || !strings.Contains(err.Error(), "no regular file") {
			t.Errorf("%s: %v", name, err)
		}
	}
	m := w.machine(t, "without")
	if err := errors.Join(os.Remove(filepath.Join(m.Root.Path, "etc/passwd")), os.Remove(filepath.Join(m.Root.Path, "etc/group"))); err != nil {
		t.Fatal(err)
	}
	start(t, w, m)
}

// hanging is a machine whose start hangs: a FIFO comes with a granted directory.
func (w *world) hanging(t *testing.T, id string) *engine.Machine {
	t.Helper()
	m := w.machine(t, id)
	etc := filepath.Join(w.dir, id, "etc")
	if err := errors.Join(os.Mkdir(etc, 0o755), unix.Mkfifo(filepath.Join(etc, "passwd"), 0o644)); err != nil {
		t.Fatal(err)
	}
	m.Spec.Grants = []api.Grant{{Kind: api.GrantDirectory, Source: etc, Target: "/etc"}}
	m.Grants = m.Spec.Grants
	return m
}

// checkGone checks that nothing of a start is left.
func (w *world) checkGone(t *testing.T, m *engine.Machine) {
	t.Helper()
	if _, err := w.keeper.Get(limit(t, 10*time.Second), m.ID); !errors.Is(err, keeper.ErrUnknown) {
		t.Errorf("the keeper has it: %v", err)
	}
	for _, dir := range append(groupDirs(m.Cgroup+"/guest"), filepath.Join(w.dir, "rt", m.ID), filepath.Join(m.RunDir, "oci")) {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
}

// A start that hangs is given up.
func TestStartLimit(t *testing.T) {
	oci.ShortenStart(t, 2*time.Second)
	w := newWorld(t)
	m := w.hanging(t, "hangs")
	if _, err := w.engine(t).Launch(limit(t, 30*time.Second), m); err == nil || !strings.Contains(err.Error(), "within 2s") {
		t.Errorf("got %v", err)
	}
	w.checkGone(t, m)
}

// A start that hangs ends at once when it is cancelled, or when another daemon cleans up.
func TestHangingStartEnds(t *testing.T) {
	w := newWorld(t)
	for name, end := range map[string]func(m *engine.Machine, cancel func()) error{
		"cancelled": func(_ *engine.Machine, cancel func()) error { cancel(); return nil },
		"cleaned":   func(m *engine.Machine, _ func()) error { return w.engine(t).Clean(limit(t, 20*time.Second), m) },
	} {
		m := w.hanging(t, name)
		ctx, cancel := context.WithCancel(limit(t, 60*time.Second))
		defer cancel()
		launched := make(chan error, 1)
		go func() {
			_, err := w.engine(t).Launch(ctx, m)
			launched <- err
		}()
		waitProcess(limit(t, 20*time.Second), t, m)
		before := time.Now()
		if err := end(m, cancel); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := <-launched; err == nil {
			t.Errorf("%s: it was launched", name)
		}
		if took := time.Since(before); took > 15*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
		w.checkGone(t, m)
	}
}

// What an exec writes down, environment and all, goes with the guest when the daemon does not live to remove it.
func TestExecLeavesNothing(t *testing.T) {
	if path := os.Getenv("CROFT_TEST_EXEC"); path != "" {
		execAndDie(t, path)
	}
	w := newWorld(t)
	m := w.machine(t, "exec")
	g := start(t, w, m)
	before, err := filepath.Glob(filepath.Join(os.TempDir(), "croft-exec-*"))
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(w.dir, "exec.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command(os.Args[0], "-test.run=^TestExecLeavesNothing$")
	daemon.Env = append(os.Environ(), "CROFT_TEST_EXEC="+path)
	out, err := daemon.StdoutPipe()
	if err == nil {
		err = daemon.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "running\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = daemon.Wait()
	if left, _ := filepath.Glob(filepath.Join(m.RunDir, "oci", "exec-*.json")); len(left) != 1 {
		t.Errorf("the exec has written %v", left)
	}
	if now, _ := filepath.Glob(filepath.Join(os.TempDir(), "croft-exec-*")); len(now) > len(before) {
		t.Errorf("left in the directory of temporary files: %v", now)
	}
	if err := g.Stop(limit(t, 10*time.Second), engine.Kill); err != nil {
		t.Fatal(err)
	}
	<-g.Done()
	if err := g.Release(limit(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(m.RunDir); len(left) > 0 {
		t.Errorf("left in RunDir: %v", left)
	}
}

// execAndDie is a daemon that is killed in an exec.
func execAndDie(t *testing.T, path string) {
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var m engine.Machine
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	client, err := keeper.Connect(t.Context(), filepath.Join(dir, "k"), keeper.Options{})
	if err != nil {
		t.Fatal(err)
	}
	g, err := oci.New(oci.Options{Keeper: client, Root: filepath.Join(dir, "rt")}).Launch(limit(t, 20*time.Second), &m) // it runs already
	if err != nil {
		t.Fatal(err)
	}
	_, err = g.(engine.Execer).Exec(t.Context(), engine.Process{
		Args: []string{"/bin/sh", "-c", "echo running; exec sleep 1000000"}, Env: []string{"SECRET=x"}, Stdout: os.Stdout,
	})
	t.Fatal(err)
}

// waitProcess waits until a process is in the machine's group.
func waitProcess(ctx context.Context, t *testing.T, m *engine.Machine) {
	t.Helper()
	for {
		for _, dir := range groupDirs(m.Cgroup + "/guest") {
			if pids, err := os.ReadFile(filepath.Join(dir, "cgroup.procs")); err == nil && len(pids) > 0 {
				return
			}
		}
		if ctx.Err() != nil {
			t.Fatal("no process comes")
		}
	}
}
