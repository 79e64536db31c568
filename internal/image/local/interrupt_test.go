package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/cgroup"
	"github.com/croftproject/croft/internal/image"
	"github.com/croftproject/croft/internal/image/build"
	"github.com/croftproject/croft/internal/mounts"
)

const (
	// buildCommand has the test program build "test-mounts" as a daemon would: "build-for-ever STORE GROUP".
	buildCommand   = "build-for-ever"
	sharedVariable = "CROFT_TEST_SHARED"
	readyVariable  = "CROFT_TEST_READY"
)

// mountsForEver does what builders do to a tree, and never ends.
const mountsForEver = `set -e
mkdir -p tree/dev/shm tree/mnt tree/proc
mount --bind "$` + sharedVariable + `" tree/dev/shm
mount -t tmpfs none tree/mnt
mount -t proc -o ro proc tree/proc
touch tree/dev/shm/mine tree/mnt/mine
sleep 1000 &
echo ready >"$` + readyVariable + `"
exec sleep 1000`

func init() {
	build.Recipes["test-mounts"] = func(ctx context.Context, o build.Options, dir string) (image.Content, error) {
		_, err := o.Run(ctx, dir, "sh", "-c", mountsForEver)
		return image.Content{}, err
	}
}

// buildForEver is the daemon that is killed.
func buildForEver(store, group string) int {
	groups, err := cgroup.New(group)
	if err == nil {
		var s *Store
		if s, err = New(Options{Dir: store, CacheDir: store + "-cache", Groups: groups}); err == nil {
			_, err = s.Build(context.Background(), "test-mounts", nil)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// builder is one build of "test-mounts".
type builder struct {
	store  string
	shared string // other programs' files, which it mounts
	ready  *os.File
}

func newBuilder(t *testing.T) builder {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounts and control groups need root")
	}
	dir := t.TempDir()
	b := builder{store: filepath.Join(dir, "images"), shared: filepath.Join(dir, "shared")}
	must(t, os.Mkdir(b.shared, 0o700))
	must(t, os.WriteFile(filepath.Join(b.shared, "others"), nil, 0o600))
	fifo := filepath.Join(dir, "ready")
	must(t, unix.Mkfifo(fifo, 0o600))
	var err error
	b.ready, err = os.OpenFile(fifo, os.O_RDWR|unix.O_NONBLOCK, 0)
	must(t, err)
	t.Cleanup(func() { b.ready.Close() })
	t.Setenv(sharedVariable, b.shared)
	t.Setenv(readyVariable, fifo)
	return b
}

// mounted waits for the builder's mounts, and looks for them on this side.
func (b builder) mounted(t *testing.T) {
	t.Helper()
	must(t, b.ready.SetReadDeadline(time.Now().Add(30*time.Second)))
	if _, err := b.ready.Read(make([]byte, 16)); err != nil {
		t.Fatalf("the builder did not begin: %v", err)
	}
	b.wantNoMounts(t)
	if _, err := os.Stat(filepath.Join(b.shared, "mine")); err != nil {
		t.Fatalf("the builder's mount is not there: %v", err)
	}
}

func (b builder) wantNoMounts(t *testing.T) {
	t.Helper()
	if at, err := mounts.Below(b.store); err != nil || len(at) > 0 {
		t.Errorf("the builder's mounts are everybody's: %v, %v", at, err)
	}
}

// wantGone checks that nothing is left of the build, and that what it had mounted is.
func (b builder) wantGone(t *testing.T) {
	t.Helper()
	b.wantNoMounts(t)
	if entries, err := os.ReadDir(b.store); err != nil || len(entries) > 0 {
		t.Errorf("of the build is left: %v, %v", entries, err)
	}
	if _, err := os.Stat(filepath.Join(b.shared, "others")); err != nil {
		t.Errorf("other programs' files went with the build: %v", err)
	}
}

func newGroups(t *testing.T) (*cgroup.Tree, string) {
	t.Helper()
	name := fmt.Sprintf("croft-test-images-%d", os.Getpid())
	groups, err := cgroup.New(name)
	must(t, err)
	t.Cleanup(func() {
		if err := errors.Join(groups.Kill(context.Background(), ""), groups.Remove(context.Background(), "")); err != nil {
			t.Error(err)
		}
	})
	return groups, name
}

func TestCancelledBuildLeavesNothing(t *testing.T) {
	b := newBuilder(t)
	groups, _ := newGroups(t)
	s, err := New(Options{Dir: b.store, CacheDir: t.TempDir(), Groups: groups})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := s.Build(ctx, "test-mounts", nil)
		done <- err
	}()
	b.mounted(t)
	if names, err := groups.List(); err != nil || len(names) != 1 {
		t.Errorf("the builder's group: %v, %v", names, err)
	} else if u, err := groups.Usage(names[0]); err != nil || u.PIDs < 2 {
		t.Errorf("%d processes are in the builder's group, %v", u.PIDs, err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled build: %v", err)
	}
	if names, err := groups.List(); err != nil || len(names) > 0 {
		t.Errorf("groups are left: %v, %v", names, err)
	}
	b.wantGone(t)
}

func TestBuildEndsWithItsDaemon(t *testing.T) {
	b := newBuilder(t)
	groups, name := newGroups(t)
	self, err := os.Executable()
	must(t, err)
	daemon := exec.Command(self, buildCommand, b.store, name)
	daemon.Stderr = os.Stderr
	must(t, daemon.Start())
	t.Cleanup(func() { daemon.Process.Kill() })
	b.mounted(t)
	must(t, daemon.Process.Signal(unix.SIGKILL))
	_ = daemon.Wait() // "signal: killed"
	_, err = New(Options{Dir: b.store, CacheDir: t.TempDir(), Groups: groups})
	must(t, err)
	if names, err := groups.List(); err != nil || len(names) > 0 {
		t.Errorf("groups are left: %v, %v", names, err)
	}
	b.wantGone(t)
}

// What a program that still runs has mounted below an image in the making, on this side.
func TestSweepSparesWhatIsMounted(t *testing.T) {
	b := newBuilder(t)
	at := filepath.Join(b.store, makingPrefix+"1", "tree", "dev", "shm")
	must(t, os.MkdirAll(at, 0o700))
	must(t, unix.Mount(b.shared, at, "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	_, err := New(Options{Dir: b.store, CacheDir: t.TempDir()})
	must(t, err)
	b.wantGone(t)
}
