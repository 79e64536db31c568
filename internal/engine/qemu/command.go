package qemu

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/qemu/accel"
)

// Facts are what a command line needs to know of the host.
type Facts struct {
	Binary      string // path
	MachineType string // versioned: "pc-q35-7.2"
	Accel       accel.Kind
	TSC         int64  // kHz; zero where the host's counter is not constant
	Firmware    string // OVMF's code, for UEFI
	// DirectIO has QEMU go past the host's page cache, so that the cgroup's I/O limits hold for each request.
	DirectIO bool
}

var pciAddress = regexp.MustCompile(`^([0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)

// CommandLine is QEMU's command line for a machine, with the binary first. It is pure.
func CommandLine(m *engine.Machine, f Facts) []string {
	c := &commandLine{args: []string{f.Binary}, machine: m, facts: f, paths: pathsOf(m)}
	c.common()
	if m.Spec.Model == api.ModelFull {
		c.full()
	} else {
		c.micro()
	}
	return c.args
}

// commandLine grows by typed parts.
type commandLine struct {
	args    []string
	machine *engine.Machine
	facts   Facts
	paths   paths
	pci     bool // devices are on PCI, not virtio-mmio
}

func (c *commandLine) flag(name string, value ...string) {
	c.args = append(append(c.args, "-"+name), value...)
}

// setting is one key=value of an option.
type setting struct{ key, value string }

// option writes -name a=b,c=d. A comma within a value is doubled (qemu(1), "Syntax").
func (c *commandLine) option(name string, settings ...setting) {
	parts := make([]string, len(settings))
	for i, s := range settings {
		parts[i] = s.key + "=" + strings.ReplaceAll(s.value, ",", ",,")
	}
	c.flag(name, strings.Join(parts, ","))
}

// object writes an option whose value is JSON, in which nothing needs escaping.
func (c *commandLine) object(name string, value any) {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err) // the values are ours, and can be marshalled
	}
	c.flag(name, string(text))
}

// device is a -device; the keys are QEMU's properties.
type device map[string]any

// Slots of the PCI bus. They are fixed, so that a device that comes or goes moves no other: guests name their network
// devices by them. QEMU has the host bridge in slot 0 and the chipset in slot 31.
const (
	slotVGA     = 1
	slotRoot    = 2
	slotRNG     = 3
	slotBalloon = 4
	slotSeed    = 5
	slotNIC     = 8  // to 15
	slotDir     = 16 // to 27; what is free is for granted devices
	maxNICs     = slotDir - slotNIC
	maxDirs     = 12
)

// virtio adds a virtio device by its name without the bus: "virtio-blk". A microvm has no slots.
func (c *commandLine) virtio(name string, slot int, properties device) {
	if c.pci {
		c.onPCI(name+"-pci", slot, properties)
		return
	}
	properties["driver"] = name + "-device"
	c.object("device", properties)
}

func (c *commandLine) onPCI(driver string, slot int, properties device) {
	properties["driver"], properties["bus"], properties["addr"] = driver, "pcie.0", fmt.Sprintf("%#x", slot)
	c.object("device", properties)
}

// common are the parts that both machines have.
func (c *commandLine) common() {
	m := c.machine
	c.flag("nodefaults")
	c.flag("no-user-config")
	c.option("name", setting{"guest", m.Name})
	c.flag("uuid", uuid(m.ID))
	c.option("sandbox", setting{"enable", "on"}, setting{"obsolete", "deny"}, setting{"elevateprivileges", "deny"},
		setting{"spawn", "deny"}, setting{"resourcecontrol", "deny"})
	c.accelerator()
	c.option("smp", setting{"cpus", fmt.Sprint(m.Spec.CPU.Count)}, setting{"sockets", "1"},
		setting{"cores", fmt.Sprint(m.Spec.CPU.Count)}, setting{"threads", "1"})
	c.option("m", setting{"size", fmt.Sprintf("%dk", m.Spec.Memory.Limit/api.KiB)})
	if m.Spec.Memory.HugePages {
		c.object("object", struct {
			Type      string    `json:"qom-type"`
			ID        string    `json:"id"`
			Size      api.Bytes `json:"-"`
			SizeBytes int64     `json:"size"`
			HugeTLB   bool      `json:"hugetlb"`
			Page      int64     `json:"hugetlbsize"`
			Prealloc  bool      `json:"prealloc"`
		}{Type: "memory-backend-memfd", ID: "ram", SizeBytes: int64(m.Spec.Memory.Limit), HugeTLB: true, Page: int64(hugePageSize), Prealloc: true})
	}
	c.option("rtc", setting{"base", "utc"}, setting{"clock", "host"})

	// The keeper's terminal is the guest's: signal=off leaves ^C to the guest.
	c.option("chardev", setting{"backend", "stdio"}, setting{"id", "console"}, setting{"signal", "off"})
	c.flag("serial", "chardev:console")
	for _, monitor := range []struct{ id, path string }{{"control", c.paths.control}, {"events", c.paths.events}} {
		c.option("chardev", setting{"backend", "socket"}, setting{"id", monitor.id}, setting{"path", monitor.path},
			setting{"server", "on"}, setting{"wait", "off"})
		c.option("mon", setting{"chardev", monitor.id}, setting{"mode", "control"})
	}
}

// accelerator chooses what runs the guest's instructions, and the processor that it sees: all that there is, but
// virtualization of its own only where that is granted.
func (c *commandLine) accelerator() {
	nesting := slices.ContainsFunc(c.machine.Grants, func(g api.Grant) bool { return g.Kind == api.GrantNesting })
	hide := ""
	if !nesting {
		hide = ",svm=off,vmx=off"
	}
	if c.facts.Accel == accel.KVM {
		c.flag("accel", "kvm")
		c.flag("cpu", "host"+hide)
		return
	}
	c.option("accel", setting{"accel", "tcg"}, setting{"thread", "multi"}, setting{"tb-size", fmt.Sprint(int64(translationCache / api.MiB))})
	// Five-level page tables make every translation of an address longer, for nothing that a guest here would need.
	c.flag("cpu", "max,la57=off"+hide)
}

// shared are the devices that both machines have, after their disks.
func (c *commandLine) shared() {
	c.object("object", device{"qom-type": "rng-random", "id": "entropy", "filename": "/dev/urandom"})
	c.virtio("virtio-rng", slotRNG, device{"rng": "entropy"})
	c.virtio("virtio-balloon", slotBalloon, device{"id": "balloon", "deflate-on-oom": true})
	number := 0
	for _, g := range c.machine.Grants {
		if g.Kind == api.GrantDirectory {
			c.directory(number, g)
			number++
		}
	}
}

// directory hands a host directory over by 9p: the one that the keeper has opened, which no link can exchange. QEMU is unprivileged: what guests' users own is kept in extended
// attributes ("mapped-xattr"), and every file belongs to QEMU's user.
func (c *commandLine) directory(number int, g api.Grant) {
	id := fmt.Sprintf("dir%d", number)
	path := fmt.Sprintf("/proc/self/fd/%d", firstFile+len(c.machine.NICs)+number)
	settings := []setting{{"fsdriver", "local"}, {"id", id}, {"path", path}, {"multidevs", "remap"}}
	if g.ReadOnly {
		settings = append(settings, setting{"security_model", "none"}, setting{"readonly", "on"})
	} else {
		settings = append(settings, setting{"security_model", "mapped-xattr"})
	}
	c.option("fsdev", settings...)
	c.virtio("virtio-9p", slotDir+number, device{"fsdev": id, "mount_tag": mountTag(g)})
}

// nic adds a network device, by add, on a tap that the keeper has opened.
func (c *commandLine) nic(number int, add func(device)) {
	n := c.machine.NICs[number]
	id := fmt.Sprintf("net%d", number)
	c.object("netdev", struct {
		Type string `json:"type"`
		ID   string `json:"id"`
		FD   string `json:"fd"`
	}{"tap", id, fmt.Sprint(firstFile + number)})
	add(device{"netdev": id, "mac": n.MAC.String()})
}

func uuid(id string) string {
	sum := sha256.Sum256([]byte("croft server " + id))
	sum[6] = sum[6]&0x0F | 0x80 // version 8, of the maker's own form (RFC 9562, 5.8)
	sum[8] = sum[8]&0x3F | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[0:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}

// firstFile is the descriptor of the first of keeper.Spec.Files: the taps, then the granted directories.
const firstFile = 3
