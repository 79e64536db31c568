package qemu_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

// kernelCache keeps Debian's cloud kernel between runs; it is downloaded once, and never installed.
const kernelCache = "/var/tmp/croft-test-kernel"

// linux finds Debian's cloud kernel and makes an initramfs that says READY, powers off at the power button and has a
// shell on the console.
func linux(t testing.TB) (kernel string, initramfs []byte) {
	t.Helper()
	kernels, _ := filepath.Glob(kernelCache + "/boot/vmlinuz-*")
	if len(kernels) == 0 {
		fetchKernel(t)
		kernels, _ = filepath.Glob(kernelCache + "/boot/vmlinuz-*")
	}
	if len(kernels) == 0 {
		t.Fatal("the package of the kernel holds none")
	}
	sort.Strings(kernels)
	kernel = kernels[len(kernels)-1]
	return kernel, initrd(t, strings.TrimPrefix(filepath.Base(kernel), "vmlinuz-"))
}

func fetchKernel(t testing.TB) {
	t.Helper()
	if err := os.MkdirAll(kernelCache, 0o755); err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) string {
		cmd := exec.Command(name, args...)
		cmd.Dir = kernelCache
		out, err := cmd.Output()
		if err != nil {
			t.Skipf("Debian's cloud kernel can't be had: %s %v: %v", name, args, err)
		}
		return string(out)
	}
	for line := range strings.Lines(run("apt-cache", "depends", "linux-image-cloud-amd64")) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok {
			run("apt-get", "download", name)
		}
	}
	packages, _ := filepath.Glob(kernelCache + "/*.deb")
	for _, path := range packages {
		run("dpkg", "-x", path, ".")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// modules of the test guest, in the order in which they are loaded.
var modules = []string{
	"drivers/virtio/virtio_ring", "drivers/virtio/virtio", "drivers/virtio/virtio_mmio", "drivers/virtio/virtio_pci_legacy_dev",
	"drivers/virtio/virtio_pci_modern_dev", "drivers/virtio/virtio_pci", "drivers/block/virtio_blk", "drivers/virtio/virtio_balloon",
	"drivers/acpi/button", "drivers/input/evdev", "net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net",
}

const initScript = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /etc
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin
for m in %s; do insmod /modules/$m.ko; done
mkdir -p /etc/acpi/PWRF
printf '#!/bin/sh\npoweroff -f\n' > /etc/acpi/PWRF/00000080; chmod +x /etc/acpi/PWRF/00000080
acpid -d > /dev/null 2>&1 &
while ! pidof acpid > /dev/null; do :; done
echo "disk=$(head -c 9 /dev/vda | tr -dc 'a-z') disks=$(ls /sys/class/block | tr '\n' ' ') net=$(cat /sys/class/net/eth0/address 2>/dev/null)"
echo LINUX-READY
while :; do setsid cttyhack sh < /dev/ttyS0 > /dev/ttyS0 2>&1; done
`

// initrd packs busybox, the modules and the script into a cpio archive (Documentation/driver-api/early-userspace/buffer-format.rst).
func initrd(t testing.TB, release string) []byte {
	t.Helper()
	var archive bytes.Buffer
	compressed, err := gzip.NewWriterLevel(&archive, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	inode := 0
	add := func(name string, mode int, content []byte) {
		inode++
		fmt.Fprintf(compressed, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
		fmt.Fprintf(compressed, "%s\x00%s", name, make([]byte, (4-(110+len(name)+1)%4)%4))
		fmt.Fprintf(compressed, "%s%s", content, make([]byte, (4-len(content)%4)%4))
	}
	read := func(path string) []byte {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Skipf("a part of the test guest is missing: %v", err)
		}
		return content
	}
	add("bin", 0o40755, nil)
	add("modules", 0o40755, nil)
	add("bin/busybox", 0o100755, read("/bin/busybox"))
	var names []string
	for _, module := range modules {
		path := filepath.Join(kernelCache, "lib/modules", release, "kernel", module+".ko")
		add("modules/"+filepath.Base(module)+".ko", 0o100644, read(path))
		names = append(names, filepath.Base(module))
	}
	add("init", 0o100755, fmt.Appendf(nil, initScript, strings.Join(names, " ")))
	add("TRAILER!!!", 0, nil)
	if err := compressed.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}
