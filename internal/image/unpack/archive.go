package unpack

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// decompressorMemory is the most that a compressed stream may make its reader allocate.
const decompressorMemory = 256 << 20

// decompress undoes the compression that the stream begins with, if any.
func decompress(r io.Reader) (io.ReadCloser, error) {
	buffered := bufio.NewReaderSize(r, 1<<20)
	head, err := buffered.Peek(len(magicXZ))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, magicGzip):
		unzip, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, archiveError(err)
		}
		return unzip, nil
	case bytes.HasPrefix(head, magicZstd):
		unzip, err := zstd.NewReader(buffered, zstd.WithDecoderMaxMemory(decompressorMemory), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, archiveError(err)
		}
		return unzip.IOReadCloser(), nil
	case bytes.HasPrefix(head, magicXZ):
		config := xz.ReaderConfig{DictCap: decompressorMemory}
		unzip, err := config.NewReader(buffered)
		if err != nil {
			return nil, archiveError(err)
		}
		return io.NopCloser(unzip), nil
	}
	return io.NopCloser(buffered), nil
}

// unpackArchive unpacks a tar: a root tree, or an archive of layers, by what it holds.
func unpackArchive(dir string, file *os.File, job Job) (Result, error) {
	layered, err := isLayered(file, job)
	if err != nil {
		return Result{}, err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return Result{}, err
	}
	target := filepath.Join(dir, TreeName)
	if layered {
		target = filepath.Join(dir, ArchiveName)
	}
	if err := unpackTar(target, file, job); err != nil {
		return Result{}, err
	}
	if layered {
		return unpackOCI(dir, target, job)
	}
	return Result{Format: "tree"}, nil
}

// unpackTar unpacks a plain archive.
func unpackTar(target string, file io.Reader, job Job) error {
	stream, err := decompress(file)
	if err != nil {
		return err
	}
	defer stream.Close()
	x, err := newExtractor(target, refuseLinks, job)
	if err != nil {
		return err
	}
	defer x.close()
	bounded := bound(stream, job)
	if err := x.extract(bounded); err != nil {
		return err
	}
	// What follows the archive's end may be damaged too.
	if _, err := io.Copy(io.Discard, bounded); err != nil {
		return archiveError(err)
	}
	return nil
}

// isLayered tells an OCI layout, or what docker save writes, from a root tree.
func isLayered(file io.Reader, job Job) (bool, error) {
	stream, err := decompress(file)
	if err != nil {
		return false, err
	}
	defer stream.Close()
	archive := tar.NewReader(bound(stream, job))
	for count := 0; ; count++ {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			if count == 0 {
				return false, bad("it is an archive with nothing in it")
			}
			return false, nil
		}
		if err != nil {
			return false, archiveError(err)
		}
		if name := path.Clean(h.Name); name == layoutName || name == dockerName {
			return true, nil
		}
	}
}

// bound ends a stream that gives more than the limit allows, with room for the archive's own headers.
func bound(r io.Reader, job Job) io.Reader {
	return &boundedReader{r: r, left: int64(job.most()) + int64(job.Files)*4096 + 1<<20}
}

type boundedReader struct {
	r    io.Reader
	left int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, tooLarge("it unpacks to more than the limit")
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}
