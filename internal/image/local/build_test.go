package local

import (
	"debug/elf"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/image"
	"github.com/croftproject/croft/internal/image/build"
)

// testCache outlives tests: packages are downloaded once.
const testCache = "/var/tmp/croft-test-cache"

func TestBuildMicro(t *testing.T) {
	c := buildTwice(t, "micro")
	if c.Ready != "croft: ready" || c.Disk == "" || c.RootFS == "" || c.Kernel == "" || c.Initrd == "" {
		t.Errorf("parts are missing: %+v", c)
	}
	busybox, err := elf.Open(filepath.Join(c.Tree, "bin/busybox"))
	must(t, err)
	defer busybox.Close()
	if libraries, err := busybox.ImportedLibraries(); err != nil || len(libraries) > 0 {
		t.Errorf("busybox needs %v, %v", libraries, err)
	}
	for _, name := range []string{"sbin/init", "bin/sh", "usr/bin/wget", "bin/ping", "bin/spin", "etc/inittab"} {
		if _, err := os.Lstat(filepath.Join(c.Tree, name)); err != nil {
			t.Error(err)
		}
	}
}

// The whole of Debian takes minutes to build, so that it is tried only where it is asked for: CROFT_TEST_DEBIAN=1.
func TestBuildDebian(t *testing.T) {
	if os.Getenv("CROFT_TEST_DEBIAN") == "" {
		t.Skip("takes minutes: set CROFT_TEST_DEBIAN=1")
	}
	c := buildTwice(t, "debian-12")
	for name, want := range map[string]string{"etc/debian_version": "12.", "etc/cloud/cloud.cfg.d/90_croft.cfg": "NoCloud", "etc/machine-id": ""} {
		if text := read(t, filepath.Join(c.Tree, name)); !strings.Contains(string(text), want) {
			t.Errorf("%s is %q", name, text)
		}
	}
	if keys, _ := filepath.Glob(filepath.Join(c.Tree, "etc/ssh/ssh_host_*")); len(keys) > 0 {
		t.Errorf("all servers would share the keys %v", keys)
	}
}

// buildTwice builds an image, and checks that building it again keeps what is there.
func buildTwice(t *testing.T, name string) image.Content {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("files of a root tree belong to root")
	}
	s, err := New(Options{Dir: filepath.Join(t.TempDir(), "images"), CacheDir: testCache})
	must(t, err)
	var steps []string
	first, err := s.Build(t.Context(), name, func(step string, percent int) { steps = append(steps, step) })
	if errors.Is(err, build.ErrMissing) {
		t.Skip(err)
	}
	must(t, err)
	if len(steps) < 3 {
		t.Errorf("progress was %v", steps)
	}
	var before unix.Stat_t
	must(t, unix.Stat(first.Kernel, &before))
	began := time.Now()
	second, err := s.Build(t.Context(), name, nil)
	must(t, err)
	t.Logf("built again in %v, takes %v", time.Since(began), second.Size)
	var after unix.Stat_t
	must(t, unix.Stat(second.Kernel, &after))
	if first.Digest != second.Digest || before.Ino != after.Ino {
		t.Errorf("the second build made %s, the first %s", second.Digest, first.Digest)
	}
	wantClean(t, s, 1)
	return second
}

func TestBuildUnknown(t *testing.T) {
	s := newStore(t)
	if _, err := s.Build(t.Context(), "windows", nil); err == nil {
		t.Error("an unknown image was built")
	}
	wantClean(t, s, 0)
}
