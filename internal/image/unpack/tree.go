package unpack

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
)

// errFull says that the host's file system is full.
var errFull = unix.ENOSPC

// links says what becomes of symbolic links on the way to a file.
type links uint64

const (
	// refuseLinks is for a root tree: writing through a link is a trick, as tar lists a link's target by its own name.
	refuseLinks links = unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH
	// followInside is for layers, which may write below a link that a lower layer made; it ends within the tree.
	followInside links = unix.RESOLVE_IN_ROOT
)

// extractor unpacks archives below one directory, and can't reach out of it: every path is resolved by openat2(2).
type extractor struct {
	root  int // directory
	links links
	bytes api.Bytes // still allowed
	files int       // still allowed
	// whiteouts are obeyed (OCI image-spec, layer.md).
	whiteouts bool
	// dirs get their times last, as files in them change those.
	dirs []dirTime
}

type dirTime struct {
	name  string
	times [2]unix.Timespec
}

func newExtractor(dir string, how links, job Job) (*extractor, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &extractor{root: root, links: how, bytes: job.most(), files: job.Files}, nil
}

func (x *extractor) close() error { return unix.Close(x.root) }

// extract unpacks one archive.
func (x *extractor) extract(r io.Reader) error {
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return x.setDirTimes()
		}
		if err != nil {
			return archiveError(err)
		}
		if err := x.entry(h, archive); err != nil {
			return fmt.Errorf("entry %q: %w", clip(h.Name), err)
		}
	}
}

// archiveError parts a damaged archive from a failure to read.
func archiveError(err error) error {
	var system syscall.Errno
	var reason badError
	switch {
	case errors.As(err, &reason):
		return err
	case errors.As(err, &system):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return bad("it is truncated")
	default:
		return bad("it is damaged: %v", err)
	}
}

func clip(name string) string {
	if len(name) > 200 {
		return name[:200] + "…"
	}
	return name
}

// cleanName makes a path relative to the tree's root. A leading "/" or "./" is the archive's way to say so.
func cleanName(name string) (string, error) {
	if strings.ContainsRune(name, 0) || len(name) > unix.PathMax {
		return "", bad("its name is no path")
	}
	if strings.HasPrefix(name, "/") {
		return "", bad("its path is absolute")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", bad("its path leads out of the tree by \"..\"")
		}
	}
	return path.Clean(name), nil
}

func (x *extractor) entry(h *tar.Header, body io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if x.files--; x.files < 0 {
		return bad("it holds too many files")
	}
	if h.Uid < 0 || h.Uid > 65535 || h.Gid < 0 || h.Gid > 65535 {
		return bad("its owner %d:%d is outside of 0 to 65535", h.Uid, h.Gid)
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return bad("it takes the place of the root directory")
		}
		return x.own(x.root, "", h)
	}
	parent, err := x.parent(path.Dir(name))
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	base := path.Base(name)
	if x.whiteouts && strings.HasPrefix(base, whiteoutPrefix) {
		return whiteout(parent, base)
	}
	return x.create(parent, base, name, h, body)
}

// parent opens the directory of an entry, and makes it where the archive left it out.
func (x *extractor) parent(dir string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: uint64(x.links) | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(x.root, dir, &how)
	if err == nil || !errors.Is(err, unix.ENOENT) || dir == "." {
		return fd, x.pathError(err)
	}
	above, err := x.parent(path.Dir(dir))
	if err != nil {
		return -1, err
	}
	defer unix.Close(above)
	if err := unix.Mkdirat(above, path.Base(dir), 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	fd, err = unix.Openat2(x.root, dir, &how)
	return fd, x.pathError(err)
}

func (x *extractor) pathError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ELOOP):
		return bad("its path leads through a symbolic link")
	case errors.Is(err, unix.EXDEV):
		return bad("its path leads out of the tree")
	case errors.Is(err, unix.ENOTDIR):
		return bad("its path leads through something that is no directory")
	case errors.Is(err, unix.ENAMETOOLONG):
		return bad("its path is too long")
	}
	return err
}

// create makes one file system object in an opened directory; what was there under its name goes.
func (x *extractor) create(parent int, base, name string, h *tar.Header, body io.Reader) error {
	var st unix.Stat_t
	err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	isDir := err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case err == nil && isDir && h.Typeflag == tar.TypeDir:
		return x.own(parent, base, h)
	case err == nil && isDir && !x.whiteouts:
		return bad("it takes the place of a directory")
	case err == nil:
		if err := removeAt(parent, base); err != nil {
			return err
		}
	case !errors.Is(err, unix.ENOENT):
		return x.pathError(err)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := unix.Mkdirat(parent, base, 0o755); err != nil {
			return err
		}
		x.dirs = append(x.dirs, dirTime{name, times(h)})
	case tar.TypeReg, tar.TypeGNUSparse:
		return x.file(parent, base, h, body)
	case tar.TypeSymlink:
		if len(h.Linkname) == 0 || len(h.Linkname) >= unix.PathMax {
			return bad("its link has no possible target")
		}
		// A link may say anything: it is resolved in the guest, and never followed here.
		if err := unix.Symlinkat(h.Linkname, parent, base); err != nil {
			return err
		}
	case tar.TypeLink:
		return x.hardLink(parent, base, h)
	case tar.TypeFifo:
		if err := unix.Mknodat(parent, base, unix.S_IFIFO|0o600, 0); err != nil {
			return err
		}
	case tar.TypeChar, tar.TypeBlock:
		return bad("it is a device node: leave /dev out of the archive (tar --exclude='./dev/*')")
	default:
		return bad("it is of unknown type %q", h.Typeflag)
	}
	return x.own(parent, base, h)
}

// file writes a regular file. Holes of a sparse one count in full: they are what it unpacks to.
func (x *extractor) file(parent int, base string, h *tar.Header, body io.Reader) error {
	if h.Size < 0 || api.Bytes(h.Size) > x.bytes {
		return tooLarge("the image unpacks to more than the limit")
	}
	x.bytes -= api.Bytes(h.Size)
	fd, err := unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), base)
	defer file.Close()
	n, err := io.Copy(file, body)
	if err != nil {
		return archiveError(err)
	}
	if n != h.Size {
		return bad("it is truncated")
	}
	if err := file.Close(); err != nil {
		return err
	}
	return x.own(parent, base, h)
}

// hardLink links to a file that was unpacked before.
func (x *extractor) hardLink(parent int, base string, h *tar.Header) error {
	target, err := cleanName(strings.TrimPrefix(h.Linkname, "/"))
	if err != nil {
		return bad("its hard link's target leads out of the tree")
	}
	dir, err := x.parent(path.Dir(target))
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	var st unix.Stat_t
	if err := unix.Fstatat(dir, path.Base(target), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return bad("it is a hard link to %q, which is not there", clip(h.Linkname))
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return bad("it is a hard link to a directory")
	}
	return unix.Linkat(dir, path.Base(target), parent, base, 0)
}

// own sets owner, mode and times, in this order: a change of owner takes setuid away.
func (x *extractor) own(parent int, base string, h *tar.Header) error {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if base == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if err := unix.Fchownat(parent, base, h.Uid, h.Gid, flags); err != nil {
		return err
	}
	if base == "" {
		base = "."
	}
	if h.Typeflag != tar.TypeSymlink {
		// Nothing but this process changes the tree, and the name was just seen to be no link.
		if err := unix.Fchmodat(parent, base, uint32(h.Mode)&0o7777, 0); err != nil {
			return err
		}
	}
	t := times(h)
	return unix.UtimesNanoAt(parent, base, t[:], unix.AT_SYMLINK_NOFOLLOW)
}

func times(h *tar.Header) [2]unix.Timespec {
	t := unix.NsecToTimespec(h.ModTime.UnixNano())
	return [2]unix.Timespec{t, t}
}

func (x *extractor) setDirTimes() error {
	for _, d := range x.dirs {
		parent, err := x.parent(path.Dir(d.name))
		if err != nil {
			continue // removed, or replaced, by a later entry
		}
		_ = unix.UtimesNanoAt(parent, path.Base(d.name), d.times[:], unix.AT_SYMLINK_NOFOLLOW)
		unix.Close(parent)
	}
	x.dirs = nil
	return nil
}
