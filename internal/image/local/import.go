package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/image"
	"github.com/croftproject/croft/internal/image/sandbox"
	"github.com/croftproject/croft/internal/image/unpack"
	"github.com/croftproject/croft/internal/mounts"
)

const (
	// stageName is the sandbox's work directory in the directory of an image in the making.
	stageName = ".stage"
	// defaultLimit holds where the caller names none.
	defaultLimit = 64 * api.GiB
	// mostFiles is more than any distribution's tree holds.
	mostFiles = 2_000_000
	// unpackTimeout is for the largest image on a slow disk.
	unpackTimeout = 30 * time.Minute
	// smallestTree is room for what a system writes at its first start.
	smallestTree = 64 * api.MiB
)

// Import implements image.Store. The digest follows from what was uploaded, byte for byte, or from the manifest in the
// registry, and from the format that it was found to have.
func (s *Store) Import(ctx context.Context, src image.Source, progress func(string, int)) (image.Content, error) {
	if progress == nil {
		progress = func(string, int) {}
	}
	if src.Limit <= 0 {
		src.Limit = defaultLimit
	}
	ctx, end := s.guarded(ctx)
	defer end()
	c, err := s.importNew(ctx, src, progress)
	if err != nil {
		return image.Content{}, fmt.Errorf("import image: %w", reason(ctx, err))
	}
	return c, nil
}

func (s *Store) importNew(ctx context.Context, src image.Source, progress func(string, int)) (image.Content, error) {
	making, err := s.making()
	if err != nil {
		return image.Content{}, err
	}
	defer mounts.RemoveAll(making)
	stage := filepath.Join(making, stageName)
	if err := os.Mkdir(stage, 0o700); err != nil {
		return image.Content{}, err
	}
	c, err := s.importTo(ctx, making, stage, src, progress)
	if err != nil {
		return image.Content{}, err
	}
	progress("keep", 95)
	return s.keep(making, c)
}

func (s *Store) importTo(ctx context.Context, making, stage string, src image.Source, progress func(string, int)) (image.Content, error) {
	job := unpack.Job{Limit: src.Limit, Files: mostFiles, Registry: src.Registry != ""}
	var from origin
	var err error
	if job.Registry {
		progress("pull", 0)
		from, err = s.pull(ctx, src, filepath.Join(stage, unpack.ArchiveName))
	} else {
		progress("receive", 0)
		from, err = s.receive(ctx, src, filepath.Join(stage, unpack.UploadName))
	}
	if err != nil {
		return image.Content{}, err
	}
	progress("unpack", 50)
	result, err := s.unpack(ctx, stage, job)
	if err != nil {
		return image.Content{}, err
	}
	progress("check", 90)
	c, err := settle(making, stage, result, src.Limit)
	if err != nil {
		return image.Content{}, err
	}
	c.Digest = from.digest(c.Format)
	return c, mounts.RemoveAll(stage)
}

// origin is where an image came from, as the parent saw it: "upload" or "manifest", and the digest of that.
type origin struct{ kind, sum string }

// digest names what was made of an upload. The sandbox has no word in it but for the format: a parser that was taken over
// could name what it made as another image is named, and have it kept in that one's place.
func (o origin) digest(format string) string {
	sum := sha256.Sum256([]byte("import " + format + "\n" + o.kind + " " + o.sum + "\n"))
	return digestPrefix + hex.EncodeToString(sum[:])
}

// receive writes the upload to a file.
func (s *Store) receive(ctx context.Context, src image.Source, path string) (origin, error) {
	if src.Reader == nil {
		return origin{}, errors.New("no source is given")
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return origin{}, err
	}
	defer file.Close()
	room, err := s.room()
	if err != nil {
		return origin{}, err
	}
	sum := sha256.New()
	limited := io.LimitReader(contextReader{ctx, src.Reader}, int64(min(src.Limit, room.left()))+1)
	n, err := io.Copy(io.MultiWriter(file, sum), limited)
	if err != nil {
		return origin{}, fmt.Errorf("receive: %w", err)
	}
	if api.Bytes(n) > src.Limit {
		return origin{}, fmt.Errorf("%w: it is larger than the limit of %v", image.ErrBad, src.Limit)
	}
	if api.Bytes(n) > room.left() {
		return origin{}, room.lacks(0)
	}
	return origin{"upload", digestPrefix + hex.EncodeToString(sum.Sum(nil))}, file.Close()
}

// contextReader ends a stream when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// unpack has the sandbox do the job in the room that there is.
func (s *Store) unpack(ctx context.Context, stage string, job unpack.Job) (unpack.Result, error) {
	room, err := s.room()
	if err != nil {
		return unpack.Result{}, err
	}
	job.Room = room.left()
	text, err := json.Marshal(job)
	if err != nil {
		return unpack.Result{}, err
	}
	out, err := sandbox.Run(ctx, sandbox.Command{
		Executable: s.o.Executable, Args: []string{unpack.Command, string(text)}, Dir: stage,
		// A disk takes a little more than it holds, for its tables.
		FileLimit: job.Limit + job.Limit/64 + api.MiB, Timeout: unpackTimeout, Groups: s.o.Groups,
	})
	if errors.Is(err, sandbox.ErrTimeout) {
		return unpack.Result{}, fmt.Errorf("%w: unpacking it %w", image.ErrBad, err)
	}
	if err != nil {
		return unpack.Result{}, err
	}
	var r unpack.Result
	if err := json.Unmarshal(out, &r); err != nil {
		return unpack.Result{}, fmt.Errorf("the sandbox's answer is damaged: %w", err)
	}
	switch {
	case r.Large && job.Room < job.Limit:
		return unpack.Result{}, room.lacks(0)
	case r.Bad != "":
		return unpack.Result{}, fmt.Errorf("%w: %s", image.ErrBad, r.Bad)
	case r.Full:
		return unpack.Result{}, fmt.Errorf("unpack: %s: %w", r.Failure, unix.ENOSPC)
	case r.Failure != "":
		return unpack.Result{}, fmt.Errorf("unpack: %s", r.Failure)
	}
	return r, nil
}

// settle moves what the sandbox made to its place in the image's directory. Of the sandbox's word and work nothing is
// taken on trust: a parser that was taken over may have put links there, or a disk that reaches outside itself.
func settle(making, stage string, r unpack.Result, limit api.Bytes) (c image.Content, err error) {
	c = image.Content{Format: r.Format, MinDisk: r.Virtual, App: r.App}
	switch r.Format {
	case "tree", "oci":
		c.Models, c.MinDisk = []api.Model{api.ModelOS}, smallestTree
		c.Tree = filepath.Join(privateName, unpack.TreeName)
		c.CloudInit, err = settleTree(making, stage, c.Tree)
		return c, err
	case "qcow2":
		c.Disk, c.DiskFormat = unpack.DiskName, "qcow2"
	case "raw":
		c.Disk, c.DiskFormat = "disk.raw", "raw"
	case "iso":
		c.ISO = "cdrom.iso"
	default:
		return c, fmt.Errorf("the sandbox answered the unknown format %q", r.Format)
	}
	c.Models = []api.Model{api.ModelFull}
	// What is on a disk is not looked at; a guest that reads no seed has one more disk that it lets be.
	c.CloudInit = true
	from := unpack.UploadName
	if r.Format == "qcow2" {
		from = unpack.DiskName
	}
	file, err := openMade(stage, from, unix.S_IFREG)
	if err != nil {
		return c, err
	}
	defer file.Close()
	if c.MinDisk, err = settleDisk(file, r.Format, limit); err != nil {
		return c, err
	}
	if err := os.Rename(filepath.Join(stage, from), filepath.Join(making, c.Disk+c.ISO)); err != nil {
		return c, err
	}
	return c, errors.Join(file.Chown(0, 0), file.Chmod(0o644), file.Sync())
}

// settleDisk looks at a disk once more, and returns its size; of an ISO, 0: it takes no disk.
func settleDisk(file *os.File, format string, limit api.Bytes) (api.Bytes, error) {
	st, err := file.Stat()
	if err != nil {
		return 0, err
	}
	size := api.Bytes(st.Size())
	switch {
	case format == "qcow2":
		return unpack.CheckQcow2(file, limit)
	case size > limit:
		return 0, fmt.Errorf("%w: it is larger than the limit of %v", image.ErrBad, limit)
	case format == "raw":
		return size, nil
	}
	return 0, nil
}

// settleTree moves a tree into the directory that only root enters, and tells whether cloud-init is in it.
func settleTree(making, stage, to string) (cloudInit bool, err error) {
	dir, err := openMade(stage, unpack.TreeName, unix.S_IFDIR)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	if err := os.Mkdir(filepath.Join(making, privateName), 0o700); err != nil {
		return false, err
	}
	return hasCloudInit(dir), os.Rename(filepath.Join(stage, unpack.TreeName), filepath.Join(making, to))
}

// hasCloudInit looks for the directory of cloud-init's configuration in a tree. A link on the way is not followed: it is
// the guest's, and leads elsewhere here.
func hasCloudInit(tree *os.File) bool {
	fd, err := unix.Openat2(int(tree.Fd()), "etc/cloud", &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// openMade opens what the sandbox made: of the given type (inode(7)), in the stage itself, and under no other name.
func openMade(stage, name string, kind uint32) (*os.File, error) {
	dir, err := unix.Open(stage, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", stage, err)
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, fmt.Errorf("open the sandbox's %s: %w", name, err)
	}
	file := os.NewFile(uintptr(fd), filepath.Join(stage, name))
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		file.Close()
		return nil, fmt.Errorf("look at the sandbox's %s: %w", name, err)
	}
	if st.Mode&unix.S_IFMT != kind || kind == unix.S_IFREG && st.Nlink != 1 {
		file.Close()
		return nil, fmt.Errorf("the sandbox's %s is not what it should be (mode %o, %d links)", name, st.Mode, st.Nlink)
	}
	return file, nil
}

// privateName is the directory that keeps other users from a tree.
const privateName = "private"
