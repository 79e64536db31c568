package uml_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/cgroup"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/uml"
)

// A guest's memory is on a file system of its own, of its size, whose pages are charged to the server's cgroup; with the
// guest it goes.
func TestMemoryIsItsOwn(t *testing.T) {
	w := newWorld(t)
	m := w.machine(t, "memory")
	g, s := w.boot(t, m)
	dir := filepath.Join(m.RunDir, "memory")
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if size := api.Bytes(st.Blocks) * api.Bytes(st.Bsize); st.Type != unix.TMPFS_MAGIC || size < m.Spec.Memory.Limit || size > m.Spec.Memory.Limit+8*api.MiB {
		t.Errorf("file system of type %#x has %v for a guest of %v", st.Type, size, m.Spec.Memory.Limit)
	}
	if want := int64(unix.ST_NOSUID | unix.ST_NODEV); st.Flags&want != want {
		t.Errorf("mounted with flags %#x", st.Flags)
	}
	var root unix.Stat_t
	if err := unix.Stat(dir, &root); err != nil || root.Uid != m.IDs.Base || root.Mode&0o777 != 0o700 {
		t.Errorf("it belongs to user %d with mode %#o, %v", root.Uid, root.Mode&0o777, err)
	}

	used := func() api.Bytes {
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		return api.Bytes(st.Blocks-st.Bfree) * api.Bytes(st.Bsize)
	}
	before, charged := used(), w.memory(t, m).guest
	s.run("mount -t tmpfs -o size=30m none /mnt; head -c 20000000 /dev/urandom > /mnt/x")
	const least = 19_000_000 // some of it was in use before
	if grown := used() - before; grown < least {
		t.Errorf("20 MB written in the guest fill %v of the file system", grown)
	}
	if grown := w.memory(t, m).guest - charged; grown < least {
		t.Errorf("20 MB written in the guest are charged as %v", grown)
	}

	if err := g.Stop(within(t, 10*time.Second), engine.Kill); err != nil {
		t.Fatal(err)
	}
	<-g.Done()
	if err := g.Release(within(t, 30*time.Second)); err != nil {
		t.Fatal(err)
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), m.RunDir) {
		t.Errorf("the file system is left, %v", err)
	}
}

// A guest whose processes outgrow its group ends for want of memory, and its exit says so.
func TestExitOutOfMemory(t *testing.T) {
	w := newWorld(t)
	m := w.machine(t, "oom")
	g, s := w.boot(t, m)
	usage, err := w.groups.Usage(m.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.groups.Set(m.ID, cgroup.Limits{Shares: 100, MemoryLimit: usage.Memory + 4*api.MiB, PIDs: 4096}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(s.conn, "mount -t tmpfs -o size=60m none /mnt; head -c 40000000 /dev/urandom > /mnt/x\n"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-g.Done():
	case <-within(t, 60*time.Second).Done():
		t.Fatal("the guest has not ended")
	}
	if exit := g.Exit(); exit.Reason != "oom" {
		t.Errorf("got %+v", exit)
	}
}

// A probe leaves nothing mounted, and takes away what a daemon that was killed in one has left.
func TestProbeMemory(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.dir, "uml-probe-memory")
	e := uml.New(uml.Config{Keeper: w.keeper, Groups: w.groups, RunDir: w.dir})
	if err := errors.Join(os.Mkdir(dir, 0), unix.Mount("croft-memory", dir, "tmpfs", 0, "size=1m")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	if r := e.Probe(within(t, time.Minute)); !r.Available {
		t.Error(r.Reason)
	}
	if left, _ := filepath.Glob(filepath.Join(w.dir, "uml-probe*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
