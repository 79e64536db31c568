package qemu

import (
	"fmt"
	"strings"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine/qemu/accel"
)

// full adds what makes a PC: firmware, display, disks and PCI devices.
func (c *commandLine) full() {
	m := c.machine
	c.pci = true
	machine := []setting{{"type", c.facts.MachineType}, {"vmport", "off"}, {"smm", "off"}, {"dump-guest-core", "off"}, {"mem-merge", "off"}}
	if m.Spec.Memory.HugePages {
		machine = append(machine, setting{"memory-backend", "ram"})
	}
	if m.Spec.Firmware == api.FirmwareUEFI {
		c.blockdev(blockNode{Driver: "raw", Node: "firmware", ReadOnly: true, File: fileNode{Driver: "file", Name: c.facts.Firmware}})
		c.blockdev(blockNode{Driver: "raw", Node: "efivars", File: fileNode{Driver: "file", Name: c.paths.vars}})
		machine = append(machine, setting{"pflash0", "firmware"}, setting{"pflash1", "efivars"})
	}
	c.option("machine", machine...)
	c.option("boot", setting{"menu", "off"}, setting{"strict", "on"})
	c.option("vnc", setting{"vnc", "unix:" + c.paths.vnc})
	c.onPCI("VGA", slotVGA, device{})

	emulated := m.Spec.Devices == api.DevicesEmulated
	c.disk("root", m.Root.Path, m.Root.Format, false)
	if emulated {
		c.object("device", device{"driver": "ide-hd", "drive": "root", "bus": "ide.0", "bootindex": 0})
	} else {
		c.virtio("virtio-blk", slotRoot, device{"drive": "root", "bootindex": 0})
	}
	if m.CDROM != "" {
		c.disk("cdrom", m.CDROM, "raw", true)
		c.object("device", device{"driver": "ide-cd", "drive": "cdrom", "bus": "ide.1", "bootindex": 1})
	}
	if m.Seed != "" {
		c.disk("seed", m.Seed, "raw", true)
		if emulated {
			c.object("device", device{"driver": "ide-cd", "drive": "seed", "bus": "ide.2"})
		} else {
			c.virtio("virtio-blk", slotSeed, device{"drive": "seed"})
		}
	}
	c.shared()
	for i := range m.NICs {
		c.nic(i, func(d device) {
			d["romfile"] = "" // no network boot
			if emulated {
				c.onPCI("e1000e", slotNIC+i, d)
			} else {
				c.virtio("virtio-net", slotNIC+i, d)
			}
		})
	}
	for _, g := range m.Grants {
		if g.Kind == api.GrantDevice {
			c.object("device", device{"driver": "vfio-pci", "host": g.Source})
		}
	}
}

// micro adds what makes a microvm: a kernel and virtio devices.
//
// The devices are described by ACPI, which Debian's cloud kernel needs (it takes none from its command line) and which
// gives the machine its power button. There is no i8254 or i8259: a kernel under KVM keeps time by kvm-clock, and one
// under TCG is told the rate of its time stamp counter, since measuring it against an i8254 fails when the host is busy
// and the kernel then hangs. Only where the host's counter is not constant the old timer remains.
func (c *commandLine) micro() {
	m := c.machine
	timers := "off"
	if c.facts.Accel == accel.TCG && c.facts.TSC == 0 {
		timers = "on"
	}
	machine := []setting{
		{"type", c.facts.MachineType}, {"acpi", "on"}, {"x-option-roms", "off"}, {"pit", timers}, {"pic", timers}, {"rtc", "on"},
		{"isa-serial", "on"}, {"auto-kernel-cmdline", "off"}, {"dump-guest-core", "off"}, {"mem-merge", "off"},
	}
	if m.Spec.Memory.HugePages {
		machine = append(machine, setting{"memory-backend", "ram"})
	}
	c.option("machine", machine...)
	c.flag("display", "none")
	c.flag("kernel", m.Boot.Kernel)
	if m.Boot.Initrd != "" {
		c.flag("initrd", m.Boot.Initrd)
	}
	c.flag("append", c.kernelCommandLine())

	c.disk("root", m.Root.Path, m.Root.Format, false)
	c.virtio("virtio-blk", slotRoot, device{"drive": "root"})
	if m.Seed != "" {
		c.disk("seed", m.Seed, "raw", true)
		c.virtio("virtio-blk", slotSeed, device{"drive": "seed"})
	}
	for i := range m.NICs {
		c.nic(i, func(d device) { c.virtio("virtio-net", slotNIC+i, d) })
	}
	c.shared()
}

// kernelCommandLine is the guest kernel's: ours first, so that the image's can override it.
func (c *commandLine) kernelCommandLine() string {
	words := []string{"console=ttyS0", "reboot=t", "panic=-1", "root=/dev/vda", "rw"}
	if c.facts.Accel == accel.TCG && c.facts.TSC > 0 {
		words = append(words, fmt.Sprintf("tsc_early_khz=%d", c.facts.TSC))
	}
	if c.machine.Boot.Cmdline != "" {
		words = append(words, c.machine.Boot.Cmdline)
	}
	return strings.Join(words, " ")
}

// blockNode is a node of QEMU's block graph: a format on a file.
type blockNode struct {
	Driver       string   `json:"driver"`
	Node         string   `json:"node-name"`
	ReadOnly     bool     `json:"read-only"`
	Discard      string   `json:"discard,omitempty"`
	DetectZeroes string   `json:"detect-zeroes,omitempty"`
	Cache        *cache   `json:"cache,omitempty"`
	File         fileNode `json:"file"`
}

type fileNode struct {
	Driver  string `json:"driver"`
	Name    string `json:"filename"`
	AIO     string `json:"aio,omitempty"`
	Discard string `json:"discard,omitempty"`
	Cache   *cache `json:"cache,omitempty"`
}

type cache struct {
	Direct bool `json:"direct"`
}

func (c *commandLine) blockdev(n blockNode) { c.object("blockdev", n) }

// disk adds a disk image. The guest's flushes reach the host's disk in any case; without DirectIO the host's page cache
// helps, and is shared by all the guests of one image.
func (c *commandLine) disk(node, path, format string, readOnly bool) {
	n := blockNode{Driver: format, Node: node, ReadOnly: readOnly, File: fileNode{Driver: "file", Name: path}}
	if !readOnly {
		n.Discard, n.DetectZeroes, n.File.Discard = "unmap", "unmap", "unmap"
		if c.facts.DirectIO {
			n.Cache, n.File.Cache, n.File.AIO = &cache{Direct: true}, &cache{Direct: true}, "native"
		} else {
			n.File.AIO = "threads"
		}
	}
	c.blockdev(n)
}
