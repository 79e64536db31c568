// Package uml runs para servers on User-Mode Linux: a Linux kernel that is an ordinary process of the host. It needs no
// virtualization hardware and computes at native speed; the guest sees one CPU.
//
// A guest is a tree of processes: the kernel, two helpers of it, and one process for each address space of the guest,
// whose system calls the kernel takes by ptrace(2). Its memory is an unlinked file on a tmpfs of its own, of that
// size, which the server's cgroup is charged for. Its disks are files, its network devices are tap descriptors that the keeper opened, its console is
// the terminal that the keeper holds, and it is controlled through its management console (package mconsole).
//
// # What protects the host
//
// A guest's root can run code of its own in the kernel's process (by loading a module, say). So that process counts as
// the guest's, and everything below holds for all processes of the guest:
//
//   - It is of a user of its own, without capabilities and without a way to new ones (no_new_privs, prctl(2)).
//   - Landlock (landlock(7)) confines it to its own disks, its own socket directory, the tmpfs of its memory, the C
//     library and the directories granted to it, read-only where the grant is. UML's own confinement of hostfs is a
//     prefix that ".." climbs out of; hence an engine without Landlock reports itself unavailable.
//   - A seccomp filter takes away system calls that UML has no use for and that kernels have had holes in: namespaces,
//     mounts, keys, BPF, io_uring, userfaultfd, performance counters and others.
//   - It has an empty network namespace, and IPC and UTS namespaces of its own. Of the network it has the tap's descriptor.
//   - Its cgroup bounds CPU, memory, processes and I/O. It leaves no core dump.
//   - Disks are opened with the flag that they hold data, not a copy-on-write header: the guest writes the header, and
//     could name any file as backing.
package uml

import (
	"context"
	"os"
	"sync"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
)

// Name is the engine's name.
const Name = "uml"

// Groups ends every process in a server's cgroup and below it, and waits until it is empty. *cgroup.Tree is one. name is
// the last element of the cgroup's path.
type Groups interface {
	Kill(ctx context.Context, name string) error
}

// Config is what the engine stands on.
type Config struct {
	Keeper engine.Keeper
	Groups Groups
	// OOMKilled tells whether the kernel killed a process in a cgroup for want of memory since the cgroup was made. Nil:
	// a guest that was killed for it counts as ended by a signal.
	OOMKilled func(cgroup string) bool
	// Kernel is the UML kernel. Default: /usr/bin/linux.uml, of the Debian package user-mode-linux.
	Kernel string
	// RunDir is a directory for what a probe makes; its user passes through it. Default: the directory of temporary files.
	RunDir string
	// Confine is the command that calls Confine with the arguments after it. Default: the keeper's own program, as
	// "confine-uml". It must be the keeper's program because the path is resolved in the keeper's child.
	Confine []string
}

// ConfineCommand is the word that the program calls Confine for.
const ConfineCommand = "confine-uml"

// Engine runs UML guests.
type Engine struct {
	Config

	mu     sync.Mutex
	guests map[string]*Guest // by machine ID
}

var _ engine.Engine = (*Engine)(nil)

// New makes the engine.
func New(c Config) *Engine {
	if c.Kernel == "" {
		c.Kernel = "/usr/bin/linux.uml"
	}
	if c.RunDir == "" {
		c.RunDir = os.TempDir()
	}
	if c.Confine == nil {
		c.Confine = []string{"/proc/self/exe", ConfineCommand}
	}
	return &Engine{Config: c, guests: map[string]*Guest{}}
}

// Traits are para, from a file system image, with tap devices and a seed disk.
func (e *Engine) Traits() engine.Traits {
	return engine.Traits{Name: Name, Model: api.ModelPara, Root: engine.RootFS, NIC: engine.NICTap, Seed: true}
}

// What the host spends on a guest beyond the guest's memory is small for the kernel and its helpers (2 MiB, measured on
// Debian's 6.1 kernel by TestOverhead), and some 105 KiB for each process of the guest: its stand-in on the host, with
// page tables. How many there will be is not known; guests with more memory have more.
const (
	overhead   = 8 * api.MiB
	forProcess = 16 // one part in, of the guest's memory
)

// Overhead is the kernel's process and those that stand for the guest's processes.
func (e *Engine) Overhead(spec *api.ServerSpec) api.Bytes {
	return overhead + spec.Memory.Limit/forProcess
}
