// Package local keeps the content of images in a directory of the host.
//
// Each image is a directory, named by its digest, that holds manifest.json and the image's parts. It is made under
// another name and renamed when it is whole, so that an image is there whole or not at all. Files are never written to
// afterwards; disks and kernels are readable by the users that engines run as, while trees, whose files may be setuid,
// lie in a directory that only root enters.
package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/image"
	"github.com/croftproject/croft/internal/image/build"
	"github.com/croftproject/croft/internal/image/sandbox"
	"github.com/croftproject/croft/internal/mounts"
)

// Options of a store.
type Options struct {
	Dir      string // where images are kept
	CacheDir string // where builds keep packages for the next time
	// Executable is started as "EXECUTABLE sandbox-unpack JOB" to parse what was uploaded; it then calls unpack.Main with
	// the arguments after the command. Default: the running program.
	Executable string
	// Groups are where what was uploaded is parsed, and what is built is made, within limits; nil: in the caller's control group.
	Groups sandbox.Groups
	// Reserve is what is kept of the store's file system for the host: no image is made of it. nil: nothing.
	Reserve func() api.Bytes
	Logger  *slog.Logger
}

// Store is an image.Store in a directory.
type Store struct {
	o Options
	// building lets one build of a name run at a time; a second one waits, and finds the packages in the cache.
	building sync.Mutex
}

var _ image.Store = (*Store)(nil)

const (
	manifestName = "manifest.json"
	makingPrefix = ".making-"
)

// New readies the store at o.Dir and sweeps away what was interrupted.
func New(o Options) (*Store, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Executable == "" {
		var err error
		if o.Executable, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	for _, dir := range []*string{&o.Dir, &o.CacheDir} {
		var err error
		if *dir, err = filepath.Abs(*dir); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(o.Dir, 0o711); err != nil {
		return nil, fmt.Errorf("make image store: %w", err)
	}
	if err := os.MkdirAll(o.CacheDir, 0o700); err != nil {
		return nil, fmt.Errorf("make image cache: %w", err)
	}
	// Programs first: they write to the directories.
	if o.Groups != nil {
		if err := sandbox.Sweep(o.Groups); err != nil {
			return nil, err
		}
	}
	entries, err := os.ReadDir(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("read image store: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), makingPrefix) {
			if err := mounts.RemoveAll(filepath.Join(o.Dir, e.Name())); err != nil {
				return nil, fmt.Errorf("sweep image store: %w", err)
			}
		}
	}
	return &Store{o: o}, nil
}

// Build implements image.Store.
func (s *Store) Build(ctx context.Context, name string, progress func(string, int)) (image.Content, error) {
	recipe, ok := build.Recipes[name]
	if !ok {
		return image.Content{}, fmt.Errorf("no built-in image is named %q", name)
	}
	if progress == nil {
		progress = func(string, int) {}
	}
	s.building.Lock()
	defer s.building.Unlock()
	ctx, end := s.guarded(ctx)
	defer end()
	c, err := s.buildNew(ctx, recipe, progress)
	if err != nil {
		return image.Content{}, fmt.Errorf("build image %s: %w", name, reason(ctx, err))
	}
	return c, nil
}

func (s *Store) buildNew(ctx context.Context, recipe build.Recipe, progress func(string, int)) (image.Content, error) {
	if _, err := s.room(); err != nil {
		return image.Content{}, err
	}
	making, err := s.making()
	if err != nil {
		return image.Content{}, err
	}
	defer mounts.RemoveAll(making)
	c, err := recipe(ctx, build.Options{CacheDir: s.o.CacheDir, Logger: s.o.Logger, Groups: s.o.Groups, Progress: progress}, making)
	if err != nil {
		return image.Content{}, err
	}
	progress("keep", 95)
	return s.keep(making, c)
}

// making makes a directory for an image in the making.
func (s *Store) making() (string, error) {
	dir, err := os.MkdirTemp(s.o.Dir, makingPrefix)
	if err != nil {
		return "", fmt.Errorf("make image: %w", err)
	}
	// Engines' users pass through to disks and kernels.
	return dir, os.Chmod(dir, 0o711)
}

// keep gives the finished image in dir its place. Where the same content is kept already, that stays.
func (s *Store) keep(dir string, c image.Content) (image.Content, error) {
	size, err := usage(dir)
	if err != nil {
		return image.Content{}, fmt.Errorf("keep image: %w", err)
	}
	c.Size = size
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return image.Content{}, err
	}
	if err := os.WriteFile(filepath.Join(dir, manifestName), text, 0o600); err != nil {
		return image.Content{}, fmt.Errorf("keep image: %w", err)
	}
	place, err := s.place(c.Digest)
	if err != nil {
		return image.Content{}, err
	}
	// Whoever finds the image finds all of it, even after a loss of power.
	if err := syncAll(dir); err != nil {
		return image.Content{}, fmt.Errorf("keep image: %w", err)
	}
	err = os.Rename(dir, place)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
		have, err := s.get(c.Digest)
		if !errors.Is(err, image.ErrNotFound) {
			return have, err
		}
		if err := s.Remove(context.Background(), c.Digest); err != nil {
			return image.Content{}, err
		}
		if err := os.Rename(dir, place); err != nil {
			return image.Content{}, fmt.Errorf("keep image: %w", err)
		}
	} else if err != nil {
		return image.Content{}, fmt.Errorf("keep image: %w", err)
	}
	if err := syncAll(s.o.Dir); err != nil {
		return image.Content{}, fmt.Errorf("keep image: %w", err)
	}
	return absolute(place, c), nil
}

// syncAll has the file system that a directory is on reach the disk (syncfs(2)): an image can be a hundred thousand
// files.
func syncAll(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// Get implements image.Store.
func (s *Store) Get(_ context.Context, digest string) (image.Content, error) { return s.get(digest) }

func (s *Store) get(digest string) (image.Content, error) {
	place, err := s.place(digest)
	if err != nil {
		return image.Content{}, err
	}
	text, err := os.ReadFile(filepath.Join(place, manifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return image.Content{}, fmt.Errorf("%w: %s", image.ErrNotFound, digest)
	}
	if err != nil {
		return image.Content{}, fmt.Errorf("read image %s: %w", digest, err)
	}
	// What a loss of power leaves of a manifest that never reached the disk.
	if len(bytes.Trim(text, "\x00")) == 0 {
		return image.Content{}, fmt.Errorf("%w: the manifest of %s is empty", image.ErrNotFound, digest)
	}
	var c image.Content
	if err := json.Unmarshal(text, &c); err != nil {
		return image.Content{}, fmt.Errorf("read manifest of image %s: %w", digest, err)
	}
	return absolute(place, c), nil
}

// Remove implements image.Store.
func (s *Store) Remove(_ context.Context, digest string) error {
	place, err := s.place(digest)
	if err != nil {
		return err
	}
	// Renamed first: half an image must never be found.
	removing := filepath.Join(s.o.Dir, makingPrefix+"remove-"+filepath.Base(place))
	if err := mounts.RemoveAll(removing); err != nil {
		return fmt.Errorf("remove image %s: %w", digest, err)
	}
	if err := os.Rename(place, removing); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("remove image %s: %w", digest, err)
	}
	if err := mounts.RemoveAll(removing); err != nil {
		return fmt.Errorf("remove image %s: %w", digest, err)
	}
	return nil
}

// List implements image.Store.
func (s *Store) List(context.Context) ([]string, error) {
	entries, err := os.ReadDir(s.o.Dir)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	digests := []string{}
	for _, e := range entries {
		if digest := digestPrefix + e.Name(); isDigest(digest) {
			digests = append(digests, digest)
		}
	}
	return digests, nil
}

const digestPrefix = "sha256:"

func isDigest(s string) bool {
	hex, ok := strings.CutPrefix(s, digestPrefix)
	return ok && len(hex) == 64 && strings.Trim(hex, "0123456789abcdef") == ""
}

// place is the directory of an image.
func (s *Store) place(digest string) (string, error) {
	if !isDigest(digest) {
		return "", fmt.Errorf("%w: %q is no digest", image.ErrNotFound, digest)
	}
	return filepath.Join(s.o.Dir, strings.TrimPrefix(digest, digestPrefix)), nil
}

// absolute makes the paths of a manifest, which are relative to the image's directory, absolute.
func absolute(dir string, c image.Content) image.Content {
	for _, path := range []*string{&c.Tree, &c.RootFS, &c.Disk, &c.ISO, &c.Kernel, &c.Initrd, &c.Modules} {
		if *path != "" {
			*path = filepath.Join(dir, *path)
		}
	}
	return c
}

// usage is the room that the files below a directory take.
func usage(dir string) (api.Bytes, error) {
	total := api.Bytes(0)
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		total += api.Bytes(st.Blocks * 512)
		return nil
	})
	return total, err
}
