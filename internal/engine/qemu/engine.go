// Package qemu runs servers in QEMU, in two ways:
//
//   - "qemu" (model full): the q35 machine, a complete PC with firmware, PCI, disks and a display;
//   - "microvm" (model para): QEMU's microvm machine, which starts a kernel directly (PVH) and has virtio-mmio devices only.
//
// Both use KVM where package accel finds that it runs guests, and QEMU's translator (TCG) where it doesn't.
//
// QEMU runs through the keeper, as a user of the machine's own, in an empty network namespace, with its seccomp sandbox
// on. The machine's serial port is QEMU's standard input and output: the keeper's terminal. RunDir holds
//
//	stderr     the last of what QEMU complained of, which the keeper writes for it; stderr.1 what came before
//	asked      made by us: that the guest's end was asked for, so that a later daemon knows
//	q/control  QMP; whoever has something to say connects, says it and leaves, so that nobody holds up another
//	q/events   QMP; the daemon listens here for as long as it lives
//	q/vnc      RFB (qemu only)
//
// Only q belongs to QEMU's user, and nothing in it is trusted: see dial.
package qemu

import (
	"context"
	"path/filepath"
	"sync"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/qemu/accel"
)

// Names of the engines.
const (
	Full    = "qemu"
	MicroVM = "microvm"
)

// DefaultBinary is looked for in PATH.
const DefaultBinary = "qemu-system-x86_64"

// Options are what an engine may be told. The zero value is fine.
type Options struct {
	// Binary is QEMU's name in PATH, or its path. Empty: DefaultBinary.
	Binary string
	// OOMKilled tells whether the kernel killed a process in a cgroup for want of memory since the cgroup was made. Nil:
	// a guest that was killed for it counts as ended by a signal.
	OOMKilled func(cgroup string) bool
}

// Engine is one of the two engines.
type Engine struct {
	machine machine
	keeper  engine.Keeper
	options Options

	mu    sync.Mutex
	lives map[string]*life // by machine: what is known of guests that run, shared by all Guests of one
	host  host             // what Probe found
}

var _ engine.Engine = (*Engine)(nil)

// machine is what tells the two engines apart.
type machine struct {
	name     string
	alias    string // QEMU's name of the machine type
	model    api.Model
	root     engine.RootKind
	validate func(*api.ServerSpec) []api.FieldError
	// overhead is QEMU's memory beyond the guest's, without what TCG translates.
	overhead api.Bytes
	display  bool
}

// NewFull makes the engine "qemu".
func NewFull(k engine.Keeper, o Options) *Engine { return newEngine(q35, k, o) }

// NewMicroVM makes the engine "microvm".
func NewMicroVM(k engine.Keeper, o Options) *Engine { return newEngine(microvm, k, o) }

func newEngine(m machine, k engine.Keeper, o Options) *Engine {
	if o.Binary == "" {
		o.Binary = DefaultBinary
	}
	return &Engine{machine: m, keeper: k, options: o, lives: map[string]*life{}}
}

var (
	q35     = machine{name: Full, alias: "q35", model: api.ModelFull, root: engine.RootDisk, validate: validateFull, overhead: 64 * api.MiB, display: true}
	microvm = machine{name: MicroVM, alias: "microvm", model: api.ModelPara, root: engine.RootFS, validate: validateMicroVM, overhead: 48 * api.MiB}
)

// translationCache is the most memory that TCG keeps translated code in. QEMU's own default is a gigabyte.
const translationCache = 128 * api.MiB

func (e *Engine) Traits() engine.Traits {
	return engine.Traits{Name: e.machine.name, Model: e.machine.model, Root: e.machine.root, NIC: engine.NICTap, Seed: true, ImageKernel: e.machine.root == engine.RootFS}
}

// Validate checks a spec; purely.
func (e *Engine) Validate(spec *api.ServerSpec) []api.FieldError { return e.machine.validate(spec) }

// Overhead is QEMU's own memory: its heap, devices and firmware; state and a stack for each virtual CPU; tables for each
// page of the guest's memory; and under TCG the cache of translated code. A PC that has booted Linux under TCG was seen to
// hold 100 to 120 MiB while the cache was half full; what is counted is a full one.
func (e *Engine) Overhead(spec *api.ServerSpec) api.Bytes {
	cpus, total := api.Bytes(spec.CPU.Count), e.machine.overhead
	if findAcceleration(context.Background()).Kind == accel.KVM {
		return total + cpus*2*api.MiB + spec.Memory.Limit/256
	}
	return total + translationCache + translationCache/8 + cpus*8*api.MiB + spec.Memory.Limit/128
}

// paths of a machine's files.
type paths struct{ sockets, control, events, vnc, stderr, asked, vars, log string }

func pathsOf(m *engine.Machine) paths {
	sockets := filepath.Join(m.RunDir, "q")
	return paths{
		sockets: sockets,
		control: filepath.Join(sockets, "control"),
		events:  filepath.Join(sockets, "events"),
		vnc:     filepath.Join(sockets, "vnc"),
		stderr:  filepath.Join(m.RunDir, "stderr"),
		asked:   filepath.Join(m.RunDir, "asked"),
		vars:    filepath.Join(m.Dir, "efivars.fd"),
		log:     engine.ConsoleLog(m),
	}
}
