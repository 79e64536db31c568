package dir

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/pool"
)

// template finds, or makes, an empty sparse ext4 file system of a size, which volumes are copied from: a copy takes a
// tenth of the time that making one does.
func (p *Pool) template(ctx context.Context, size api.Bytes) (string, error) {
	dir := filepath.Join(p.dir, templatesName)
	path := filepath.Join(dir, "ext4-"+strconv.FormatInt(int64(size), 10))
	p.templates.Lock()
	defer p.templates.Unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	making := path + ".new"
	defer os.Remove(making)
	if err := os.RemoveAll(making); err != nil {
		return "", err
	}
	if err := makeEmpty(making, size); err != nil {
		return "", err
	}
	if err := makeExt4(ctx, making); err != nil {
		return "", err
	}
	// Every volume of the size is a copy of it: it must not be there with a part missing.
	if err := syncPath(making); err != nil {
		return "", err
	}
	if err := os.Rename(making, path); err != nil {
		return "", err
	}
	return path, syncPath(dir)
}

// makeExt4 makes a file system that takes little of a sparse file: tables are not zeroed, as holes read as zeros; no
// room is kept for growth, as growth finds its own (meta_bg); the journal is small, as each server has one.
func makeExt4(ctx context.Context, path string) error {
	out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-b", strconv.Itoa(ext4Block), "-m", "0", "-J", "size=4", "-O", "^resize_inode",
		"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "--", path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.ext4 %s: %w: %s", path, err, bytes.TrimSpace(out))
	}
	return nil
}

// fit lets an unmounted file system fill its file, which may have grown.
func fit(ctx context.Context, path string) error {
	size, err := ext4Size(path)
	if err != nil {
		return err
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.Size()-int64(size) < ext4Block {
		return nil
	}
	// e2fsck(8): 1 is "errors corrected". resize2fs takes only what was just checked.
	out, err := exec.CommandContext(ctx, "e2fsck", "-f", "-p", "--", path).CombinedOutput()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 1 {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("e2fsck %s: %w: %s", path, err, bytes.TrimSpace(out))
	}
	out, err = exec.CommandContext(ctx, "resize2fs", path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("resize2fs %s: %w: %s", path, err, bytes.TrimSpace(out))
	}
	return nil
}

// ext4Block is the block size of the file systems made here.
const ext4Block = 4096

// ext4Size reads the size of the file system from its superblock (Documentation/filesystems/ext4/super.rst).
func ext4Size(path string) (api.Bytes, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	super := make([]byte, 1024)
	if _, err := f.ReadAt(super, 1024); err != nil {
		return 0, fmt.Errorf("read superblock of %s: %w", path, err)
	}
	if binary.LittleEndian.Uint16(super[0x38:]) != unix.EXT4_SUPER_MAGIC {
		return 0, fmt.Errorf("%s holds no ext4", path)
	}
	blocks := uint64(binary.LittleEndian.Uint32(super[0x4:])) | uint64(binary.LittleEndian.Uint32(super[0x150:]))<<32
	return api.Bytes(blocks << (10 + binary.LittleEndian.Uint32(super[0x18:]))), nil
}

// ext4ResizeFS is EXT4_IOC_RESIZE_FS of the kernel's fs/ext4/ext4.h: _IOW('f', 16, __u64), in blocks.
const ext4ResizeFS = 0x40086610

// stretch grows the mounted ext4 at path to the given size, of which its device is. It needs CAP_SYS_RESOURCE, which
// root may lack within a container.
func stretch(path string, size api.Bytes) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	blocks := uint64(size / ext4Block)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), ext4ResizeFS, uintptr(unsafe.Pointer(&blocks)))
	if errno == unix.EPERM {
		return fmt.Errorf("%w: this host lets no mounted file system grow (CAP_SYS_RESOURCE is missing): stop the server first", pool.ErrBusy)
	}
	if errno != 0 {
		return fmt.Errorf("grow file system at %s to %v: %w", path, size, errno)
	}
	return nil
}
