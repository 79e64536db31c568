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
	size := strconv.FormatInt(int64(r.Size), 10)
	switch {
	case r.Format == "raw" && r.Base == "":
		return makeEmpty(disk, r.Size)
	case r.Format == "raw" && r.BaseFormat == "raw":
		if err := clone(ctx, r.Base, disk, 0o600); err != nil {
			return err
		}
		return os.Truncate(disk, int64(r.Size))
	case r.Format == "raw":
		if err := qemuImg(ctx, "convert", "-q", "-f", r.BaseFormat, "-O", "raw", "--", r.Base, disk); err != nil {
			return err
		}
		return os.Truncate(disk, int64(r.Size))
	case r.Base == "":
		return qemuImg(ctx, "create", "-q", "-f", "qcow2", "--", disk, size)
	default:
		return qemuImg(ctx, "create", "-q", "-f", "qcow2", "-b", r.Base, "-F", r.BaseFormat, "--", disk, size)
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

func (p *Pool) openFile(r record, owner uint32) (pool.Opened, error) {
	disk := p.path(r.ID, diskName(r.Format))
	// The directory was given to the owner when it was made, but a disk may be opened by another one later.
	for _, path := range []string{p.path(r.ID), disk} {
		if err := os.Chown(path, int(owner), int(owner)); err != nil {
			return pool.Opened{}, err
		}
	}
	if err := os.Chmod(disk, 0o600); err != nil {
		return pool.Opened{}, err
	}
	return pool.Opened{Path: disk, Format: r.Format}, nil
}

// growFile makes a disk larger. A qcow2 that a running guest uses is grown by its engine; qemu-img's lock says so.
func (p *Pool) growFile(ctx context.Context, r record, size api.Bytes) error {
	disk := p.path(r.ID, diskName(r.Format))
	if r.Format == "raw" {
		return os.Truncate(disk, int64(size))
	}
	return qemuImg(ctx, "resize", "-q", "-f", "qcow2", "--", disk, strconv.FormatInt(int64(size), 10))
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

// qemuImg runs qemu-img on files that are the pool's or the image store's own.
func qemuImg(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "qemu-img", args...).CombinedOutput()
	if err != nil {
		if bytes.Contains(out, []byte("No space left on device")) {
			err = errors.Join(pool.ErrFull, err)
		}
		return fmt.Errorf("qemu-img %s: %w: %s", args[0], err, bytes.TrimSpace(out))
	}
	return nil
}
