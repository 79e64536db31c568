package oci_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
)

func limit(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func start(t testing.TB, w *world, m *engine.Machine) engine.Guest {
	t.Helper()
	g, err := w.engine(t).Launch(limit(t, 20*time.Second), m)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// run runs a shell script in the guest and returns its exit code and all that it says.
func run(t testing.TB, g engine.Guest, script string) (int, string) {
	t.Helper()
	var out bytes.Buffer
	code, err := g.(engine.Execer).Exec(limit(t, 20*time.Second), engine.Process{
		Args: []string{"/bin/sh", "-c", "exec 2>&1; " + script}, Stdout: &out,
	})
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return code, out.String()
}

// TestConfinement tries to get out, as the guest's root.
func TestConfinement(t *testing.T) {
	w := newWorld(t)
	m := w.machine(t, "confined")
	secrets := filepath.Join(w.dir, "secrets")
	open, closed := filepath.Join(secrets, "granted"), filepath.Join(secrets, "kept")
	for _, dir := range []string{secrets, open, closed} {
		if err := os.Mkdir(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	write := func(path string, owner int) {
		if err := os.WriteFile(path, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(open, "mine"), 0)
	write(filepath.Join(open, "theirs"), base+1<<20) // another server's
	write(filepath.Join(closed, "secret"), 0)
	if err := os.Symlink("../kept", filepath.Join(open, "way-out")); err != nil {
		t.Fatal(err)
	}
	m.Grants = []api.Grant{
		{Kind: api.GrantDirectory, Source: open, Target: "/mnt/open"},
		{Kind: api.GrantDirectory, Source: open, Target: "/mnt/read-only", ReadOnly: true},
	}
	g := start(t, w, m)

	for _, allowed := range []string{
		"test \"$(cat /mnt/open/mine)\" = secret", "echo x > /mnt/open/new", "test $(stat -c %u /mnt/open/new) = 0",
		"cat /mnt/read-only/mine", "mount -t tmpfs tmpfs /mnt && umount /mnt", "hostname other",
		"test $(grep -c . /proc/self/uid_map) = 1", "test -w /sys/fs/cgroup/cgroup.procs",
	} {
		if code, said := run(t, g, allowed); code != 0 {
			t.Errorf("a system should be able to: %s: %d, %s", allowed, code, said)
		}
	}
	for _, refused := range []string{
		"mknod /root/null c 1 3", "mknod /tmp/disk b 8 0", "head -c 1 /dev/mem", "head -c 1 /dev/kmsg",
		"echo h > /proc/sysrq-trigger", "echo x > /proc/sys/kernel/core_pattern", "echo 1 > /proc/sys/vm/drop_caches",
		"mount -t devtmpfs devtmpfs /mnt", "mount -t ext4 /dev/vda /mnt", "mount -t debugfs debugfs /mnt",
		"head -c 1 /proc/kcore | grep -q .", "mount -o remount,rw /sys && echo 1 > /sys/kernel/mm/ksm/run",
		"cat /mnt/open/theirs", "chmod 777 /mnt/open/theirs", "cat /mnt/open/../kept/secret", "cat /mnt/open/way-out/secret",
		"echo x > /mnt/read-only/new", "mount -o remount,bind,rw /mnt/read-only",
		"unshare -U true", "echo 0 > /proc/1/oom_score_adj && echo -1000 > /proc/1/oom_score_adj",
		"ls /sys/fs/cgroup/.. | grep -q unified", "echo 1 > /sys/fs/cgroup/cgroup.max.descendants_no_such",
		"echo $$ > /sys/fs/cgroup/../cgroup.procs",
	} {
		if code, said := run(t, g, refused); code == 0 {
			t.Errorf("the guest could do it: %s: %s", refused, said)
		}
	}
	run(t, g, "umount /mnt/read-only; echo x > /mnt/read-only/mine") // into the guest's own root, if anywhere
	if data, err := os.ReadFile(filepath.Join(open, "mine")); err != nil || string(data) != "secret" {
		t.Errorf("a directory granted read-only was written to: %q, %v", data, err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(open, "new"), &st); err != nil || st.Uid != 0 {
		t.Errorf("the guest's file belongs to %d, %v; want 0, as the directory's own", st.Uid, err)
	}
	if status := hostFile(t, g.PID(), "status"); !strings.Contains(status, "Seccomp:\t2") {
		t.Error("the guest's init has no filter")
	}
	if code, said := run(t, g, "touch /root/made"); code != 0 {
		t.Fatal(code, said)
	}
	if err := unix.Lstat(filepath.Join(m.Root.Path, "root/made"), &st); err != nil || st.Uid != base {
		t.Errorf("on the host the guest's root is %d, %v; want %d", st.Uid, err, base)
	}
}

func hostFile(t testing.TB, pid int, name string) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestGrantThroughLink: a path that the guest of an earlier grant could have bent is refused, and nothing is left.
func TestGrantThroughLink(t *testing.T) {
	w := newWorld(t)
	m := w.machine(t, "link")
	bent := filepath.Join(w.dir, "bent")
	if err := os.Symlink("/etc", bent); err != nil {
		t.Fatal(err)
	}
	for _, grant := range []api.Grant{
		{Kind: api.GrantDirectory, Source: bent, Target: "/mnt"},
		{Kind: api.GrantDirectory, Source: bent + "/ssl", Target: "/mnt"},
		{Kind: api.GrantDevice, Source: bent + "/passwd", Target: "/dev/x"},
		{Kind: api.GrantDevice, Source: "/etc/passwd", Target: "/dev/x"},
	} {
		m.Grants = []api.Grant{grant}
		g, err := w.engine(t).Launch(limit(t, 20*time.Second), m)
		if err == nil {
			t.Fatalf("granted %+v to process %d", grant, g.PID())
		}
		if _, err := os.Stat(filepath.Join(m.RunDir, "oci")); err == nil {
			t.Error("a bundle is left")
		}
	}
}

// TestTargetThroughLink: a link in the guest's root leads a mount nowhere but within the root.
func TestTargetThroughLink(t *testing.T) {
	w := newWorld(t)
	m := w.machine(t, "target")
	granted, victim := filepath.Join(w.dir, "granted"), filepath.Join(w.dir, "victim")
	for _, dir := range []string{granted, victim} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(m.Root.Path, "data")
	if err := os.Symlink(victim, link); err != nil {
		t.Fatal(err)
	}
	m.Grants = []api.Grant{{Kind: api.GrantDirectory, Source: granted, Target: "/data/below"}}
	g := start(t, w, m)
	if code, said := run(t, g, "echo x > /data/below/file"); code != 0 {
		t.Errorf("%d, %s", code, said)
	}
	if left, _ := os.ReadDir(victim); len(left) > 0 {
		t.Errorf("the host's directory was written to: %v", left)
	}
	if _, err := os.Stat(filepath.Join(granted, "file")); err != nil {
		t.Error(err)
	}
}

// TestDevice grants a device that guests don't have, and one to be read only.
func TestDevice(t *testing.T) {
	w := newWorld(t)
	m := w.machine(t, "device")
	node := filepath.Join(w.dir, "kmsg")
	if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 11))); err != nil {
		t.Fatal(err)
	}
	m.Grants = []api.Grant{{Kind: api.GrantDevice, Source: node, Target: "/dev/log0", ReadOnly: true}}
	g := start(t, w, m)
	// It is there, it is the guest root's, and the kernel lets it be opened; what it gives is the kernel's affair.
	if code, said := run(t, g, "test -c /dev/log0 && test $(stat -c %u:%t:%T /dev/log0) = 0:1:b"); code != 0 {
		t.Error(code, said)
	}
	if code, said := run(t, g, "echo x > /dev/log0"); code == 0 {
		t.Error("written to a read-only device", said)
	}
}

// TestNesting: with the grant, the guest makes a guest.
func TestNesting(t *testing.T) {
	w := newWorld(t)
	m := w.machine(t, "nest")
	m.Grants = []api.Grant{{Kind: api.GrantNesting}}
	g := start(t, w, m)
	if code, said := run(t, g, "unshare -U -r -m -p -f sh -c 'mount -t proc proc /proc && test $$ = 1 && test $(id -u) = 0'"); code != 0 {
		t.Error(code, said)
	}
}

// TestNetNS: the guest's root rules in its network; one that is another's is refused.
func TestNetNS(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	maker := e.(engine.NetNSMaker)
	m := w.machine(t, "owned")
	m.NetNS = filepath.Join(w.dir, "netns")
	for range 2 {
		if err := maker.MakeNetNS(t.Context(), m.NetNS, m.IDs); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { unix.Unmount(m.NetNS, unix.MNT_DETACH) })
	before := inode(t, m.NetNS)
	g := start(t, w, m)
	if got := inode(t, fmt.Sprintf("/proc/%d/ns/net", g.PID())); got != before {
		t.Errorf("the guest is in network namespace %d, not %d", got, before)
	}
	for _, script := range []string{
		"ip link set lo up && ip addr add 10.1.2.3/24 dev lo && ping -c 1 -W 2 10.1.2.3",
		"ls /sys/class/net/lo",
		"test $(cat /proc/sys/net/ipv4/ip_unprivileged_port_start) = 0",
	} {
		if code, said := run(t, g, script); code != 0 {
			t.Errorf("%s: %d, %s", script, code, said)
		}
	}

	other := w.machine(t, "wrong")
	other.NetNS, other.IDs.Base = m.NetNS, base+1<<17
	if _, err := e.Launch(limit(t, 20*time.Second), other); err == nil || !strings.Contains(err.Error(), "belongs to ids") {
		t.Errorf("launched with another server's network: %v", err)
	}

	foreign := w.machine(t, "foreign")
	foreign.NetNS = "/proc/self/ns/net"
	if _, err := e.Launch(limit(t, 20*time.Second), foreign); err == nil || !strings.Contains(err.Error(), "MakeNetNS") {
		t.Errorf("launched in the host's own network: %v", err)
	}
}

func inode(t testing.TB, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}
