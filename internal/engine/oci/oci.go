// Package oci is the engine of model os: guests on the host's own kernel, divided by namespaces and cgroups and run by
// an OCI runtime (runc, or another with the same command line; opencontainers/runtime-spec).
//
// A guest is unprivileged: it has a user namespace with an id range of its own, a seccomp filter, few capabilities, and
// nothing of the host's that was not granted to it. There are two kinds: a system boots the init that it finds in its
// root, with a terminal as its console; an application runs one process, and what that prints is its console log.
//
//	facts.go    what a machine needs to know of its root and of the host: read, never assumed
//	config.go   the pure step from a machine and these facts to the runtime's configuration
//	launch.go   the acts: prepare, run the runtime once through the keeper, find again, clean
//	guest.go    a guest that runs; exec.go: further processes in it
package oci

import (
	"context"
	"path/filepath"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
)

// Options are what the engine is made with.
type Options struct {
	// Runtime is the OCI runtime's name or path; default "runc". Its base name is the engine's name.
	Runtime string
	// Keeper starts the guests' processes and outlives the daemon.
	Keeper engine.Keeper
	// Root is the directory of the runtime's state: of this engine alone, on a file system that a reboot empties.
	Root string
	// Cgroup is the daemon's own control group, relative to each controller's root; the probe runs below it. Default:
	// "croft-probe".
	Cgroup string
}

// Engine runs servers of model os. It implements engine.Engine.
type Engine struct {
	runtime runtime
	keeper  engine.Keeper
	cgroup  string
	groups  hierarchies
}

// New makes the engine. It touches nothing.
func New(o Options) *Engine {
	if o.Runtime == "" {
		o.Runtime = "runc"
	}
	if o.Cgroup == "" {
		o.Cgroup = "croft-probe"
	}
	return &Engine{
		runtime: runtime{binary: o.Runtime, root: o.Root},
		keeper:  o.Keeper,
		cgroup:  o.Cgroup,
		groups:  hierarchies{root: "/sys/fs/cgroup"},
	}
}

// Traits are the same on any host.
func (e *Engine) Traits() engine.Traits {
	return engine.Traits{
		Name:  filepath.Base(e.runtime.binary),
		Model: api.ModelOS,
		Root:  engine.RootTree,
		NIC:   engine.NICNamespace,
	}
}

// Overhead is nothing: no process of the engine's stays beside the guest's own.
func (e *Engine) Overhead(*api.ServerSpec) api.Bytes { return 0 }

// MakeNetNS makes the network namespace of a server, bound at path. See engine.NetNSMaker.
func (e *Engine) MakeNetNS(ctx context.Context, path string, ids engine.IDRange) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return makeNetNS(path, ids)
}

var (
	_ engine.Engine     = (*Engine)(nil)
	_ engine.NetNSMaker = (*Engine)(nil)
	_ engine.Pauser     = (*Guest)(nil)
	_ engine.Resizer    = (*Guest)(nil)
	_ engine.Execer     = (*Guest)(nil)
)
