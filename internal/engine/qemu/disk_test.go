package qemu_test

import (
	"crypto/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/qemu"
)

const kernelArguments = "console=ttyS0 quiet"

// linuxDisk makes a disk that boots Linux by itself, from BIOS (syslinux) and from UEFI (systemd-boot).
func linuxDisk(t *testing.T, b *bench, m *engine.Machine) string {
	t.Helper()
	kernel, initramfs := linux(t)
	path := b.file(t, m, "disk")
	if err := os.Truncate(path, 64<<20); err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) {
		t.Helper()
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed", name)
		}
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	copyIn := func(to string, content []byte) {
		t.Helper()
		run("mcopy", "-i", path, b.file(t, m, "part", content), "::"+to)
	}
	const bootManager = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"
	manager, err := os.ReadFile(bootManager)
	if err != nil {
		t.Skipf("systemd-boot-efi is not installed: %v", err)
	}
	run("mkfs.vfat", path)
	for _, dir := range []string{"EFI", "EFI/BOOT", "loader", "loader/entries"} {
		run("mmd", "-i", path, "::"+dir)
	}
	run("mcopy", "-i", path, kernel, "::vmlinuz")
	copyIn("initrd", initramfs)
	copyIn("EFI/BOOT/BOOTX64.EFI", manager)
	copyIn("loader/loader.conf", []byte("timeout 0\n"))
	copyIn("loader/entries/linux.conf", []byte("title Linux\nlinux /vmlinuz\ninitrd /initrd\noptions "+kernelArguments+"\n"))
	copyIn("syslinux.cfg", []byte("DEFAULT linux\nPROMPT 0\nLABEL linux\n LINUX /vmlinuz\n INITRD /initrd\n APPEND "+kernelArguments+"\n"))
	run("syslinux", "--install", path)
	return path
}

// tapNamespace makes a network namespace with a tap device, as hostnet does for a port.
func tapNamespace(t *testing.T) engine.Tap {
	t.Helper()
	name := "croft-test-" + strings.ToLower(rand.Text()[:8])
	failed := make(chan error)
	go func() {
		// The thread stays in the new namespace, so it must end with the goroutine: it is locked and not unlocked.
		failed <- func() error {
			runtime.LockOSThread()
			handle, err := netns.NewNamed(name)
			if err != nil {
				return err
			}
			defer handle.Close()
			return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap0"}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR})
		}()
	}()
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netns.DeleteNamed(name) })
	return engine.Tap{NetNS: "/run/netns/" + name, Device: "tap0"}
}

// TestLinuxOnPC boots a disk with a boot loader on it, by BIOS and virtio devices; the network device is there too.
func TestLinuxOnPC(t *testing.T) {
	b := newBench(t)
	m := b.machine(t, "pc", api.ModelFull)
	m.Spec.Memory.Limit = 256 * api.MiB
	m.Root = engine.Root{Path: linuxDisk(t, b, m), Format: "raw"}
	m.NICs = []engine.NIC{{Name: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}, Tap: tapNamespace(t)}}
	m.Boot.Ready = "LINUX-READY"
	begin := time.Now()
	e := qemu.NewFull(b.keeper, qemu.Options{})
	g, err := e.Launch(within(t, 20*time.Second), m)
	if err != nil {
		t.Fatal(err)
	}
	shown := b.await(within(t, 60*time.Second), t, m, "LINUX-READY")
	t.Logf("userspace after %v, QEMU has %v beyond the guest's", time.Since(begin), residentBeyond(t, e, g, m))
	if !strings.Contains(shown, "net=02:00:00:00:00:07") {
		t.Errorf("the guest's network device is missing:\n%s", shown)
	}
	pausedThenStopped(t, g)
}

// TestUEFI boots the same disk by UEFI from emulated devices, with a CD in the drive and a seed. The firmware's
// variables are the machine's own, and stay when the guest is released.
func TestUEFI(t *testing.T) {
	b := newBench(t)
	m := b.machine(t, "uefi", api.ModelFull)
	m.Spec.Memory.Limit, m.Spec.Firmware, m.Spec.Devices = 256*api.MiB, api.FirmwareUEFI, api.DevicesEmulated
	m.Root = engine.Root{Path: linuxDisk(t, b, m), Format: "raw"}
	m.CDROM, m.Seed = b.file(t, m, "cd", make([]byte, 1<<16)), b.file(t, m, "seed", make([]byte, 1<<16))
	m.NICs = []engine.NIC{{Name: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 8}, Tap: tapNamespace(t)}}
	m.Boot.Ready = "LINUX-READY"
	e := qemu.NewFull(b.keeper, qemu.Options{})
	begin := time.Now()
	g, err := e.Launch(within(t, 20*time.Second), m)
	if err != nil {
		t.Fatal(err)
	}
	b.await(within(t, 60*time.Second), t, m, "LINUX-READY")
	t.Logf("userspace after %v, QEMU has %v beyond the guest's", time.Since(begin), residentBeyond(t, e, g, m))
	pausedThenStopped(t, g)
	if err := g.Release(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(m.Dir + "/efivars.fd*"); len(left) != 1 {
		t.Errorf("the variables after release: %v", left)
	}
	if err := e.Clean(within(t, 10*time.Second), m); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(m.Dir); len(left) != 0 {
		t.Errorf("left after clean: %v", left)
	}
}
