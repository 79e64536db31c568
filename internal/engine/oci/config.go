package oci

import (
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
)

// Facts are what a machine's configuration depends on beside the machine itself.
type Facts struct {
	Cgroups  Cgroups
	Init     string   // path of a system's init in its root; empty for an application
	PowerOff powerOff // how the first process is asked to end
	User     account  // whom an application runs as
	UserNS   string   // path of the user namespace that owns Machine.NetNS; empty: the runtime makes one
	Binds    []Bind   // grants, ready to be bound: sources are below RunDir
	Devices  []Device // devices that are bound and may be opened
	Fuse     bool     // the host has /dev/fuse
	Tun      bool     // the host has /dev/net/tun
	Hostname string   // path of a file for /etc/hostname; empty for none
	Files    uint64   // most open files of a process that the guest can be given
}

// Cgroups is how the host's control groups are mounted (cgroups(7)).
type Cgroups int

const (
	CgroupsV1     Cgroups = iota // v1 controllers only
	CgroupsHybrid                // v1 controllers, and a v2 hierarchy at /sys/fs/cgroup/unified
	CgroupsV2                    // v2 only
)

// Bind is a directory or device node of the host that the guest sees at Target.
type Bind struct {
	Source, Target string
	ReadOnly       bool
	Device         bool
}

// Device is a device that the guest may open.
type Device struct {
	Type         string // "c" or "b"
	Major, Minor int64
	ReadOnly     bool
}

// maxFiles is the hard limit of open files that systemd gives to what it starts (systemd-system.conf(5)).
const maxFiles = 524288

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Config is the runtime's configuration of a machine (opencontainers/runtime-spec, config.md). It is pure.
func Config(m *engine.Machine, host Facts) *specs.Spec {
	c := confinementOf(m)
	return &specs.Spec{
		Version:  "1.0.2",
		Hostname: m.Host,
		Root:     &specs.Root{Path: m.Root.Path},
		Process:  process(m, host, c),
		Mounts:   mounts(m, host, c),
		Linux:    linux(m, host, c),
	}
}

func confinementOf(m *engine.Machine) confinement {
	switch {
	case has(m.Grants, api.GrantNesting):
		return nesting
	case m.App != nil:
		return application
	}
	return system
}

func has(grants []api.Grant, kind api.GrantKind) bool {
	return slices.ContainsFunc(grants, func(g api.Grant) bool { return g.Kind == kind })
}

func process(m *engine.Machine, host Facts, c confinement) *specs.Process {
	oom := engine.OOMScore(m.Spec) // not the keeper's own, which the host protects
	p := &specs.Process{
		Cwd:         "/",
		OOMScoreAdj: &oom,
	}
	if host.Files > 0 {
		limit := min(host.Files, maxFiles)
		p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: min(limit, 1024), Hard: limit}}
	}
	if m.App == nil {
		p.Terminal = true
		p.Args = []string{host.Init}
		p.Env = []string{"PATH=" + defaultPath, "TERM=vt220", "container=croft"}
	} else {
		p.User = host.User.User
		p.Args = slices.Concat(m.App.Entrypoint, m.App.Args)
		p.Env = applicationEnv(m.App.Env, host.User, m.Host)
		p.NoNewPrivileges = c == application
		if m.App.WorkingDir != "" {
			p.Cwd = m.App.WorkingDir
		}
	}
	p.Capabilities = capabilitiesOf(m, c)
	return p
}

// applicationEnv is the application's environment, in the order of the names, with defaults for what it leaves out.
func applicationEnv(own map[string]string, user account, host string) []string {
	env := map[string]string{"PATH": defaultPath, "HOSTNAME": host, "HOME": "/", "container": "croft"}
	if user.Home != "" {
		env["HOME"] = user.Home
	}
	maps.Copy(env, own)
	lines := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		lines = append(lines, name+"="+env[name])
	}
	return lines
}

func capabilitiesOf(m *engine.Machine, c confinement) *specs.LinuxCapabilities {
	base := systemCaps
	if c == application {
		base = applicationCaps
	}
	var granted []string
	for _, g := range m.Grants {
		if g.Kind == api.GrantCapability {
			granted = append(granted, capName(g.Source))
		}
	}
	sets := capabilities(slices.Concat(base, granted))
	if m.App != nil && len(granted) > 0 {
		// A user other than root keeps over execve(2) only what is ambient, and that must be inheritable.
		sets.Ambient = capabilities(granted).Bounding
		sets.Inheritable = sets.Ambient
	}
	return sets
}

func linux(m *engine.Machine, host Facts, c confinement) *specs.Linux {
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: m.IDs.Base, Size: m.IDs.Size}}
	l := &specs.Linux{
		UIDMappings: ids,
		GIDMappings: ids,
		Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace},
			{Type: specs.IPCNamespace},
			{Type: specs.UTSNamespace},
			{Type: specs.MountNamespace},
			{Type: specs.CgroupNamespace},
			{Type: specs.UserNamespace, Path: host.UserNS},
			{Type: specs.NetworkNamespace, Path: m.NetNS},
		},
		CgroupsPath: "/" + strings.Trim(m.Cgroup, "/") + "/" + leaf,
		Resources:   &specs.LinuxResources{Devices: deviceRules(host, c)},
		Seccomp:     seccomp(c),
	}
	switch c {
	case application:
		l.MaskedPaths = slices.Concat(maskedPaths, []string{"/proc/acpi", "/proc/scsi", "/proc/asound"})
		l.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	case system:
		l.MaskedPaths = maskedPaths
		l.ReadonlyPaths = []string{"/proc/sysrq-trigger"}
	case nesting:
		// A proc with parts hidden could not be mounted again by the guest's own containers (mount_namespaces(7)). What
		// these paths hold is guarded by the user namespace alone here.
	}
	return l
}

// maskedPaths tell of the host's kernel and hardware.
var maskedPaths = []string{
	"/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
	"/sys/firmware", "/sys/devices/virtual/powercap",
}

// deviceRules refuse every device but the granted; the runtime adds the harmless ones (null, zero, full, random,
// urandom, tty, console, pts) by itself.
func deviceRules(host Facts, c confinement) []specs.LinuxDeviceCgroup {
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	permit := func(kind string, major, minor int64, access string) {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &major, Minor: &minor, Access: access})
	}
	for _, d := range host.Devices {
		access := "rw"
		if d.ReadOnly {
			access = "r"
		}
		permit(d.Type, d.Major, d.Minor, access)
	}
	// Numbers from Documentation/admin-guide/devices.txt of the kernel.
	if host.Tun && c != application {
		permit("c", 10, 200, "rw")
	}
	if host.Fuse && c == nesting {
		permit("c", 10, 229, "rw")
	}
	return rules
}

// sysctls of the guest's network namespace: its ports and its pings are its own affair.
func netSysctls(ids engine.IDRange) map[string]string {
	return map[string]string{
		"net/ipv4/ip_unprivileged_port_start": "0",
		"net/ipv4/ping_group_range":           idSpan(ids),
	}
}

// signal is the number that the kernel knows it by.
func (p powerOff) signal() unix.Signal { return unix.Signal(p) }
