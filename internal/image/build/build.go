// Package build makes the built-in images from Debian's packages.
//
// Each recipe makes one root tree; everything else is made of it: a file system image, a disk with boot loaders, an
// initial RAM file system. So a server is the same system under each of the models.
package build

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/croftproject/croft/internal/image"
	"github.com/croftproject/croft/internal/image/sandbox"
)

// Options of a build.
type Options struct {
	CacheDir string // where packages and what was unpacked of them are kept for the next build
	Logger   *slog.Logger
	// Groups are where the programs of a build run within limits; nil: in the caller's control group.
	Groups sandbox.Groups
	// Progress is told the step and its percentage.
	Progress func(step string, percent int)
}

// Recipe makes an image's parts in an empty directory. Paths in what it returns are relative to it. Digest names what
// went into it.
type Recipe func(ctx context.Context, o Options, dir string) (image.Content, error)

// Recipes by the name of the image.
var Recipes = map[string]Recipe{
	"debian-12": Debian12,
	"micro":     Micro,
}

// Names of the parts of an image in its directory.
const (
	privateName = "private" // keeps other users from the tree, whose files may be setuid
	treeName    = "private/tree"
	rootFSName  = "rootfs.ext4"
	diskName    = "disk.raw"
	kernelName  = "vmlinuz"
	initrdName  = "initrd.img"
)

// ErrMissing says that a program that a build needs is not installed.
var ErrMissing = errors.New("not installed")

const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// packageOf names the Debian package of each program that recipes run.
var packageOf = map[string]string{
	"apt-cache": "apt", "apt-get": "apt", "dpkg": "dpkg", "busybox": "busybox-static", "mkfs.ext4": "e2fsprogs",
	"mkfs.vfat": "dosfstools", "mcopy": "mtools", "mmd": "mtools", "syslinux": "syslinux", "mmdebstrap": "mmdebstrap",
	"resize2fs": "e2fsprogs", "tar": "tar", "chroot": "coreutils",
}

func lookPath(program string) (string, error) {
	for _, dir := range strings.Split(searchPath, ":") {
		path := filepath.Join(dir, program)
		if st, err := os.Stat(path); err == nil && st.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is %w: install the package %s", program, ErrMissing, packageOf[program])
}

// need finds a file of a Debian package.
func need(path, debian string) error {
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("%s is %w: install the package %s", path, ErrMissing, debian)
	}
	return nil
}

func lastLines(text string, count int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-count):], "; ")
}
