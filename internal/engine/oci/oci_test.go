package oci_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/enginetest"
	"github.com/croftproject/croft/internal/engine/oci"
	"github.com/croftproject/croft/internal/keeper"
)

// TestMain lets the test's program be the keeper, and what attends processes, too, as the croft program is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == oci.AttendCommand {
		os.Exit(oci.Attend(os.Args[2:]))
	}
	if len(os.Args) == 4 && os.Args[1] == "keeper" {
		if err := keeper.Run(context.Background(), os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// world is a host for guests: a keeper, the runtime's state and control groups of its own.
type world struct {
	dir    string // searchable by guests' users
	cgroup string
	keeper *keeper.Client
}

func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("guests are started by root only")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("no OCI runtime: ", err)
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("no busybox to make a root of: ", err)
	}
	w := &world{dir: tempDir(t), cgroup: "croft-test-" + strings.ToLower(rand.Text()[:8])}
	client, err := keeper.Connect(t.Context(), filepath.Join(w.dir, "k"), keeper.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w.keeper = client
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := client.Shutdown(ctx); err != nil {
			t.Errorf("end the keeper: %v", err)
		}
		client.Close()
		removeGroups(t, w.cgroup)
	})
	return w
}

func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

// groupDirs are the directories of a group in every hierarchy of the host.
func groupDirs(group string) []string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{filepath.Join("/sys/fs/cgroup", group)}
	}
	found, _ := os.ReadDir("/sys/fs/cgroup")
	var dirs []string
	for _, e := range found {
		if e.IsDir() { // links are second names
			dirs = append(dirs, filepath.Join("/sys/fs/cgroup", e.Name(), group))
		}
	}
	return dirs
}

func makeGroups(t testing.TB, group string) {
	t.Helper()
	for _, dir := range groupDirs(group) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil { // pure version 2
		control := filepath.Join("/sys/fs/cgroup", filepath.Dir(group), "cgroup.subtree_control")
		if err := os.WriteFile(control, []byte("+memory +pids"), 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		inherit(t, filepath.Dir(group), file)
		inherit(t, group, file)
	}
}

// inherit copies a setting of v1's cpuset from the parent: a group without takes no process (cpuset(7)).
func inherit(t testing.TB, group, file string) {
	t.Helper()
	dir := filepath.Join("/sys/fs/cgroup/cpuset", group)
	value, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
	if os.IsNotExist(err) {
		return
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, file), value, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// removeGroups removes a group with all below it; that processes are left in it is an error.
func removeGroups(t testing.TB, group string) {
	t.Helper()
	for _, dir := range groupDirs(group) {
		var below []string
		filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				below = append(below, path)
			}
			return nil
		})
		for i := len(below) - 1; i >= 0; i-- {
			if err := os.Remove(below[i]); err != nil {
				t.Errorf("group is left: %v", err)
			}
		}
	}
}

func (w *world) engine(testing.TB) engine.Engine {
	return oci.New(oci.Options{Keeper: w.keeper, Root: filepath.Join(w.dir, "rt"), Cgroup: w.cgroup})
}

const base = 700000

// machine is a system on busybox that waits for a signal to power off.
func (w *world) machine(t testing.TB, id string) *engine.Machine {
	t.Helper()
	m := w.bare(t, id)
	root := filepath.Join(w.dir, id, "root")
	busyboxTree(t, root)
	m.Root = engine.Root{Path: root}
	return m
}

// bare is a machine without a root.
func (w *world) bare(t testing.TB, id string) *engine.Machine {
	t.Helper()
	dir := filepath.Join(w.dir, id)
	m := &engine.Machine{
		ID: id, Name: "web", Tenant: "acme", Host: "web",
		Dir: filepath.Join(dir, "dir"), RunDir: filepath.Join(dir, "run"),
		Spec: &api.ServerSpec{
			Model: api.ModelOS, Engine: "runc", Image: "micro",
			CPU: api.CPU{Count: 1}, Memory: api.Memory{Limit: 256 << 20},
		},
		Cgroup: w.cgroup + "/" + id,
		IDs:    engine.IDRange{Base: base, Size: 65536},
	}
	for _, d := range []string{dir, m.Dir, m.RunDir} {
		if err := os.Mkdir(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	makeGroups(t, m.Cgroup)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := w.engine(t).Clean(ctx, m); err != nil {
			t.Errorf("clean: %v", err)
		}
	})
	return m
}

// busyboxTree makes a root with busybox's init, owned by the guest's root.
func busyboxTree(t testing.TB, root string) {
	t.Helper()
	for _, d := range []string{"", "bin", "sbin", "etc", "proc", "sys", "dev", "run", "tmp", "root", "var", "mnt"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]struct {
		data string
		mode os.FileMode
	}{
		"bin/busybox": {string(busybox), 0o755},
		"etc/passwd":  {"root:x:0:0:root:/root:/bin/sh\nwww:x:33:33:www:/var:/bin/sh\n", 0o644},
		"etc/group":   {"root:x:0:\nwww:x:33:\nlog:x:44:www\n", 0o644},
		"etc/inittab": {"::sysinit:/bin/echo userspace is up\n::respawn:/bin/sh\n::shutdown:/bin/echo going down\n", 0o644},
	}
	for name, f := range files {
		if err := os.WriteFile(filepath.Join(root, name), []byte(f.data), f.mode); err != nil {
			t.Fatal(err)
		}
	}
	links := map[string]string{"sbin/init": "/bin/busybox"}
	for _, applet := range strings.Fields("sh cat echo sleep stty id pwd kill mknod mount umount ls true poweroff reboot " +
		"head hostname ip ping env dd chmod ln touch stat grep unshare setpriv nc httpd rm") {
		links["bin/"+applet] = "busybox"
	}
	for name, to := range links {
		if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	chownTree(t, root, base)
}

func chownTree(t testing.TB, root string, by int) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, by, by)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// waitLog waits until the console log holds text.
func waitLog(ctx context.Context, t testing.TB, m *engine.Machine, text string) {
	t.Helper()
	for {
		data, _ := os.ReadFile(engine.ConsoleLog(m))
		if strings.Contains(string(data), text) {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("no %q on the console, which shows:\n%s", text, data)
		}
	}
}

func TestContract(t *testing.T) {
	w := newWorld(t)
	enginetest.Run(t, enginetest.Harness{
		New:     w.engine,
		Machine: w.machine,
		Ready: func(ctx context.Context, t testing.TB, m *engine.Machine) {
			waitLog(ctx, t, m, "userspace is up")
		},
		PowerOff: func(ctx context.Context, t testing.TB, m *engine.Machine) {
			c, err := w.keeper.Attach(ctx, m.ID, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write([]byte("\npoweroff\n")); err != nil {
				t.Fatal(err)
			}
		},
		Console: func(ctx context.Context, m *engine.Machine) (io.ReadWriteCloser, error) {
			return w.keeper.Attach(ctx, m.ID, nil)
		},
		Bad: []enginetest.BadSpec{
			{Name: "firmware", Change: func(s *api.ServerSpec) { s.Firmware = api.FirmwareUEFI }, Pointer: "/spec/firmware"},
			{Name: "CD-ROM", Change: func(s *api.ServerSpec) { s.CDROM = "x.iso" }, Pointer: "/spec/cdrom"},
			{Name: "huge pages", Change: func(s *api.ServerSpec) { s.Memory.HugePages = true }, Pointer: "/spec/memory/hugePages"},
			{Name: "capability without effect", Pointer: "/spec/grants/0/source", Change: func(s *api.ServerSpec) {
				s.Grants = []api.Grant{{Kind: api.GrantCapability, Source: "CAP_SYS_MODULE"}}
			}},
			{Name: "directory over proc", Pointer: "/spec/grants/0/target", Change: func(s *api.ServerSpec) {
				s.Grants = []api.Grant{{Kind: api.GrantDirectory, Source: "/srv", Target: "/proc/sys"}}
			}},
		},
		Leaks: func(_ testing.TB, m *engine.Machine) []string {
			var left []string
			for _, dir := range append(groupDirs(m.Cgroup+"/guest"), filepath.Join(w.dir, "rt", m.ID)) {
				if _, err := os.Stat(dir); err == nil {
					left = append(left, dir+" is left")
				}
			}
			return left
		},
	})
}
