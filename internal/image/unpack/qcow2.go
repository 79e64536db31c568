package unpack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/image"
)

// qcow2Header is the beginning of a qcow2 file (docs/interop/qcow2.txt of QEMU), big-endian.
type qcow2Header struct {
	Magic                 [4]byte
	Version               uint32
	BackingOffset         uint64
	BackingSize           uint32
	ClusterBits           uint32
	Size                  uint64
	CryptMethod           uint32
	L1Size                uint32
	L1Offset              uint64
	RefcountOffset        uint64
	RefcountClusters      uint32
	Snapshots             uint32
	SnapshotsOffset       uint64
	Incompatible          uint64 // from here on: version 3
	Compatible            uint64
	Autoclear             uint64
	RefcountOrder, Length uint32
}

const (
	qcow2V2Length     = 72
	qcow2V3Length     = 104
	qcow2Corrupt      = 1 << 1
	qcow2ExternalData = 1 << 2
	qcow2KnownBits    = 1<<5 - 1
	// qcow2LargestL1 is QEMU's own limit (QCOW_MAX_L1_SIZE), in entries.
	qcow2LargestL1 = 32 << 20 / 8
	// largestDisk is more than any guest is given.
	largestDisk = 64 * api.TiB
)

// checkQcow2 refuses what would make qemu-img read other files, or work for ever. head is the first bytes of a file of
// the given size.
func checkQcow2(head []byte, size int64, limit api.Bytes) (api.Bytes, error) {
	var h qcow2Header
	if len(head) < qcow2V2Length {
		return 0, bad("it is truncated: a qcow2 header takes more than its %d bytes", len(head))
	}
	padded := make([]byte, qcow2V3Length)
	copy(padded, head)
	if err := binary.Read(bytes.NewReader(padded), binary.BigEndian, &h); err != nil {
		return 0, err
	}
	if h.Version == 2 {
		h.Incompatible, h.RefcountOrder, h.Length = 0, 4, qcow2V2Length
	}
	virtual := api.Bytes(h.Size)
	l2Reach := uint64(1) << min(63, 2*h.ClusterBits-3)
	switch {
	case h.Magic != [4]byte(magicQcow2):
		return 0, bad("it is no qcow2")
	case h.Version != 2 && h.Version != 3:
		return 0, bad("it is a qcow2 of unknown version %d", h.Version)
	case h.Version == 3 && (len(head) < qcow2V3Length || h.Length < qcow2V3Length):
		return 0, bad("its qcow2 header is truncated")
	case h.BackingOffset != 0 || h.BackingSize != 0:
		return 0, bad("it is a qcow2 with a backing file: flatten it first (qemu-img convert -O qcow2)")
	case h.Incompatible&qcow2ExternalData != 0:
		return 0, bad("it is a qcow2 with an external data file: convert it first (qemu-img convert -O qcow2)")
	case h.Incompatible&qcow2Corrupt != 0:
		return 0, bad("it is a qcow2 that is marked corrupt")
	case h.Incompatible&^qcow2KnownBits != 0:
		return 0, bad("it is a qcow2 with unknown features %#x", h.Incompatible&^qcow2KnownBits)
	case h.CryptMethod != 0:
		return 0, bad("it is an encrypted qcow2")
	case h.ClusterBits < 9 || h.ClusterBits > 21:
		return 0, bad("its qcow2 clusters of 2^%d bytes are impossible", h.ClusterBits)
	case h.RefcountOrder > 6:
		return 0, bad("its qcow2 reference counts of 2^%d bits are impossible", h.RefcountOrder)
	case h.Size == 0 || h.Size > uint64(largestDisk):
		return 0, bad("its virtual size of %d bytes is absurd", h.Size)
	case virtual > limit:
		return 0, bad("its disk of %v is larger than the limit of %v", virtual, limit)
	case h.L1Size > qcow2LargestL1 || uint64(h.L1Size) < (h.Size+l2Reach-1)/l2Reach:
		return 0, bad("its qcow2 table of %d entries doesn't fit its size", h.L1Size)
	case h.L1Offset+uint64(h.L1Size)*8 > uint64(size) || h.L1Offset > uint64(size) || h.RefcountOffset >= uint64(size):
		return 0, bad("it is truncated: its qcow2 tables lie beyond its end")
	case h.Snapshots > 0:
		return 0, bad("it is a qcow2 with internal snapshots: convert it first (qemu-img convert -O qcow2)")
	}
	return virtual, nil
}

// headerSize is the size of the disk that a qcow2 file holds, which checkQcow2 has nothing against.
func headerSize(file *os.File, limit api.Bytes) (api.Bytes, error) {
	head := make([]byte, qcow2V3Length)
	n, err := file.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	st, err := file.Stat()
	if err != nil {
		return 0, err
	}
	return checkQcow2(head[:n], st.Size(), limit)
}

// CheckQcow2 is what the parent trusts a qcow2 by, which the sandbox has rewritten: it reads the header only, in Go, and
// returns the size of the disk.
func CheckQcow2(file *os.File, limit api.Bytes) (api.Bytes, error) {
	size, err := headerSize(file, limit)
	if reason := (badError{}); errors.As(err, &reason) {
		err = fmt.Errorf("%w: %w", image.ErrBad, err)
	}
	return size, err
}

// convertQcow2 rewrites a disk, so that nothing of the uploaded file's structure reaches QEMU outside the sandbox.
func convertQcow2(dir string, file *os.File, job Job) (Result, error) {
	virtual, err := headerSize(file, job.Limit)
	if err != nil {
		return Result{}, err
	}
	if err := qemuImg("check", "-q", "-f", "qcow2", "--", file.Name()); err != nil {
		return Result{}, err
	}
	err = qemuImg("convert", "-q", "-f", "qcow2", "-O", "qcow2", "--", file.Name(), filepath.Join(dir, DiskName))
	if err != nil {
		return Result{}, err
	}
	return Result{Format: "qcow2", Virtual: virtual}, nil
}

// qemuImg runs qemu-img in the sandbox. What it refuses is the image's fault, but for a full disk.
func qemuImg(args ...string) error {
	cmd := exec.Command("qemu-img", args...)
	cmd.Stdin = strings.NewReader("") // a pipe: there is no /dev/null here
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case bytes.Contains(out, []byte("No space left on device")):
		return fmt.Errorf("qemu-img %s: %w", args[0], errFull)
	// qemu-img(1), check: 3 is "leaked clusters", which do no harm.
	case args[0] == "check" && errors.As(err, &exit) && exit.ExitCode() == 3:
		return nil
	case errors.As(err, &exit) && exit.Exited():
		return bad("it is damaged: qemu-img %s says: %s", args[0], bytes.TrimSpace(out))
	default:
		return fmt.Errorf("qemu-img %s: %w: %s", args[0], err, bytes.TrimSpace(out))
	}
}
