package oci

import (
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/croftproject/croft/internal/engine"
)

// mounts are what the guest finds mounted, in the order in which it is done.
func mounts(m *engine.Machine, host Facts, c confinement) []specs.Mount {
	list := []specs.Mount{
		mount("proc", "proc", "/proc", "nosuid", "noexec", "nodev"),
		mount("tmpfs", "tmpfs", "/dev", "nosuid", "strictatime", "mode=755", "size=64m"),
		mount("devpts", "devpts", "/dev/pts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
		mount("tmpfs", "shm", "/dev/shm", "nosuid", "noexec", "nodev", "mode=1777"),
		mount("mqueue", "mqueue", "/dev/mqueue", "nosuid", "noexec", "nodev"),
		mount("sysfs", "sysfs", "/sys", "nosuid", "noexec", "nodev", "ro"),
		cgroupfs(host, c),
	}
	if m.App == nil {
		// An init expects these empty at its start, as after a boot.
		list = append(list,
			mount("tmpfs", "tmpfs", "/run", "nosuid", "nodev", "mode=755"),
			mount("tmpfs", "tmpfs", "/run/lock", "nosuid", "nodev", "noexec", "mode=1777", "size=5m"),
			mount("tmpfs", "tmpfs", "/tmp", "nosuid", "nodev", "mode=1777"))
	} else {
		files := []struct{ source, target string }{
			{host.Hostname, "/etc/hostname"}, {m.Hosts, "/etc/hosts"}, {m.Resolv, "/etc/resolv.conf"},
		}
		for _, f := range files {
			if f.source != "" {
				list = append(list, mount("bind", f.source, f.target, "bind", "ro", "nosuid", "nodev", "noexec"))
			}
		}
	}
	if host.Tun && c != application {
		list = append(list, deviceBind("/dev/net/tun"))
	}
	if host.Fuse && c == nesting {
		list = append(list, deviceBind("/dev/fuse"))
	}
	for _, b := range host.Binds {
		list = append(list, grantBind(b))
	}
	return list
}

func mount(kind, source, target string, options ...string) specs.Mount {
	return specs.Mount{Type: kind, Source: source, Destination: target, Options: options}
}

func deviceBind(path string) specs.Mount {
	return mount("bind", path, path, "bind", "nosuid", "noexec")
}

func grantBind(b Bind) specs.Mount {
	options := []string{"bind", "nosuid"}
	if b.Device {
		options = append(options, "noexec")
	} else {
		options = append(options, "nodev")
	}
	if b.ReadOnly {
		options = append(options, "ro")
	}
	return mount("bind", b.Source, b.Target, options...)
}

// cgroupfs shows the guest its own group as the root of all. A system divides it further, by v2 wherever there is a v2
// hierarchy: systemd boots with it even where no controller belongs to it (systemd(1): unified hierarchy).
func cgroupfs(host Facts, c confinement) specs.Mount {
	options := []string{"nosuid", "noexec", "nodev", "relatime"}
	if c == application {
		return mount("cgroup", "cgroup", "/sys/fs/cgroup", append(options, "ro")...)
	}
	kind := "cgroup" // the runtime mounts what the host has
	if host.Cgroups == CgroupsHybrid {
		kind = "cgroup2"
	}
	return mount(kind, kind, "/sys/fs/cgroup", append(options, "rw")...)
}
