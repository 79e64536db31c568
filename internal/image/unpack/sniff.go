package unpack

import (
	"bytes"
	"encoding/binary"
	"io"

	"github.com/croftproject/croft/api"
)

// kind is what an upload is, by its first bytes.
type kind int

const (
	kindArchive kind = iota // tar, or a compressed something that should be one
	kindQcow2
	kindRaw
	kindISO
)

// sniffSize reaches past the superblock of btrfs, the farthest of those known.
const sniffSize = 68 << 10

const sectorSize = 512

var (
	magicQcow2 = []byte("QFI\xfb")
	magicGzip  = []byte{0x1f, 0x8b}
	magicZstd  = []byte{0x28, 0xb5, 0x2f, 0xfd}
	magicXZ    = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
)

// mark is a sequence of bytes that a format has at a place.
type mark struct {
	at    int
	bytes string
	name  string
}

// rawMarks tell a disk, or a file system without partitions.
var rawMarks = []mark{
	{512, "EFI PART", "GPT"}, {510, "\x55\xaa", "MBR"}, {1080, "\x53\xef", "ext4"}, {0, "XFSB", "xfs"},
	{65600, "_BHRfS_M", "btrfs"}, {0, "hsqs", "squashfs"},
}

// foreign are formats that are known, and not taken.
var foreign = []mark{
	{0, "KDMV", "VMDK"}, {0, "# Disk DescriptorFile", "VMDK"}, {0, "vhdxfile", "VHDX"}, {0, "conectix", "VHD"},
	{64, "\x7f\x10\xda\xbe", "VDI"}, {0, "QED\x00", "QED"}, {0, "PK\x03\x04", "ZIP"}, {0, "7z\xbc\xaf\x27\x1c", "7z"}, {0, "BZh", "bzip2"},
}

func (m mark) in(head []byte) bool {
	return len(head) >= m.at+len(m.bytes) && string(head[m.at:m.at+len(m.bytes)]) == m.bytes
}

// sniff tells what an upload is.
func sniff(r io.ReaderAt, size int64) (kind, error) {
	head := make([]byte, min(size, sniffSize))
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, int64(len(head))), head); err != nil {
		return 0, err
	}
	return sniffHead(head)
}

func sniffHead(head []byte) (kind, error) {
	if len(head) == 0 {
		return 0, bad("it is empty")
	}
	if bytes.HasPrefix(head, magicQcow2) {
		return kindQcow2, nil
	}
	for _, magic := range [][]byte{magicGzip, magicZstd, magicXZ} {
		if bytes.HasPrefix(head, magic) {
			return kindArchive, nil
		}
	}
	for _, m := range foreign {
		if m.in(head) {
			return 0, bad("it is a %s file: convert it to qcow2 first (qemu-img convert -O qcow2)", m.name)
		}
	}
	if (mark{at: 257, bytes: "ustar"}).in(head) {
		return kindArchive, nil
	}
	// An ISO that boots from a disk too has a partition table as well.
	if (mark{at: 32769, bytes: "CD001"}).in(head) {
		return kindISO, nil
	}
	for _, m := range rawMarks {
		if m.in(head) {
			return kindRaw, nil
		}
	}
	return 0, bad("it is no image of a known form (tar, qcow2, raw disk, ISO 9660, OCI layout, docker save)")
}

// checkRaw refuses a disk whose partitions lie beyond its end: it was cut short.
func checkRaw(r io.ReaderAt, size int64) error {
	head := make([]byte, 2*sectorSize)
	if size < int64(len(head)) {
		return bad("a disk of %d bytes is too small", size)
	}
	if _, err := r.ReadAt(head, 0); err != nil {
		return err
	}
	if (mark{at: 512, bytes: "EFI PART"}).in(head) {
		// UEFI 2.10, table 5-5: the backup header's sector is at 32 of the header.
		backup := binary.LittleEndian.Uint64(head[sectorSize+32:])
		if backup >= uint64(size)/sectorSize {
			return bad("it is truncated: its partition table speaks of sector %d, and it has %d", backup, size/sectorSize)
		}
		return nil
	}
	if !(mark{at: 510, bytes: "\x55\xaa"}).in(head) {
		return nil
	}
	for i := range 4 {
		entry := head[446+16*i:]
		begin, count := binary.LittleEndian.Uint32(entry[8:]), binary.LittleEndian.Uint32(entry[12:])
		end := int64(begin) + int64(count)
		if entry[4] != 0 && entry[4] != 0xee && end > size/sectorSize {
			return bad("it is truncated: partition %d ends at sector %d, and it has %d", i+1, end, size/sectorSize)
		}
	}
	return nil
}

// checkISO refuses an ISO that is shorter than its primary volume descriptor says (ECMA-119, 8.4).
func checkISO(r io.ReaderAt, size int64) error {
	descriptor := make([]byte, 2048)
	if _, err := r.ReadAt(descriptor, 16*2048); err != nil {
		return bad("it is truncated")
	}
	blocks, block := binary.LittleEndian.Uint32(descriptor[80:]), binary.LittleEndian.Uint16(descriptor[128:])
	if whole := int64(blocks) * int64(block); whole > size {
		return bad("it is truncated: %v of %v are there", api.Bytes(size), api.Bytes(whole))
	}
	return nil
}
