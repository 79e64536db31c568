package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
	"github.com/croftproject/croft/test/world"
)

// testFirmware boots what users bring for a complete machine, from disks and ISOs, by BIOS and by UEFI.
func testFirmware(t *testing.T, w *world.World) {
	raw, err := os.ReadFile(microFile(t, w, "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	qcow2, blank, iso := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "blank.qcow2"), filepath.Join(dir, "boot.iso")
	tool(t, "qemu-img", "convert", "-c", "-O", "qcow2", microFile(t, w, "disk.raw"), qcow2)
	tool(t, "qemu-img", "create", "-f", "qcow2", blank, "64M")
	makeISO(t, w, iso, raw[1<<20:33<<20]) // micro's EFI system partition
	importBytes(t, w, "boot-raw", raw)
	for name, path := range map[string]string{"boot-qcow2": qcow2, "boot-blank": blank, "boot-iso": iso} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		importBytes(t, w, name, data)
	}
	for pointer, change := range map[string]func(*api.ServerSpec){
		"/spec/image":        func(s *api.ServerSpec) { s.Model, s.Engine, s.Image = api.ModelOS, "", "boot-raw" },
		"/spec/memory/limit": func(s *api.ServerSpec) { s.Firmware = api.FirmwareUEFI }, // small is too small for it
	} {
		spec := small(api.ModelFull, "qemu")
		change(&spec)
		_, err := w.Servers(world.Tenant).Create(t.Context(), client.Create[api.ServerSpec]{Name: "no", Spec: spec})
		wantCode(t, err, api.CodeInvalid, pointer)
	}
	const fromDisk = "grep '^/dev/vda2 / ext4' /proc/mounts"
	const fromISO = "grep by-isolinux /proc/cmdline"
	const byUEFI = "[ -d /sys/firmware/efi ]"
	for name, c := range map[string]struct {
		image, cdrom string
		firmware     api.Firmware
		devices      api.Devices
		checks       []string // commands that succeed in the guest
	}{
		"qcow2":       {image: "boot-qcow2", checks: []string{fromDisk, "! " + byUEFI}},
		"raw by UEFI": {image: "boot-raw", cdrom: "boot-iso", firmware: api.FirmwareUEFI, checks: []string{fromDisk, byUEFI}},
		"ISO": {image: "boot-iso", devices: api.DevicesEmulated, checks: []string{
			fromISO, "grep 0x010601 /sys/bus/pci/devices/*/class", "grep 0x10d3 /sys/bus/pci/devices/*/device", // AHCI, 82574L
			"! ls -d /sys/bus/virtio/drivers/virtio_blk/virtio*",
		}},
		"ISO by UEFI": {image: "boot-blank", cdrom: "boot-iso", firmware: api.FirmwareUEFI, checks: []string{"! " + fromDisk, byUEFI}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec := onLAN(small(api.ModelFull, "qemu"))
			spec.Image, spec.CDROM, spec.Firmware, spec.Devices = c.image, c.cdrom, c.firmware, c.devices
			spec.Memory.Limit = 192 * api.MiB // the least with UEFI
			server := "boots-" + strings.ToLower(strings.ReplaceAll(name, " ", "-"))
			w.Create(t, server, spec)
			w.Phase(t, server, api.PhaseRunning)
			sh := attach(t, w, server)
			for _, check := range c.checks {
				sh.ok(check)
			}
			w.Remove(t, server)
		})
	}
}

// microFile is the path of a file of the image micro.
func microFile(t *testing.T, w *world.World, name string) string {
	t.Helper()
	found, _ := filepath.Glob(filepath.Join(w.StateDir, "images", "*", name))
	if len(found) == 0 {
		t.Fatalf("micro has no %s", name)
	}
	return found[0]
}

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// makeISO makes an ISO that runs micro from memory, by ISOLINUX or by the boot loader on an EFI system partition.
func makeISO(t *testing.T, w *world.World, path string, esp []byte) {
	t.Helper()
	dir := t.TempDir()
	for from, to := range map[string]string{
		microFile(t, w, "vmlinuz"): "vmlinuz", microFile(t, w, "initrd.img"): "initrd.img",
		"/usr/lib/ISOLINUX/isolinux.bin": "isolinux.bin", "/usr/lib/syslinux/modules/bios/ldlinux.c32": "ldlinux.c32",
	} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Skipf("needs isolinux and syslinux-common: %v", err)
		}
		if err := os.WriteFile(filepath.Join(dir, to), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config := "DEFAULT linux\nLABEL linux\n  LINUX /vmlinuz\n  INITRD /initrd.img\n  APPEND quiet console=ttyS0 by-isolinux\n"
	for name, data := range map[string][]byte{"isolinux.cfg": []byte(config), "esp.img": esp} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tool(t, "genisoimage", "-quiet", "-o", path, "-c", "boot.cat", "-b", "isolinux.bin", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table",
		"-eltorito-alt-boot", "-e", "esp.img", "-no-emul-boot", dir)
}
