package build

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/image"
)

// microFiles is what the image micro adds to busybox: its init's configuration, and /init of the RAM file system.
//
//go:embed all:micro
var microFiles embed.FS

const (
	microDisk = 64 * api.MiB // of the root file system; the server's disk may be larger
	microESP  = 32 * api.MiB
	// microCmdline keeps the kernel's own messages off the slow serial line, and leaves warnings.
	microCmdline = "quiet loglevel=4 random.trust_cpu=on"
	microReady   = "croft: ready"
)

// microModules are the drivers of what the engines emulate, for the initial RAM file system.
var microModules = []string{
	"virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net",
	"button", "evdev", "virtio_input",
}

// Micro makes the image micro: busybox with a small init, DHCP and a web server that tells its host name. It is small
// enough to start in the time that its engine takes.
func Micro(ctx context.Context, o Options, dir string) (image.Content, error) {
	o.Progress("kernel", 0)
	k, err := fetchKernel(ctx, o)
	if err != nil {
		return image.Content{}, err
	}
	o.Progress("tree", 40)
	if err := os.Mkdir(filepath.Join(dir, privateName), 0o700); err != nil {
		return image.Content{}, err
	}
	tree := filepath.Join(dir, treeName)
	if err := microTree(ctx, o, tree); err != nil {
		return image.Content{}, fmt.Errorf("make tree: %w", err)
	}
	o.Progress("boot files", 50)
	boot := bootable{
		rootFS: filepath.Join(dir, rootFSName), kernel: filepath.Join(dir, kernelName), initrd: filepath.Join(dir, initrdName),
		cmdline: "root=" + rootPartition + " console=tty0 console=ttyS0 " + microCmdline, esp: microESP,
	}
	if err := copyFile(k.image(), boot.kernel); err != nil {
		return image.Content{}, err
	}
	if err := microInitrd(k, tree, boot.initrd); err != nil {
		return image.Content{}, fmt.Errorf("make initial RAM file system: %w", err)
	}
	o.Progress("file system", 60)
	if err := makeRootFS(ctx, o, tree, boot.rootFS, microDisk); err != nil {
		return image.Content{}, err
	}
	o.Progress("disk", 70)
	if err := boot.write(ctx, o, filepath.Join(dir, diskName)); err != nil {
		return image.Content{}, fmt.Errorf("make disk: %w", err)
	}
	digest, err := digestFiles(boot.kernel, boot.initrd, gptCode, biosLoader, systemdBoot)
	if err != nil {
		return image.Content{}, err
	}
	disk, err := os.Stat(filepath.Join(dir, diskName))
	if err != nil {
		return image.Content{}, err
	}
	return image.Content{
		Digest: digest, Format: "build", MinDisk: api.Bytes(disk.Size()), Models: api.Models,
		Tree: treeName, RootFS: rootFSName, Disk: diskName, DiskFormat: "raw",
		Kernel: kernelName, Initrd: initrdName, Cmdline: microCmdline, Ready: microReady,
	}, nil
}

// microTree makes the root tree: busybox, its links, and the files beside this one.
func microTree(ctx context.Context, o Options, tree string) error {
	for _, name := range []string{"", "bin", "dev", "etc", "lib", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "usr/sbin", "var/log", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(tree, name), 0o755); err != nil {
			return err
		}
	}
	for name, mode := range map[string]fs.FileMode{"tmp": 0o777 | fs.ModeSticky, "var/tmp": 0o777 | fs.ModeSticky, "root": 0o700} {
		if err := os.Chmod(filepath.Join(tree, name), mode); err != nil {
			return err
		}
	}
	busybox, err := lookPath("busybox")
	if err != nil {
		return err
	}
	if err := copyFile(busybox, filepath.Join(tree, "bin/busybox")); err != nil {
		return err
	}
	if err := os.Chmod(filepath.Join(tree, "bin/busybox"), 0o755); err != nil {
		return err
	}
	applets, err := o.Run(ctx, "", "busybox", "--list-full")
	if err != nil {
		return err
	}
	for scan := bufio.NewScanner(bytes.NewReader(applets)); scan.Scan(); {
		link := filepath.Join(tree, scan.Text())
		if _, err := os.Lstat(link); err == nil {
			continue
		}
		if err := os.Symlink("/bin/busybox", link); err != nil {
			return err
		}
	}
	return microOwnFiles(tree)
}

// microOwnFiles copies the embedded files; scripts become executable, and /etc/shadow private.
func microOwnFiles(tree string) error {
	return fs.WalkDir(microFiles, "micro", func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == "micro" || path == "micro/init" {
			return err
		}
		target := filepath.Join(tree, strings.TrimPrefix(path, "micro/"))
		if d.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		text, err := microFiles.ReadFile(path)
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		switch {
		case bytes.HasPrefix(text, []byte("#!")):
			mode = 0o755
		case d.Name() == "shadow":
			mode = 0o600
		}
		// An applet's link may be in the way.
		if err := os.Remove(target); err != nil && !os.IsNotExist(err) {
			return err
		}
		if err := os.WriteFile(target, text, mode); err != nil {
			return err
		}
		return os.Chmod(target, mode)
	})
}

// microInitrd makes the initial RAM file system: the tree itself, so that a guest without a disk runs from memory, with
// the drivers in the order in which they are loaded.
func microInitrd(k kernel, tree, path string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	archive := newCPIO(file)
	if err := archive.addTree(tree); err != nil {
		return err
	}
	// The kernel opens /dev/console for /init before anything is mounted.
	archive.addDevice("dev/console", unix.S_IFCHR|0o600, 5, 1)
	script, err := microFiles.ReadFile("micro/init")
	if err != nil {
		return err
	}
	archive.add("init", unix.S_IFREG|0o755, script)
	archive.add("lib/modules", unix.S_IFDIR|0o755, nil)
	modules, err := k.modules(microModules...)
	if err != nil {
		return err
	}
	var order strings.Builder
	for _, module := range modules {
		fmt.Fprintln(&order, strings.TrimSuffix(filepath.Base(module), ".ko"))
		if err := archive.addFile("lib/modules/"+filepath.Base(module), module); err != nil {
			return err
		}
	}
	archive.add("lib/modules/order", unix.S_IFREG|0o644, []byte(order.String()))
	if err := archive.close(); err != nil {
		return err
	}
	return file.Close()
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}

// digestFiles is the digest of what an image is made from. The initial RAM file system holds the tree; file systems hold
// random identifiers, and are left out.
func digestFiles(paths ...string) (string, error) {
	sum := sha256.New()
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%d\n", len(data))
		sum.Write(data)
	}
	return "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}
