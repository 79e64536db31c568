// Package engine is the contract between a host's agent and what runs a server of a model.
//
// An engine is small. It tells what it can do on this host, checks a spec purely, launches a guest from disks and NICs
// that exist, finds a guest again after the daemon was restarted, and hands back a Guest that can be observed,
// stopped and released. What only some engines can do is a further small interface that the Guest may have: Pauser,
// Resizer, Execer. Engines never touch pools, bridges or the store.
//
// A guest's life, as the engine sees it:
//
//	          Launch                      ends by itself, Stop, or killed
//	(nothing) ──────▶ running ◀──▶ paused ──────────────────────────────▶ ended ──Release──▶ (nothing)
//
// Guests outlive the daemon: an engine starts them through the keeper, and Recover finds them by handle.
// Every implementation passes engine/enginetest.
package engine

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"

	"github.com/croftproject/croft/api"
)

var (
	// ErrGone says that there is no guest behind a handle any more.
	ErrGone = errors.New("guest is gone")
	// ErrUnsupported says that the engine can't do this to this guest, as it stands. It is wrapped with the reason.
	ErrUnsupported = errors.New("not supported")
	// ErrProcess says that a process can't be started in a guest as it was asked for. It is wrapped with the reason.
	ErrProcess = errors.New("the process can't be started")
)

// Engine runs servers of one model in one way. All methods may be called concurrently, for different machines.
type Engine interface {
	// Traits are what the engine is, on any host.
	Traits() Traits

	// Probe finds out what the engine can do on this host. It tries functions and never concludes from versions or
	// from a node in /dev. It is called at daemon start and may take a second.
	Probe(ctx context.Context) Report

	// Validate checks a defaulted spec against the engine's rules, purely. Pointers are relative to the resource:
	// "/spec/cpu/count".
	Validate(spec *api.ServerSpec) []api.FieldError

	// Overhead is the memory that the engine itself takes beyond the guest's, for admission and the cgroup's limit.
	Overhead(spec *api.ServerSpec) api.Bytes

	// Launch starts the guest and returns once it runs (not: once its userspace is up). A second Launch of a machine
	// whose guest runs returns that guest. On error it has undone what it did.
	Launch(ctx context.Context, m *Machine) (Guest, error)

	// Recover finds a guest that an earlier daemon launched. ErrGone where it ended and nothing is known of it; a guest
	// that ended meanwhile and whose end is known is returned with Done closed.
	Recover(ctx context.Context, m *Machine, h Handle) (Guest, error)

	// Clean removes whatever a machine may have left of this engine on the host (processes, sockets, files in Dir and
	// RunDir), whether or not Launch finished. It is idempotent.
	Clean(ctx context.Context, m *Machine) error
}

// Guest is a running, or just ended, guest.
type Guest interface {
	// Handle finds the guest again. The agent stores it.
	Handle() Handle
	// PID is the process that stands for the guest on the host: its init, or its virtual machine monitor.
	PID() int
	// Done is closed when the guest has ended.
	Done() <-chan struct{}
	// Exit tells how it ended; valid once Done is closed.
	Exit() api.Exit
	// Stop asks the guest to power off (Graceful), or ends it (Kill). It does not wait for the end: wait on Done.
	Stop(ctx context.Context, mode StopMode) error
	// Release frees what the guest held once it has ended. It is idempotent.
	Release(ctx context.Context) error
}

// StopMode is how a guest is stopped.
type StopMode int

const (
	Graceful StopMode = iota // as if the power button was pressed
	Kill                     // as if the plug was pulled
)

// Pauser is a guest whose execution can be halted and continued.
type Pauser interface {
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Paused tells whether the guest is halted.
	Paused(ctx context.Context) (bool, error)
}

// Resizer is a guest that needs telling when its resources change, beyond its cgroup's limits (which the agent sets).
// It returns an error that wraps ErrUnsupported where the change needs a restart; then nothing was changed.
type Resizer interface {
	Resize(ctx context.Context, from, to *api.ServerSpec) error
}

// Execer is a guest in which the host can start a process.
type Execer interface {
	// Exec runs a process in the guest to its end and returns its exit code. ErrProcess where there is no such program,
	// user or directory.
	Exec(ctx context.Context, p Process) (code int, err error)
}

// Displayer is a guest with a graphical console that speaks RFB (VNC, RFC 6143).
type Displayer interface {
	// Display connects to the guest's RFB server.
	Display(ctx context.Context) (net.Conn, error)
}

// NetNSMaker is an Engine whose guests own their network namespace: it was made in a user namespace with the server's
// ids, so that the guest's root may set up addresses, a firewall and raw sockets in it. The agent has it made before the
// ports in it are. Without it the guest can use its network only as it was set up.
type NetNSMaker interface {
	// MakeNetNS makes a network namespace and binds it at path, unless one is bound there. Whoever removes the server's
	// ports unbinds it.
	MakeNetNS(ctx context.Context, path string, ids IDRange) error
}

// Process is what Exec runs.
type Process struct {
	Args   []string
	Env    []string // NAME=value
	Dir    string   // working directory; empty is the guest's default
	User   string   // user, user:group, by name or number; empty is root
	TTY    bool     // a terminal, of which Stdin and Stdout are the two directions
	Stdin  io.Reader
	Stdout io.Writer      // it and Stderr are written to at the same time
	Stderr io.Writer      // unused with TTY
	Resize <-chan WinSize // window sizes, with TTY; may be nil
}

// WinSize is the size of a terminal, in characters.
type WinSize struct{ Rows, Cols uint16 }

// Traits are what an engine is, on any host.
type Traits struct {
	Name  string    // "qemu", "uml", …
	Model api.Model // the model that it gives
	Root  RootKind  // the kind of root that it boots from
	NIC   NICKind   // the kind of attachment that it takes
	// ImageKernel: it boots the kernel that the image brings, and takes Boot.Kernel, Initrd and Cmdline; else the firmware,
	// the host or the engine itself has the kernel.
	ImageKernel bool
	Seed        bool // whether it takes first-boot configuration as a seed disk; else the agent writes it into the root tree
}

// RootKind is the kind of root that an engine boots from.
type RootKind int

const (
	RootTree RootKind = iota // a mounted directory tree
	RootFS                   // a raw file system image without partitions, kernel apart
	RootDisk                 // a partitioned disk with a boot loader
)

// NICKind is how a guest is attached to a network.
type NICKind int

const (
	NICNamespace NICKind = iota // a network namespace with configured devices in it
	NICTap                      // tap devices, for a guest with a network stack of its own
)

// Report is what a probe found.
type Report struct {
	Available   bool
	Reason      string // why not; or why slower than it could be
	Version     string
	Accelerator string // "kvm", "tcg", or ""
	Abilities   []string
	Grants      []api.GrantKind     // grants that the engine can hand over on this host
	Withheld    []api.WithheldGrant // all other kinds, and why not
}

// Withhold notes why the engine can't hand over a kind of grant on this host.
func (r *Report) Withhold(kind api.GrantKind, why string) {
	r.Withheld = append(r.Withheld, api.WithheldGrant{Kind: kind, Reason: why})
}

// Handle finds a guest again after a daemon restart. Only the engine that made it reads Data.
type Handle struct {
	Engine  string `json:"engine"`
	Version int    `json:"version"`
	Data    []byte `json:"data"`
}

// Machine is everything that a launch needs; all of it exists already.
type Machine struct {
	ID     string // server id
	Name   string // server name, the default host name
	Tenant string
	Dir    string          // directory of this machine's own, kept over host reboots (firmware variables, generated files)
	RunDir string          // directory of this machine's own for sockets, empty after a host reboot; short
	Spec   *api.ServerSpec // defaulted and valid
	Host   string          // hostname for the guest
	Cgroup string          // the server's cgroup, relative to each controller's root, e.g. "croft-1a2b/01k…": exists, limits set
	IDs    IDRange
	Root   Root
	Boot   Boot
	Seed   string // path of a NoCloud seed ISO; empty for none
	CDROM  string // path of an ISO; empty for none
	NICs   []NIC
	NetNS  string      // path of the server's network namespace, for NICNamespace engines; empty: a namespace with no devices
	Hosts  string      // path of a file for the guest's /etc/hosts, for application guests
	Resolv string      // path of a file for the guest's /etc/resolv.conf, for application guests
	CPUs   []int       // dedicated host CPUs; empty for none
	Grants []api.Grant // allowed and checked
	App    *api.App    // resolved process of an application guest; nil for a system that boots its own init
}

// IDRange is the server's range of host user and group ids: guest id n is host id Base+n.
// Engines whose guest has a kernel of its own run as user and group Base.
type IDRange struct{ Base, Size uint32 }

// Root is the root of the guest.
type Root struct {
	Path   string    // mounted tree, or file, by kind
	Format string    // of a file: "raw" or "qcow2"
	Size   api.Bytes // of a file
}

// Boot is what a guest without firmware is booted from; it comes from the image.
type Boot struct {
	Kernel  string // path; empty: the engine's default
	Initrd  string // path; empty for none
	Cmdline string // appended to the engine's own
	Modules string // directory tree with the kernel's modules; empty for none
	// Ready is a text that the guest prints on its console once its userspace is up; empty: not known.
	Ready string
}

// NIC is a network attachment that exists.
type NIC struct {
	Name   string // device name in the guest, "eth0"
	MAC    net.HardwareAddr
	MTU    int
	Prefix netip.Prefix // address with the subnet's length
	Router netip.Addr
	Tap    Tap // for NICTap engines
}

// Tap is a tap device in a network namespace. The keeper opens it there and hands the engine a file descriptor, so that
// the engine's process needs neither the namespace nor a privilege.
type Tap struct {
	NetNS  string // path of the namespace
	Device string
}
