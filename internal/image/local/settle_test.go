package local

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/image"
	"github.com/croftproject/croft/internal/image/unpack"
)

// A parser that was taken over can leave anything in its work directory, and say what it likes of it.
func TestSandboxIsNotTrusted(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("secret"), 0o600))
	directory := t.TempDir()
	for name, c := range map[string]struct {
		format, file string
		plant        func(path string) error
	}{
		"disk is a link":       {"qcow2", unpack.DiskName, func(path string) error { return os.Symlink(secret, path) }},
		"upload is a link":     {"raw", unpack.UploadName, func(path string) error { return os.Symlink(secret, path) }},
		"ISO has another name": {"iso", unpack.UploadName, func(path string) error { return os.Link(secret, path) }},
		"disk is a pipe":       {"raw", unpack.UploadName, func(path string) error { return unix.Mkfifo(path, 0o600) }},
		"tree is a link":       {"tree", unpack.TreeName, func(path string) error { return os.Symlink(directory, path) }},
		"tree is a file":       {"oci", unpack.TreeName, func(path string) error { return os.WriteFile(path, nil, 0o600) }},
		"disk is no qcow2":     {"qcow2", unpack.DiskName, func(path string) error { return os.WriteFile(path, make([]byte, 4096), 0o600) }},
		"disk has a backing file": {"qcow2", unpack.DiskName, func(path string) error {
			out, err := exec.Command("qemu-img", "create", "-f", "qcow2", "-b", secret, "-F", "raw", path, "1M").CombinedOutput()
			if errors.Is(err, exec.ErrNotFound) {
				t.Skip("qemu-img is not installed")
			}
			if err != nil {
				err = errors.New(string(bytes.TrimSpace(out)))
			}
			return err
		}},
		"disk is too large": {"raw", unpack.UploadName, func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<40))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			making := t.TempDir()
			stage := filepath.Join(making, stageName)
			must(t, os.Mkdir(stage, 0o700))
			must(t, c.plant(filepath.Join(stage, c.file)))
			if _, err := settle(making, stage, unpack.Result{Format: c.format}, api.GiB); err == nil {
				t.Error("it was taken")
			}
			st, err := os.Stat(secret)
			must(t, err)
			if st.Mode().Perm() != 0o600 {
				t.Errorf("mode %v was given to a file outside", st.Mode())
			}
		})
	}
}

// What a parser that was taken over says is another image's name is not.
func TestSandboxNamesNoImage(t *testing.T) {
	honest := newStore(t)
	genuine, err := importBytes(t, honest, rootTree(t))
	must(t, err)
	takenOver := honest.o
	takenOver.Executable = filepath.Join(t.TempDir(), "parser")
	script := "#!/bin/sh\nmkdir /proc/self/fd/3/tree && echo '" + `{"format":"tree","digest":"` + genuine.Digest + `"}` + "'\n"
	must(t, os.WriteFile(takenOver.Executable, []byte(script), 0o755))
	hostile, err := New(takenOver)
	must(t, err)
	for name, there := range map[string]bool{"where that is": true, "where that is not": false} {
		t.Run(name, func(t *testing.T) {
			if !there {
				must(t, honest.Remove(t.Context(), genuine.Digest))
			}
			c, err := importBytes(t, hostile, []byte("anything"))
			must(t, err)
			if c.Digest == genuine.Digest {
				t.Error("it was kept under the name that the parser gave")
			}
			got, err := importBytes(t, honest, rootTree(t))
			must(t, err)
			if got.Digest != genuine.Digest {
				t.Errorf("the same upload is kept as %s and %s", genuine.Digest, got.Digest)
			}
			if _, err := os.Stat(filepath.Join(got.Tree, "etc/hostname")); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSizeIsTheDisksOwn(t *testing.T) {
	making := t.TempDir()
	stage := filepath.Join(making, stageName)
	must(t, os.Mkdir(stage, 0o700))
	must(t, os.WriteFile(filepath.Join(stage, unpack.UploadName), make([]byte, 4096), 0o600))
	c, err := settle(making, stage, unpack.Result{Format: "raw", Virtual: 1}, api.GiB)
	must(t, err)
	if c.MinDisk != 4096 {
		t.Errorf("a disk of 4096 bytes needs %d", c.MinDisk)
	}
	if _, err := settle(making, stage, unpack.Result{Format: "vmdk"}, api.GiB); err == nil || errors.Is(err, image.ErrBad) {
		t.Errorf("an unknown answer: %v", err)
	}
}

func TestCloudInitIsTold(t *testing.T) {
	outside := t.TempDir()
	must(t, os.Mkdir(filepath.Join(outside, "cloud"), 0o755))
	file := func(stage string) error {
		return os.WriteFile(filepath.Join(stage, unpack.UploadName), make([]byte, 4096), 0o600)
	}
	tree := func(plant func(tree string) error) func(string) error {
		return func(stage string) error {
			dir := filepath.Join(stage, unpack.TreeName)
			return errors.Join(os.Mkdir(dir, 0o755), plant(dir))
		}
	}
	for name, c := range map[string]struct {
		format string
		make   func(stage string) error
		want   bool
	}{
		"raw": {"raw", file, true},
		"iso": {"iso", file, true},
		"qcow2": {"qcow2", func(stage string) error {
			return exec.Command("qemu-img", "create", "-q", "-f", "qcow2", filepath.Join(stage, unpack.DiskName), "1M").Run()
		}, true},
		"tree with it":  {"tree", tree(func(dir string) error { return os.MkdirAll(filepath.Join(dir, "etc/cloud"), 0o755) }), true},
		"tree without":  {"tree", tree(func(dir string) error { return os.Mkdir(filepath.Join(dir, "etc"), 0o755) }), false},
		"empty tree":    {"tree", tree(func(string) error { return nil }), false},
		"etc leads out": {"tree", tree(func(dir string) error { return os.Symlink(outside, filepath.Join(dir, "etc")) }), false},
		"cloud leads out": {"tree", tree(func(dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "etc"), 0o755), os.Symlink(outside, filepath.Join(dir, "etc/cloud")))
		}), false},
		"cloud is a file": {"tree", tree(func(dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "etc"), 0o755), os.WriteFile(filepath.Join(dir, "etc/cloud"), nil, 0o644))
		}), false},
	} {
		t.Run(name, func(t *testing.T) {
			making := t.TempDir()
			stage := filepath.Join(making, stageName)
			must(t, os.Mkdir(stage, 0o700))
			must(t, c.make(stage))
			got, err := settle(making, stage, unpack.Result{Format: c.format}, api.GiB)
			must(t, err)
			if got.CloudInit != c.want {
				t.Errorf("cloud-init is %v, want %v", got.CloudInit, c.want)
			}
		})
	}
}

// A loss of power can leave an image's name without its content.
func TestImageWithoutAManifestIsMadeAnew(t *testing.T) {
	s := newStore(t)
	c, err := importBytes(t, s, rootTree(t))
	must(t, err)
	manifest := filepath.Join(filepath.Dir(filepath.Dir(c.Tree)), manifestName)
	must(t, os.WriteFile(manifest, nil, 0o600))
	must(t, os.RemoveAll(c.Tree))
	if _, err := s.Get(t.Context(), c.Digest); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	_, err = importBytes(t, s, rootTree(t))
	must(t, err)
	if _, err := os.Stat(filepath.Join(c.Tree, "etc/hostname")); err != nil {
		t.Error(err)
	}
	wantClean(t, s, 1)
}
