package build

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// cloudKernel is Debian's kernel for guests; it depends on the package of the present version.
const cloudKernel = "linux-image-cloud-amd64"

// kernel is an unpacked kernel package. It is used where it lies, and never installed.
type kernel struct {
	dir     string // holds boot/ and lib/modules/
	version string // "6.1.0-56-cloud-amd64"
}

func (k kernel) image() string { return filepath.Join(k.dir, "boot", "vmlinuz-"+k.version) }

// fetchKernel downloads and unpacks the kernel, unless this version is in the cache. Where the archive can't be reached,
// a cached kernel of another version does, or one that is installed on the host.
func fetchKernel(ctx context.Context, o Options) (kernel, error) {
	cache := filepath.Join(o.CacheDir, "kernel")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return kernel{}, err
	}
	name, version, err := kernelPackage(ctx, o)
	if err != nil {
		if k, ok := anyKernel(cache); ok {
			return k, nil
		}
		return kernel{}, err
	}
	k := kernel{dir: filepath.Join(cache, name+"_"+version), version: strings.TrimPrefix(name, "linux-image-")}
	if _, err := os.Stat(k.image()); err == nil {
		return k, nil
	}
	making, err := os.MkdirTemp(cache, ".making-")
	if err != nil {
		return kernel{}, err
	}
	defer os.RemoveAll(making)
	// The download runs as root: the user of apt's own sandbox can't write below a private directory.
	if _, err := o.Run(ctx, making, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name+"="+version); err != nil {
		if k, ok := anyKernel(cache); ok {
			return k, nil
		}
		return kernel{}, err
	}
	debs, err := filepath.Glob(filepath.Join(making, "*.deb"))
	if err != nil || len(debs) != 1 {
		return kernel{}, fmt.Errorf("apt-get download of %s left %d packages", name, len(debs))
	}
	if _, err := o.Run(ctx, making, "dpkg", "-x", debs[0], "unpacked"); err != nil {
		return kernel{}, err
	}
	err = os.Rename(filepath.Join(making, "unpacked"), k.dir)
	if _, missing := os.Stat(k.image()); err != nil && missing == nil {
		return k, nil // another build was faster
	}
	return k, err
}

// kernelPackage finds the package that holds the present kernel, and its version.
func kernelPackage(ctx context.Context, o Options) (name, version string, err error) {
	out, err := o.Run(ctx, "", "apt-cache", "depends", cloudKernel)
	if err != nil {
		return "", "", err
	}
	if name = field(out, "Depends"); !strings.HasPrefix(name, "linux-image-") {
		return "", "", fmt.Errorf("the package lists hold no kernel behind %s: run apt-get update", cloudKernel)
	}
	if out, err = o.Run(ctx, "", "apt-cache", "show", "--no-all-versions", name); err != nil {
		return "", "", err
	}
	if version = field(out, "Version"); version == "" {
		return "", "", fmt.Errorf("the package lists hold no version of %s", name)
	}
	return name, version, nil
}

// field reads the first "Name: value" line.
func field(text []byte, name string) string {
	for scan := bufio.NewScanner(bytes.NewReader(text)); scan.Scan(); {
		if value, ok := strings.CutPrefix(strings.TrimSpace(scan.Text()), name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// anyKernel is the newest kernel in the cache, or else of the host's.
func anyKernel(cache string) (kernel, bool) {
	images, _ := filepath.Glob(filepath.Join(cache, "*", "boot", "vmlinuz-*"))
	if len(images) == 0 {
		images, _ = filepath.Glob("/boot/vmlinuz-*-cloud-amd64")
	}
	if len(images) == 0 {
		return kernel{}, false
	}
	newest := slices.MaxFunc(images, func(a, b string) int { return modified(a).Compare(modified(b)) })
	return kernel{
		dir:     filepath.Dir(filepath.Dir(newest)),
		version: strings.TrimPrefix(filepath.Base(newest), "vmlinuz-"),
	}, true
}

// modules finds the files of kernel modules, each after those that it depends on. A module that this kernel has built
// in, or lacks, is left out.
func (k kernel) modules(names ...string) ([]string, error) {
	paths := map[string]string{}
	err := filepath.WalkDir(filepath.Join(k.dir, "lib/modules", k.version), func(path string, d fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			paths[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var order []string
	seen := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		path, ok := paths[name]
		if !ok || seen[name] {
			return nil
		}
		seen[name] = true
		needs, err := moduleNeeds(path)
		if err != nil {
			return err
		}
		for _, need := range needs {
			if err := add(need); err != nil {
				return err
			}
		}
		order = append(order, path)
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleNeeds reads what a module says of itself: "depends=a,b" among the NUL-ended strings of section .modinfo.
func moduleNeeds(path string) ([]string, error) {
	file, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", path, err)
	}
	defer file.Close()
	section := file.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("%s is no kernel module", path)
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", path, err)
	}
	for _, entry := range bytes.Split(info, []byte{0}) {
		if list, ok := bytes.CutPrefix(entry, []byte("depends=")); ok && len(list) > 0 {
			return strings.Split(strings.ReplaceAll(string(list), "-", "_"), ","), nil
		}
	}
	return nil, nil
}

func modified(path string) time.Time {
	st, err := os.Stat(path)
	if err != nil {
		return time.Time{}
	}
	return st.ModTime()
}
