package dir

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/pool"
)

func diskName(format string) string { return "disk." + format }

// makeFile makes a disk in dir, and notes its size where the spec left it to the base.
func makeFile(ctx context.Context, dir string, r *record) error {
	base := api.Bytes(0)
	if r.Base != "" {
		var err error
		if base, err = virtualSize(r.Base, r.BaseFormat); err != nil {
			return err
		}
	}
	if r.Size == 0 {
		r.Size = base
	}
	if r.Size < base {
		return fmt.Errorf("size %v is smaller than the image, which takes %v", r.Size, base)
	}
	disk := filepath.Join(dir, diskName(r.Format))
	if err := fillFile(ctx, disk, r); err != nil {
		return err
	}
	if err := give(disk, r.Owner); err != nil {
		return err
	}
	return syncPath(disk)
}

// fillFile makes the disk itself.
func fillFile(ctx context.Context, disk string, r *record) error {
	if r.Format == "raw" && r.Base != "" && r.BaseFormat == "raw" {
		if err := clone(ctx, r.Base, disk, 0o600); err != nil {
			return err
		}
		return os.Truncate(disk, int64(r.Size))
	}
	// Only root makes files here: qemu-img gets one to write to.
	empty := r.Size
	if r.Format == "qcow2" {
		empty = 0
	}
	if err := makeEmpty(disk, empty); err != nil {
		return err
	}
	if r.Format == "raw" && r.Base == "" {
		return nil
	}
	if err := give(disk, r.Owner); err != nil {
		return err
	}
	size := strconv.FormatInt(int64(r.Size), 10)
	switch {
	case r.Format == "raw":
		if err := qemuImg(ctx, r.Owner, "convert", "-q", "-f", r.BaseFormat, "-O", "raw", "--", r.Base, disk); err != nil {
			return err
		}
		return os.Truncate(disk, int64(r.Size))
	case r.Base == "":
		return qemuImg(ctx, r.Owner, "create", "-q", "-f", "qcow2", "--", disk, size)
	default:
		return qemuImg(ctx, r.Owner, "create", "-q", "-f", "qcow2", "-b", r.Base, "-F", r.BaseFormat, "--", disk, size)
	}
}

func makeEmpty(path string, size api.Bytes) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Truncate(int64(size))
}

// openDisk opens the plain file at path, and no other: neither what a link leads to, nor one that has another name too.
func openDisk(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, fmt.Errorf("look at %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 {
		f.Close()
		return nil, fmt.Errorf("disk %s is no plain file of one name (mode %o, %d links)", path, st.Mode, st.Nlink)
	}
	return f, nil
}

// give makes a disk its owner's own.
func give(disk string, owner uint32) error {
	f, err := openDisk(disk, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Chown(int(owner), int(owner)); err != nil {
		return err
	}
	return f.Chmod(0o600)
}

func (p *Pool) openFile(r record, owner uint32) (pool.Opened, error) {
	disk := p.path(r.ID, diskName(r.Format))
	if err := give(disk, owner); err != nil {
		return pool.Opened{}, err
	}
	return pool.Opened{Path: disk, Format: r.Format}, nil
}

// growFile makes a disk larger. A qcow2 that a running guest uses is grown by its engine; qemu-img's lock says so.
func (p *Pool) growFile(ctx context.Context, r record, size api.Bytes) error {
	disk := p.path(r.ID, diskName(r.Format))
	f, err := openDisk(disk, os.O_RDWR)
	if err != nil {
		return err
	}
	defer f.Close()
	if r.Format == "raw" {
		return f.Truncate(int64(size))
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	return qemuImg(ctx, st.Uid, "resize", "-q", "-f", "qcow2", "--", disk, strconv.FormatInt(int64(size), 10))
}

// virtualSize is the size of the disk that a file of an image holds.
func virtualSize(path, format string) (api.Bytes, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if format == "raw" {
		st, err := f.Stat()
		if err != nil {
			return 0, err
		}
		return api.Bytes(st.Size()), nil
	}
	// docs/interop/qcow2.txt of QEMU: magic at 0, virtual size at 24, both big-endian.
	header := make([]byte, 32)
	if _, err := io.ReadFull(f, header); err != nil {
		return 0, fmt.Errorf("read header of %s: %w", path, err)
	}
	if !bytes.Equal(header[:4], []byte("QFI\xfb")) {
		return 0, fmt.Errorf("%s is no qcow2", path)
	}
	return api.Bytes(binary.BigEndian.Uint64(header[24:])), nil
}

// qemuImg runs qemu-img as the owner of the disk that it writes to: what it reads may be a guest's work, and whatever
// that makes it do or open, the guest's own process could have.
func qemuImg(ctx context.Context, owner uint32, args ...string) error {
	cmd := exec.CommandContext(ctx, "qemu-img", args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner, Gid: owner}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		if bytes.Contains(out, []byte("No space left on device")) {
			err = errors.Join(pool.ErrFull, err)
		}
		return fmt.Errorf("qemu-img %s: %w: %s", args[0], err, bytes.TrimSpace(out))
	}
	return nil
}
