package uml

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/keeper"
)

// Names below a machine's RunDir. The guest's processes can write to guestDir and memoryDir only.
const (
	guestDir  = "u"      // uml_dir: UML makes umid in it, with its pid file and mconsole socket
	umid      = "m"      //
	memoryDir = "memory" // where the tmpfs of the guest's memory is mounted
	askedMark = "asked"  // there once a stop was asked for
	pauseMark = "paused" // there while the guest is to be halted
)

func umlDir(m *engine.Machine) string { return filepath.Join(m.RunDir, guestDir) }
func memoryOf(m *engine.Machine) string {
	return filepath.Join(m.RunDir, memoryDir)
}
func pidFile(m *engine.Machine) string {
	return filepath.Join(umlDir(m), umid, "pid")
}

func (e *Engine) kernel(m *engine.Machine) string {
	if m.Boot.Kernel != "" {
		return m.Boot.Kernel
	}
	return e.Kernel
}

// arguments are the command line of the UML kernel, which is the guest kernel's command line too
// (Documentation/virt/uml/user_mode_linux_howto_v2.rst, and `linux.uml --help`).
func arguments(m *engine.Machine) ([]string, error) {
	if err := check(m); err != nil {
		return nil, err
	}
	args := []string{
		fmt.Sprintf("mem=%dK", m.Spec.Memory.Limit/api.KiB),
		"uml_dir=" + umlDir(m), "umid=" + umid,
		"con=none", "con0=fd:0,fd:1", "ssl=none",
		"noreboot", // a reboot ends the process; the agent starts it again, with what has changed meanwhile
		"ubd0d=" + m.Root.Path, "root=/dev/ubda", "rw",
	}
	if m.Seed != "" {
		args = append(args, "ubd1rd="+m.Seed)
	}
	if m.Boot.Initrd != "" {
		args = append(args, "initrd="+m.Boot.Initrd)
	}
	for i, nic := range m.NICs {
		device := fmt.Sprintf("vec%d:transport=fd,fd=%d,vec=0,mac=%s", i, firstFD+i, nic.MAC)
		if nic.MTU != 0 {
			device += fmt.Sprintf(",mtu=%d", nic.MTU)
		}
		args = append(args, device)
	}
	if m.Host != "" {
		args = append(args, "hostname="+m.Host)
	}
	args = append(args, hostfs(m)...)
	return append(args, strings.Fields(m.Boot.Cmdline)...), nil
}

// firstFD is the first descriptor that a process inherits from the keeper: the taps, then the granted directories.
const firstFD = 3

// hostfs tells the guest which host directories it may mount (mount -t hostfs -o SOURCE none TARGET): for each grant
// croft.hostfs=SOURCE,TARGET,ro or rw, and croft.modules=DIR for the kernel's modules. Without any, hostfs shows the
// guest's own empty directory. The confinement is Landlock's.
func hostfs(m *engine.Machine) []string {
	var args []string
	if m.Boot.Modules != "" {
		args = append(args, "croft.modules="+m.Boot.Modules)
	}
	for _, g := range directories(m) {
		target, mode := g.Target, "rw"
		if target == "" {
			target = g.Source
		}
		if g.ReadOnly {
			mode = "ro"
		}
		args = append(args, fmt.Sprintf("croft.hostfs=%s,%s,%s", g.Source, target, mode))
	}
	if len(args) == 0 {
		args = append(args, "hostfs="+umlDir(m))
	}
	return args
}

func directories(m *engine.Machine) []api.Grant {
	return slices.DeleteFunc(slices.Clone(m.Grants), func(g api.Grant) bool { return g.Kind != api.GrantDirectory })
}

// hostOption matches what UML itself, and not the guest's kernel, takes from the command line, and what the engine sets.
var hostOption = regexp.MustCompile(`^(con\d*|console|ssl\d*|ubd.*|udb.*|vec.*|eth\d.*|hostfs|iomem|mem|initrd|root|uml_dir|umid|mconsole|xterm|virtio_uml.*|noreboot|nosysemu|debug|fake_ide|hostname|croft\..*|-.*)([=:].*)?$`)

var hostName = regexp.MustCompile(`^[a-zA-Z0-9.-]*$`)

// check refuses a machine whose parts would say something else in a command line than they mean.
func check(m *engine.Machine) error {
	if m.Root.Format != "" && m.Root.Format != "raw" {
		return fmt.Errorf("root is %s; the engine uml takes raw", m.Root.Format)
	}
	paths := []string{m.Root.Path, m.RunDir}
	for _, p := range []string{m.Seed, m.Boot.Initrd, m.Boot.Modules, m.Boot.Kernel} {
		if p != "" {
			paths = append(paths, p)
		}
	}
	for _, g := range directories(m) {
		paths = append(paths, g.Source)
		if g.Target != "" {
			paths = append(paths, g.Target)
		}
	}
	for _, p := range paths {
		if !plainPath(p) {
			return fmt.Errorf("path %q can't be written in the kernel's command line", p)
		}
	}
	if !hostName.MatchString(m.Host) {
		return fmt.Errorf("host name %q is none", m.Host)
	}
	for _, word := range strings.Fields(m.Boot.Cmdline) {
		if hostOption.MatchString(word) {
			return fmt.Errorf("the image's command line may not set %q: it speaks to the host", word)
		}
	}
	return nil
}

// spec is what the keeper is to start.
func (e *Engine) spec(m *engine.Machine) (keeper.Spec, error) {
	args, err := arguments(m)
	if err != nil {
		return keeper.Spec{}, err
	}
	limits, err := json.Marshal(e.confinement(m, args))
	if err != nil {
		return keeper.Spec{}, err
	}
	s := keeper.Spec{
		ID:       m.ID,
		Args:     append(slices.Clone(e.Confine), string(limits)),
		Env:      []string{"TMPDIR=" + memoryOf(m), "PATH=/usr/bin:/bin", "HOME=" + umlDir(m)},
		Dir:      "/",
		User:     m.IDs.Base,
		Group:    m.IDs.Base,
		Isolate:  true,
		Log:      engine.ConsoleLog(m),
		LogLimit: engine.ConsoleLogLimit,
		Ready:    m.Boot.Ready,
		Terminal: true,
		OOMScore: engine.OOMScore(m.Spec),
	}
	if m.Cgroup != "" {
		s.Cgroup = m.Cgroup + "/guest"
	}
	for _, nic := range m.NICs {
		s.Files = append(s.Files, keeper.File{NetNS: nic.Tap.NetNS, Tap: nic.Tap.Device})
	}
	for _, g := range directories(m) {
		tree := keeper.WriteTree
		if g.ReadOnly {
			tree = keeper.ReadTree
		}
		s.Files = append(s.Files, keeper.File{Path: g.Source, Tree: tree})
	}
	return s, nil
}

// confinement is what the guest's processes may touch.
func (e *Engine) confinement(m *engine.Machine, args []string) Confinement {
	c := e.base(e.kernel(m), memoryOf(m), args)
	c.Write = append(c.Write, m.Root.Path)
	c.WriteBelow = append(c.WriteBelow, umlDir(m))
	for _, p := range []string{m.Seed, m.Boot.Initrd} {
		if p != "" {
			c.Read = append(c.Read, p)
		}
	}
	if m.Boot.Modules != "" {
		c.ReadBelow = append(c.ReadBelow, m.Boot.Modules)
	}
	// The directories that the keeper has opened, not their paths: where a link leads now, it need not have led when the
	// grant was given.
	for i, g := range directories(m) {
		opened := fmt.Sprintf("/proc/self/fd/%d", firstFD+len(m.NICs)+i)
		if g.ReadOnly {
			c.ReadBelow = append(c.ReadBelow, opened)
		} else {
			c.WriteBelow = append(c.WriteBelow, opened)
		}
	}
	return c
}

// base is what every UML kernel touches (strace of linux.uml, file system calls).
func (e *Engine) base(kernel, memory string, args []string) Confinement {
	return Confinement{
		Program:    kernel,
		Args:       append([]string{kernel}, args...),
		Read:       []string{kernel, "/etc/ld.so.cache", "/proc/cpuinfo", "/dev/random", "/dev/urandom"},
		Write:      []string{"/dev/null"},
		ReadBelow:  []string{"/lib", "/lib64", "/usr/lib"},
		WriteBelow: []string{memory},
	}
}
