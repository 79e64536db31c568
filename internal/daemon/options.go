// Package daemon wires the parts into the program that runs on a host. It alone imports implementations.
package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/croftproject/croft/internal/agent"
	"github.com/croftproject/croft/internal/cgroup"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/oci"
	"github.com/croftproject/croft/internal/engine/qemu"
	"github.com/croftproject/croft/internal/engine/uml"
	"github.com/croftproject/croft/internal/keeper"
)

// DefaultStateDir is where a host keeps its state.
const DefaultStateDir = "/var/lib/croft"

// defaultIDDir is where all daemons of a machine see which ids are whose.
const defaultIDDir = "/var/lib/croft-ids"

// Options of a daemon. The zero value is a host's only daemon.
type Options struct {
	StateDir      string   // default: DefaultStateDir
	RunDir        string   // sockets, namespaces: below /run; default follows from StateDir
	IDDir         string   // agent.Options.IDDir; default: one for the machine
	NetNS         string   // name or path of the network namespace that guests' networks are joined to; empty: the present one
	Uplink        string   // device that leads out; default: that of the default route
	Host          string   // the host's name, at its first start; default: from hostname(1)
	OCIRuntime    string   // default: runc
	EtcdEndpoints []string // of an etcd cluster to use instead of the embedded member
	Version       string
	Logger        *slog.Logger
	Executable    string // this program; default: os.Executable

	// Engines, if set, makes the engines instead of those of the product: for tests.
	Engines func(k *keeper.Client) []engine.Engine
	// Fault is agent.Options.Fault: for tests.
	Fault func(serverID, step string) error
}

// RunDirOf is the default run directory of a state directory: /run/croft for the default one, else one of its own.
func RunDirOf(stateDir string) string {
	if stateDir == DefaultStateDir {
		return "/run/croft"
	}
	return "/run/croft-" + tag(stateDir)
}

// SocketOf is the path of the API's socket in a run directory.
func SocketOf(runDir string) string { return filepath.Join(runDir, "croft.sock") }

// tag is a short name that follows from a state directory: daemons that run side by side have different ones.
func tag(stateDir string) string {
	sum := sha256.Sum256([]byte(stateDir))
	return hex.EncodeToString(sum[:3])
}

// groupOf names the control group that is the parent of the servers'.
func groupOf(stateDir string) string {
	if stateDir == DefaultStateDir {
		return "croft"
	}
	return "croft-" + tag(stateDir)
}

// complete fills in defaults and checks what was given.
func (o *Options) complete() (err error) {
	if o.StateDir == "" {
		o.StateDir = DefaultStateDir
	}
	if o.StateDir, err = filepath.Abs(o.StateDir); err != nil {
		return err
	}
	if o.RunDir == "" {
		o.RunDir = RunDirOf(o.StateDir)
	}
	if o.IDDir == "" {
		o.IDDir = defaultIDDir
	}
	// The longest socket path below: s/<26 characters>/<12>; sun_path takes 107 bytes (unix(7)).
	if len(o.RunDir) > 60 {
		return fmt.Errorf("run directory %s is longer than 60 characters, so sockets in it would not work: choose another with --run-dir", o.RunDir)
	}
	if o.NetNS != "" && !strings.Contains(o.NetNS, "/") {
		o.NetNS = filepath.Join("/run/netns", o.NetNS) // where ip-netns(8) keeps them
	}
	if o.OCIRuntime == "" {
		o.OCIRuntime = "runc"
	}
	if o.Executable == "" {
		if o.Executable, err = os.Executable(); err != nil {
			return err
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewJSONHandler(os.Stderr, nil))
	}
	if os.Geteuid() != 0 {
		return errors.New("the daemon needs root: it makes namespaces, control groups and devices")
	}
	return nil
}

// product makes the engines that a host has, the preferred ones of a model first.
func (o *Options) product(k *keeper.Client, groups *cgroup.Tree, group string) []engine.Engine {
	oomKilled := func(path string) bool {
		u, err := groups.Usage(filepath.Base(path))
		return err == nil && u.OOMKills > 0
	}
	vm := qemu.Options{OOMKilled: oomKilled}
	return []engine.Engine{
		oci.New(oci.Options{Runtime: o.OCIRuntime, Keeper: k, Root: filepath.Join(o.RunDir, "oci"), Cgroup: group + "/" + agent.ProbeGroup}),
		qemu.NewMicroVM(k, vm),
		uml.New(uml.Config{Keeper: k, Groups: groups, OOMKilled: oomKilled, RunDir: o.RunDir}),
		qemu.NewFull(k, vm),
	}
}
