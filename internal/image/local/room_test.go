package local

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/image"
	"github.com/croftproject/croft/internal/image/build"
)

func init() {
	build.Recipes["test-fills"] = func(ctx context.Context, o build.Options, dir string) (image.Content, error) {
		_, err := o.Run(ctx, dir, "sh", "-c", "head -c 40M /dev/zero >big && exec sleep 1000")
		return image.Content{}, err
	}
}

// smallStore is on a file system of 48 MiB, of which some is kept for the host.
func smallStore(t *testing.T, reserve api.Bytes) *Store {
	t.Helper()
	newStore(t)
	dir := t.TempDir()
	must(t, unix.Mount("small", dir, "tmpfs", 0, "size=48m"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	s, err := New(Options{
		Dir: filepath.Join(dir, "images"), CacheDir: filepath.Join(dir, "cache"), Reserve: func() api.Bytes { return reserve },
	})
	must(t, err)
	return s
}

// wantShort checks that nothing is left, and that the error tells why.
func wantShort(t *testing.T, s *Store, err error, want string) {
	t.Helper()
	var short shortage
	if !errors.As(err, &short) || !errors.Is(err, unix.ENOSPC) || errors.Is(err, image.ErrBad) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want a shortage with %q", err, want)
	}
	wantClean(t, s, 0)
}

func TestImagesLeaveTheHostItsReserve(t *testing.T) {
	s := smallStore(t, 16*api.MiB)
	big := archive(t, entry{name: "big", data: strings.Repeat("x", 40<<20)})
	for name, data := range map[string][]byte{"receiving": big, "unpacking": gzipped(t, big)} {
		t.Run(name, func(t *testing.T) {
			_, err := importBytes(t, s, data)
			wantShort(t, s, err, "for the image, which takes more")
		})
	}
	t.Run("pulling", func(t *testing.T) {
		server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
		t.Cleanup(server.Close)
		where := strings.TrimPrefix(server.URL, "http://") + "/app:1"
		ref, err := name.ParseReference(where)
		must(t, err)
		img, err := mutate.AppendLayers(empty.Image, static.NewLayer(big, types.DockerUncompressedLayer))
		must(t, err)
		must(t, remote.Write(ref, img))
		_, err = s.Import(t.Context(), image.Source{Registry: where, PlainHTTP: true}, nil)
		wantShort(t, s, err, "is short of 8")
	})
	t.Run("others take it", func(t *testing.T) {
		ballast := filepath.Join(filepath.Dir(s.o.Dir), "ballast")
		slow := &slowUpload{then: func() { must(t, os.WriteFile(ballast, make([]byte, 40<<20), 0o600)) }}
		_, err := s.Import(t.Context(), image.Source{Reader: slow}, nil)
		wantShort(t, s, err, "16MiB are kept for the host")
		must(t, os.Remove(ballast))
	})
	t.Run("building", func(t *testing.T) {
		_, err := s.Build(t.Context(), "test-fills", nil)
		wantShort(t, s, err, "16MiB are kept for the host")
	})
	_, err := importBytes(t, s, rootTree(t))
	must(t, err)
}

// slowUpload gives a byte at a time, and never ends.
type slowUpload struct{ then func() }

func (u *slowUpload) Read(p []byte) (int, error) {
	if u.then != nil {
		u.then()
		u.then = nil
	}
	return copy(p[:1], "x"), nil
}

func TestNoImageIsBegunWithoutRoom(t *testing.T) {
	s := smallStore(t, 100*api.MiB)
	_, err := s.Import(t.Context(), image.Source{Reader: bytes.NewReader(rootTree(t))}, nil)
	wantShort(t, s, err, "is short of 52MiB")
	_, err = s.Build(t.Context(), "test-fills", nil)
	wantShort(t, s, err, "is short of 52MiB")
}

// Most of a qcow2 disk is not there: what counts is what it takes.
func TestSparseDiskLargerThanTheRoom(t *testing.T) {
	s := smallStore(t, 16*api.MiB)
	path := filepath.Join(t.TempDir(), "disk")
	qemuImg(t, "create", "-q", "-f", "qcow2", path, "1G")
	c, err := s.Import(t.Context(), image.Source{Reader: bytes.NewReader(read(t, path))}, nil)
	must(t, err)
	if c.MinDisk != api.GiB {
		t.Errorf("the disk has %v", c.MinDisk)
	}
}
