package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// copyChunk is how much is copied between two looks at the context.
const copyChunk = 64 << 20

// clone makes target a copy of source that takes no more room than it must: it shares the blocks (ioctl_ficlone(2))
// where the file system can, and copies only data, not holes, where it can't.
func clone(ctx context.Context, source, target string, mode os.FileMode) error {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(target, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	err = unix.IoctlFileClone(int(out.Fd()), int(in.Fd()))
	if err != nil {
		err = copySparse(ctx, in, out)
	}
	if err == nil {
		// Before the record, which says that the volume is whole.
		err = out.Sync()
	}
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", source, err)
	}
	return nil
}

// copySparse copies data and leaves holes (lseek(2), SEEK_DATA).
func copySparse(ctx context.Context, in, out *os.File) error {
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if err := out.Truncate(st.Size()); err != nil {
		return err
	}
	for at := int64(0); at < st.Size(); {
		begin, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // nothing but a hole is left
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(in.Fd()), begin, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if err := copyRange(ctx, in, out, begin, end); err != nil {
			return err
		}
		at = end
	}
	return nil
}

func copyRange(ctx context.Context, in, out *os.File, begin, end int64) error {
	for at := begin; at < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		from, to := at, at
		n, err := unix.CopyFileRange(int(in.Fd()), &from, int(out.Fd()), &to, int(min(end-at, copyChunk)), 0)
		switch {
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return copyPlain(ctx, in, out, at, end)
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		at += int64(n)
	}
	return nil
}

// copyPlain is for file systems between which the kernel doesn't copy by itself.
func copyPlain(ctx context.Context, in, out *os.File, begin, end int64) error {
	for at := begin; at < end; at += copyChunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(end-at, copyChunk)
		if _, err := io.Copy(io.NewOffsetWriter(out, at), io.NewSectionReader(in, at, n)); err != nil {
			return err
		}
	}
	return nil
}
