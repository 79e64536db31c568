package oci_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
)

func (w *world) application(t testing.TB, id string, app api.App) *engine.Machine {
	m := w.machine(t, id)
	m.App = &app
	return m
}

// TestApplication: user, groups, environment, directory, files, output, exit code.
func TestApplication(t *testing.T) {
	w := newWorld(t)
	m := w.application(t, "app", api.App{
		Entrypoint: []string{"/bin/sh", "-c"},
		Args: []string{`id -u; id -G; pwd; echo "$COLOUR $HOME"; cat /etc/hostname /etc/hosts /etc/resolv.conf
			grep -E 'NoNewPrivs|CapEff' /proc/self/status; echo "on error" >&2; exit 7`},
		Env:        map[string]string{"COLOUR": "blue"},
		User:       "www",
		WorkingDir: "/tmp",
	})
	m.Hosts, m.Resolv = filepath.Join(m.Dir, "hosts"), filepath.Join(m.Dir, "resolv")
	for path, text := range map[string]string{m.Hosts: "10.0.0.2 web\n", m.Resolv: "nameserver 10.0.0.1\n"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(path) })
	}
	g := start(t, w, m)
	<-g.Done()
	if exit := g.Exit(); exit.Code != 7 || exit.Reason != "exited" {
		t.Errorf("exit is %+v", exit)
	}
	data, err := os.ReadFile(engine.ConsoleLog(m))
	if err != nil {
		t.Fatal(err)
	}
	want := "33\n33 44\n/tmp\nblue /var\nweb\n10.0.0.2 web\nnameserver 10.0.0.1\n" +
		"CapEff:\t0000000000000000\nNoNewPrivs:\t1\non error\n"
	if got := strings.ReplaceAll(string(data), "\r", ""); got != want {
		t.Errorf("the log is\n%s\nwant\n%s", got, want)
	}
	if err := g.Release(limit(t, 10*time.Second)); err != nil {
		t.Error(err)
	}
}

// TestApplicationConfinement: as the application's root.
func TestApplicationConfinement(t *testing.T) {
	w := newWorld(t)
	m := w.application(t, "held", api.App{Entrypoint: []string{"/bin/sleep", "1000000"}})
	g := start(t, w, m)
	for _, refused := range []string{
		"mount -t tmpfs tmpfs /mnt", "unshare -m true", "unshare -U true", "hostname other", "umount /proc/sys",
		"echo 1 > /proc/sys/net/ipv4/ip_forward", "mknod /tmp/x c 1 3", "f=/sys/fs/cgroup; test -d $f/pids && f=$f/pids; echo 1 > $f/cgroup.procs",
	} {
		if code, said := run(t, g, refused); code == 0 {
			t.Errorf("the application could do it: %s: %s", refused, said)
		}
	}
	if err := g.Stop(limit(t, 10*time.Second), engine.Kill); err != nil {
		t.Fatal(err)
	}
	<-g.Done()
	if exit := g.Exit(); exit.Reason != "asked" || exit.Code != 128+9 {
		t.Errorf("exit is %+v", exit)
	}
}

// TestApplicationErrors: what is wrong with the image is told, and nothing is left.
func TestApplicationErrors(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		id   string
		app  api.App
		want string
	}{
		{"no-user", api.App{Entrypoint: []string{"/bin/sh"}, User: "nobody-such"}, `no user "nobody-such"`},
		{"no-group", api.App{Entrypoint: []string{"/bin/sh"}, User: "www:none"}, `no group "none"`},
		{"beyond", api.App{Entrypoint: []string{"/bin/sh"}, User: "70000"}, "beyond the guest's 65536 ids"},
		{"no-file", api.App{Entrypoint: []string{"/bin/no-such"}}, "no such file"},
	} {
		m := w.application(t, test.id, test.app)
		g, err := w.engine(t).Launch(limit(t, 20*time.Second), m)
		if err == nil {
			t.Errorf("%s: launched process %d", test.id, g.PID())
		} else if !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v; want %s", test.id, err, test.want)
		}
		if left, _ := os.ReadDir(m.RunDir); len(left) > 0 {
			t.Errorf("%s: left in RunDir: %v", test.id, left)
		}
	}
}

// TestKeeperKilled: an application goes on printing when the keeper is killed, and the next one logs it.
func TestKeeperKilled(t *testing.T) {
	w := newWorld(t)
	m := w.application(t, "kept", api.App{
		Entrypoint: []string{"/bin/sh", "-c"},
		Args:       []string{"echo one; until [ -e /tmp/go ]; do sleep 0.1; done; echo two; echo three; exec sleep 1000000"},
	})
	g := start(t, w, m)
	waitLog(limit(t, 10*time.Second), t, m, "one\n")
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", g.PID()))
	if err != nil {
		t.Fatal(err)
	}
	var parent int
	if _, err := fmt.Sscanf(string(stat[bytes.LastIndexByte(stat, ')')+4:]), "%d", &parent); err != nil || parent <= 1 || parent == os.Getpid() {
		t.Fatalf("no keeper: %d, %v", parent, err)
	}
	if err := unix.Kill(parent, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.Root.Path, "tmp/go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	waitLog(limit(t, 20*time.Second), t, m, "one\ntwo\nthree\n")
	if status, err := w.keeper.Get(limit(t, 10*time.Second), m.ID); err != nil || !status.Ended.IsZero() || status.PID != g.PID() {
		t.Errorf("the keeper knows %+v, %v", status, err)
	}
	if err := g.Stop(limit(t, 10*time.Second), engine.Kill); err != nil {
		t.Error(err)
	}
	<-g.Done()
}

// TestReboot: a system that restarts itself says so.
func TestReboot(t *testing.T) {
	w := newWorld(t)
	m := w.machine(t, "again")
	g := start(t, w, m)
	if code, said := run(t, g, "reboot -f"); code != 0 && code != 137 {
		t.Fatal(code, said)
	}
	<-g.Done()
	if exit := g.Exit(); exit.Reason != "reboot" || exit.Code != 0 {
		t.Errorf("exit is %+v", exit)
	}
}

// limitMemory does what the agent does before a launch.
func limitMemory(t testing.TB, m *engine.Machine, most api.Bytes) {
	t.Helper()
	for _, dir := range groupDirs(m.Cgroup) {
		for file, value := range map[string]string{
			"memory.use_hierarchy": "1", "memory.limit_in_bytes": fmt.Sprint(int64(most)), "memory.max": fmt.Sprint(int64(most)),
		} {
			path := filepath.Join(dir, file)
			if _, err := os.Stat(path); err != nil {
				continue
			}
			if err := os.WriteFile(path, []byte(value), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestOOM: a guest whose init is killed for want of memory says so.
func TestOOM(t *testing.T) {
	w := newWorld(t)
	m := w.application(t, "greedy", api.App{Entrypoint: []string{"/bin/busybox", "tail", "/dev/zero"}}) // it keeps a line's end
	limitMemory(t, m, 64<<20)
	g := start(t, w, m)
	select {
	case <-g.Done():
	case <-limit(t, 60*time.Second).Done():
		t.Fatal("it was not killed")
	}
	if exit := g.Exit(); exit.Reason != "oom" || exit.Code != 137 {
		t.Errorf("exit is %+v", exit)
	}
}

const debianTree = "/var/tmp/croft-test-debian.tar"

// TestDebian boots an unmodified Debian with systemd, stops it the graceful way, and looks into it meanwhile.
func TestDebian(t *testing.T) {
	if _, err := os.Stat(debianTree); err != nil {
		t.Skip("no Debian tree: mmdebstrap --variant=minbase --include=systemd-sysv,udev,iproute2 bookworm " + debianTree)
	}
	w := newWorld(t)
	m := w.bare(t, "debian")
	root := filepath.Join(w.dir, "debian", "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-C", root, "-xf", debianTree).CombinedOutput(); err != nil {
		t.Fatalf("unpack: %v: %s", err, out)
	}
	shiftTree(t, root)
	m.Root = engine.Root{Path: root}
	m.Boot.Ready = "login:"
	m.NetNS = filepath.Join(w.dir, "netns")
	if err := w.engine(t).(engine.NetNSMaker).MakeNetNS(t.Context(), m.NetNS, m.IDs); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(m.NetNS, unix.MNT_DETACH) })
	began := time.Now()
	g := start(t, w, m)
	waitLog(limit(t, 60*time.Second), t, m, "login:")
	t.Logf("login after %v", time.Since(began))

	var state string
	for ctx := limit(t, 30*time.Second); ctx.Err() == nil; {
		_, state = run(t, g, "systemctl is-system-running --wait")
		if !strings.Contains(state, "bus") { // the bus is not up yet
			break
		}
	}
	if _, failed := run(t, g, "systemctl --failed --no-legend"); strings.TrimSpace(state) != "running" {
		t.Errorf("the system is %q; failed: %s", state, failed)
	}
	for _, script := range []string{
		"test -d /sys/fs/cgroup/system.slice", "ip link set lo up",
		"test $(systemd-detect-virt) = container-other",
	} {
		if code, said := run(t, g, script); code != 0 {
			t.Errorf("%s: %d, %s", script, code, said)
		}
	}
	var out bytes.Buffer
	code, err := g.(engine.Execer).Exec(context.Background(), engine.Process{Args: []string{"id", "-un"}, User: "daemon", Stdout: &out})
	if err != nil || code != 0 || out.String() != "daemon\n" {
		t.Errorf("as another user: %d, %v, %q", code, err, &out)
	}
	began = time.Now()
	if err := g.Stop(limit(t, 10*time.Second), engine.Graceful); err != nil {
		t.Fatal(err)
	}
	select {
	case <-g.Done():
	case <-limit(t, 60*time.Second).Done():
		t.Fatal("systemd does not power off")
	}
	t.Logf("off after %v: %+v", time.Since(began), g.Exit())
	if err := g.Release(limit(t, 20*time.Second)); err != nil {
		t.Error(err)
	}
}

// shiftTree moves every owner into the guest's range.
func shiftTree(t testing.TB, root string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if err := unix.Lchown(path, base+int(st.Uid), base+int(st.Gid)); err != nil {
			return err
		}
		if d.Type()&os.ModeSymlink != 0 {
			return nil
		}
		return unix.Chmod(path, st.Mode&0o7777) // chown has cleared set-user-ID bits
	})
	if err != nil {
		t.Fatal(err)
	}
}
