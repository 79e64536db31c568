package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/diskfs/go-diskfs/partition/gpt"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
)

// bootable is a disk that boots by BIOS and by UEFI alike (UEFI 2.10, chapter 5): a GPT with an EFI system partition and
// the root. Kernel and initial RAM file system lie on the EFI system partition, where both boot loaders read them:
// SYSLINUX, started by the code in the protective MBR through the partition with the attribute "legacy BIOS bootable",
// and systemd-boot as the removable-media loader.
type bootable struct {
	rootFS  string // ext4 image
	kernel  string
	initrd  string
	cmdline string
	esp     api.Bytes // size of the EFI system partition
}

const (
	sector       = 512
	firstSector  = 2048       // 1 MiB, as partitioning tools align
	tailSectors  = 2048       // room for the backup table
	legacyBoot   = 1 << 2     // attribute of UEFI table 5-8
	mbrCodeBytes = 440        // what comes before the disk's signature and the table
	espVolume    = "c0f70001" // serial number of the FAT: fixed, so that the same input gives the same disk

	// RootPartition is where a disk made here holds its root, as the kernel names virtio disks.
	rootPartition = "/dev/vda2"
	rootLabel     = "croft-root"

	gptCode     = "/usr/lib/syslinux/mbr/gptmbr.bin"
	biosLoader  = "/usr/lib/syslinux/modules/bios/ldlinux.c32"
	systemdBoot = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"
)

// write makes the disk at path.
func (b bootable) write(ctx context.Context, o Options, path string) error {
	esp := path + ".esp"
	defer os.Remove(esp)
	if err := b.writeESP(ctx, o, esp); err != nil {
		return err
	}
	st, err := os.Stat(b.rootFS)
	if err != nil {
		return err
	}
	espSectors, rootSectors := uint64(b.esp)/sector, uint64(st.Size())/sector
	size := int64(firstSector+espSectors+rootSectors+tailSectors) * sector
	disk, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer disk.Close()
	if err := disk.Truncate(size); err != nil {
		return err
	}
	table := gpt.Table{LogicalSectorSize: sector, PhysicalSectorSize: sector, ProtectiveMBR: true, Partitions: []*gpt.Partition{
		{Index: 1, Start: firstSector, End: firstSector + espSectors - 1, Type: gpt.EFISystemPartition, Name: "esp", Attributes: legacyBoot},
		{Index: 2, Start: firstSector + espSectors, End: firstSector + espSectors + rootSectors - 1, Type: gpt.LinuxFilesystem, Name: "root"},
	}}
	if err := table.Write(disk, size); err != nil {
		return fmt.Errorf("write partition table: %w", err)
	}
	code, err := os.ReadFile(gptCode)
	if err != nil {
		return fmt.Errorf("%w: install the package syslinux-common", err)
	}
	if _, err := disk.WriteAt(code[:min(len(code), mbrCodeBytes)], 0); err != nil {
		return err
	}
	if err := copyData(ctx, esp, disk, firstSector*sector); err != nil {
		return err
	}
	if err := copyData(ctx, b.rootFS, disk, int64(firstSector+espSectors)*sector); err != nil {
		return err
	}
	return disk.Sync()
}

// writeESP makes the EFI system partition as a file of its own.
func (b bootable) writeESP(ctx context.Context, o Options, path string) error {
	if err := errors.Join(need(biosLoader, "syslinux-common"), need(systemdBoot, "systemd-boot-efi")); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(path), ".esp-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	// No menu and no pause: a server's console has nobody in front of it, and a start should take no longer than it must.
	texts := map[string]string{
		"syslinux.cfg": "DEFAULT linux\nPROMPT 0\nTIMEOUT 0\nLABEL linux\n  LINUX /vmlinuz\n  INITRD /initrd.img\n  APPEND " + b.cmdline + "\n",
		"loader.conf":  "default linux.conf\ntimeout 0\neditor no\n",
		"linux.conf":   "title Linux\nlinux /vmlinuz\ninitrd /initrd.img\noptions " + b.cmdline + "\n",
	}
	for name, text := range texts {
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	kib := strconv.FormatInt(int64(b.esp/api.KiB), 10)
	steps := [][]string{
		{"mkfs.vfat", "--invariant", "-F", "16", "-n", "ESP", "-i", espVolume, "-h", strconv.Itoa(firstSector), "-C", path, kib},
		{"mmd", "-i", path, "::/EFI", "::/EFI/BOOT", "::/loader", "::/loader/entries"},
		{"mcopy", "-i", path, b.kernel, "::/vmlinuz"},
		{"mcopy", "-i", path, b.initrd, "::/initrd.img"},
		{"mcopy", "-i", path, biosLoader, "::/ldlinux.c32"},
		{"mcopy", "-i", path, filepath.Join(work, "syslinux.cfg"), "::/syslinux.cfg"},
		{"mcopy", "-i", path, systemdBoot, "::/EFI/BOOT/BOOTX64.EFI"},
		{"mcopy", "-i", path, filepath.Join(work, "loader.conf"), "::/loader/loader.conf"},
		{"mcopy", "-i", path, filepath.Join(work, "linux.conf"), "::/loader/entries/linux.conf"},
		{"syslinux", "--install", path},
	}
	for _, step := range steps {
		if _, err := o.Run(ctx, work, step[0], step[1:]...); err != nil {
			return fmt.Errorf("make EFI system partition: %w", err)
		}
	}
	return nil
}

// makeRootFS makes an ext4 image of a tree, without mounting it.
func makeRootFS(ctx context.Context, o Options, tree, path string, size api.Bytes) error {
	_, err := o.Run(ctx, "", "mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-L", rootLabel, "-J", "size=8",
		"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "-d", tree, path, strconv.FormatInt(int64(size/api.KiB), 10)+"k")
	if err != nil {
		return err
	}
	return os.Chmod(path, 0o644)
}

// copyData copies a file's data, not its holes, to a place in another.
func copyData(ctx context.Context, path string, to *os.File, offset int64) error {
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer from.Close()
	for at := int64(0); ctx.Err() == nil; {
		begin, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		if at, err = unix.Seek(int(from.Fd()), begin, unix.SEEK_HOLE); err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(to, offset+begin), io.NewSectionReader(from, begin, at-begin)); err != nil {
			return err
		}
	}
	return ctx.Err()
}
