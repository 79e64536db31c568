package build

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/image"
)

// debianFiles is what the image debian-12 adds to its packages: how it finds its first-boot configuration and network,
// and where it shows a login.
//
//go:embed all:debian
var debianFiles embed.FS

const (
	debianSuite = "bookworm"
	debianDisk  = 2 * api.GiB // of the root file system; cloud-init grows it to the server's disk
	debianESP   = 128 * api.MiB
	debianReady = "login:"
	// debianCmdline: root is mounted read-write, as there is no fstab to remount it by.
	debianCmdline = "rw quiet"
)

// debianPackages make a system that people log in to, and that configures itself at its first boot. The kernel serves the
// models full and para; under os it is not used.
var debianPackages = []string{
	"systemd-sysv", "udev", "dbus", "systemd-resolved", "iproute2", "iputils-ping", "openssh-server", "cloud-init",
	"cloud-guest-utils", "fdisk", "e2fsprogs", "netbase", "sudo", "ca-certificates", "wget", "less", "procps", "kmod",
	cloudKernel, "zstd",
}

// debianLinks are units that start with the system, and signals of the host's that mean "power off".
var debianLinks = map[string]string{
	"etc/systemd/system/multi-user.target.wants/systemd-networkd.service":                 "/lib/systemd/system/systemd-networkd.service",
	"etc/systemd/system/sockets.target.wants/systemd-networkd.socket":                     "/lib/systemd/system/systemd-networkd.socket",
	"etc/systemd/system/dbus-org.freedesktop.network1.service":                            "/lib/systemd/system/systemd-networkd.service",
	"etc/systemd/system/network-online.target.wants/systemd-networkd-wait-online.service": "/lib/systemd/system/systemd-networkd-wait-online.service",
	"etc/systemd/system/multi-user.target.wants/croft-hostkeys.service":                   "/etc/systemd/system/croft-hostkeys.service",
	"etc/systemd/system/getty.target.wants/croft-console.service":                         "/etc/systemd/system/croft-console.service",
	// Volumes of Croft's have no logical volume manager below, which these look for at each start.
	"etc/systemd/system/e2scrub_reap.service": "/dev/null",
	"etc/systemd/system/e2scrub_all.timer":    "/dev/null",
	// The host asks by SIGPWR (os) and by Ctrl-Alt-Del (uml); systemd's defaults are nothing and a reboot.
	"etc/systemd/system/sigpwr.target":       "/lib/systemd/system/poweroff.target",
	"etc/systemd/system/ctrl-alt-del.target": "/lib/systemd/system/poweroff.target",
}

// debianPrivate are files that would make two servers of the image the same one.
var debianPrivate = []string{
	"etc/ssh/ssh_host_*", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "etc/hostname", "var/log/*.log", "var/log/apt/*",
	"var/cache/apt/*.bin", "var/lib/cloud/*",
}

// umlModules is where the package user-mode-linux keeps the modules of its kernel.
const umlModules = "/usr/lib/uml/modules"

// Debian12 makes the image debian-12: one tree, of which everything else is made.
func Debian12(ctx context.Context, o Options, dir string) (image.Content, error) {
	if err := os.Mkdir(filepath.Join(dir, privateName), 0o700); err != nil {
		return image.Content{}, err
	}
	tree := filepath.Join(dir, treeName)
	o.Progress("packages", 0)
	if err := debianTree(ctx, o, dir, tree); err != nil {
		return image.Content{}, fmt.Errorf("make tree: %w", err)
	}
	o.Progress("boot files", 60)
	boot := bootable{
		rootFS: filepath.Join(dir, rootFSName), kernel: filepath.Join(dir, kernelName), initrd: filepath.Join(dir, initrdName),
		cmdline: "root=LABEL=" + rootLabel + " console=tty0 console=ttyS0 " + debianCmdline, esp: debianESP,
	}
	if err := debianBoot(tree, boot); err != nil {
		return image.Content{}, err
	}
	digest, err := debianDigest(tree, boot.kernel, umlModules)
	if err != nil {
		return image.Content{}, err
	}
	o.Progress("file system", 70)
	if err := makeRootFS(ctx, o, tree, boot.rootFS, debianDisk); err != nil {
		return image.Content{}, err
	}
	o.Progress("disk", 80)
	if err := boot.write(ctx, o, filepath.Join(dir, diskName)); err != nil {
		return image.Content{}, fmt.Errorf("make disk: %w", err)
	}
	disk, err := os.Stat(filepath.Join(dir, diskName))
	if err != nil {
		return image.Content{}, err
	}
	return image.Content{
		Digest: digest, Format: "build", MinDisk: api.Bytes(disk.Size()), Models: api.Models,
		Tree: treeName, RootFS: rootFSName, Disk: diskName, DiskFormat: "raw",
		Kernel: kernelName, Initrd: initrdName, Cmdline: debianCmdline, CloudInit: true, Ready: debianReady,
	}, nil
}

// debianTree installs the packages into a new tree and makes it an image's.
func debianTree(ctx context.Context, o Options, dir, tree string) error {
	files, err := os.MkdirTemp(dir, ".files-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(files)
	if err := debianOwnFiles(files); err != nil {
		return err
	}
	// The files are there before the packages that read them while they are configured: the RAM file system's above all.
	_, err = o.Run(ctx, dir, "mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", "--include="+strings.Join(debianPackages, ","),
		"--essential-hook=copy-in "+filepath.Join(files, "etc")+" "+filepath.Join(files, "usr")+" /", debianSuite, tree)
	if err != nil {
		return err
	}
	for _, pattern := range debianPrivate {
		paths, err := filepath.Glob(filepath.Join(tree, pattern))
		if err != nil {
			return err
		}
		for _, path := range paths {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	// Empty: systemd makes one at the first start, and keeps it (machine-id(5)).
	if err := os.WriteFile(filepath.Join(tree, "etc/machine-id"), nil, 0o444); err != nil {
		return err
	}
	// The guest's kernel or the host fills /dev.
	if err := emptyDir(filepath.Join(tree, "dev")); err != nil {
		return err
	}
	return copyModules(tree, umlModules)
}

// copyModules adds the modules of User-Mode Linux's kernel beside those of Debian's.
func copyModules(tree, modules string) error {
	versions, err := moduleVersions(modules)
	if err != nil {
		return err
	}
	for _, v := range versions {
		if err := os.CopyFS(filepath.Join(tree, "usr/lib/modules", v), os.DirFS(filepath.Join(modules, v))); err != nil {
			return err
		}
	}
	return nil
}

// moduleVersions are the kernel versions that a directory has modules of, in order; none where there is no directory.
func moduleVersions(modules string) ([]string, error) {
	entries, err := os.ReadDir(modules)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	versions := []string{}
	for _, e := range entries {
		versions = append(versions, e.Name())
	}
	return versions, nil
}

func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// debianOwnFiles writes the embedded files and links below dir.
func debianOwnFiles(dir string) error {
	own, err := fs.Sub(debianFiles, "debian")
	if err != nil {
		return err
	}
	if err := os.CopyFS(dir, own); err != nil {
		return err
	}
	for name, target := range debianLinks {
		link := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(target, link); err != nil {
			return err
		}
	}
	return nil
}

// debianBoot takes kernel and RAM file system out of the tree.
func debianBoot(tree string, boot bootable) error {
	for pattern, target := range map[string]string{"vmlinuz-*": boot.kernel, "initrd.img-*": boot.initrd} {
		found, err := filepath.Glob(filepath.Join(tree, "boot", pattern))
		if err != nil || len(found) != 1 {
			return fmt.Errorf("the tree holds %d files /boot/%s, not one", len(found), pattern)
		}
		if err := copyFile(found[0], target); err != nil {
			return err
		}
	}
	return nil
}

// debianDigest is over what the tree was made from: the packages' versions, the files added, the kernel, and the versions
// of the modules that are copied from the host's directory.
func debianDigest(tree, kernel, modules string) (string, error) {
	packages, err := digestFiles(filepath.Join(tree, "var/lib/dpkg/status"), kernel, gptCode, biosLoader, systemdBoot)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	fmt.Fprintln(sum, packages, debianCmdline, debianLinks)
	versions, err := moduleVersions(modules)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(sum, "%q\n", versions)
	err = fs.WalkDir(debianFiles, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := debianFiles.ReadFile(path)
		fmt.Fprintf(sum, "%s %d\n%s", path, len(text), text)
		return err
	})
	return "sha256:" + hex.EncodeToString(sum.Sum(nil)), err
}
