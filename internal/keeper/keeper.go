// Package keeper keeps guests alive while the daemon is away.
//
// One keeper process per state directory is the parent of every guest's process on the host. It is small on purpose: it
// starts a process where it is told (cgroup, network namespace, user), holds the guest's terminal, appends what the
// guest prints to a log of bounded size, serves the terminal to whoever attaches, reaps the process and remembers how
// it ended until it is asked to forget. It decides nothing. The daemon connects to it over a unix socket
// (DIR/keeper.sock) and starts it where there is none; `kill -9` of the daemon, an upgrade or a restart leaves it be.
//
// Being a child subreaper (prctl(2), PR_SET_CHILD_SUBREAPER), it is also the parent of guests whose runtime detaches
// from them (runc run --detach): such a process is adopted by its pid file.
package keeper

import (
	"time"
)

// Spec says what to start. Starting an ID that is known returns the process that has it.
type Spec struct {
	ID   string   `json:"id"`
	Args []string `json:"args"` // Args[0] is an absolute path
	Env  []string `json:"env,omitempty"`
	Dir  string   `json:"dir,omitempty"`

	// User and Group run the process unprivileged, with no supplementary groups but Groups; zero is root.
	User   uint32   `json:"user,omitempty"`
	Group  uint32   `json:"group,omitempty"`
	Groups []uint32 `json:"groups,omitempty"`

	// Cgroup is the path, relative to each controller's root, that the process is started in; empty: the keeper's own.
	Cgroup string `json:"cgroup,omitempty"`
	// OOMScore is the process' oom_score_adj (proc_pid_oom_score_adj(5)); zero: what the keeper had before it protected
	// itself. A process that a command leaves behind has what the command gives it.
	OOMScore int `json:"oomScore,omitempty"`
	// Isolate starts the process in an empty network namespace of its own and, with it, in its own IPC and UTS namespace.
	Isolate bool `json:"isolate,omitempty"`
	// Files are opened by the keeper and inherited by the process from descriptor 3 on, in order. The descriptor after
	// them is the other end of the process' own console, for a next keeper to take; it is not the process' to use.
	Files []File `json:"files,omitempty"`

	// Log is the path of the console log; LogLimit its greatest size in bytes, kept by rotating to Log+".1". Zero is
	// 4 MiB.
	Log      string `json:"log,omitempty"`
	LogLimit int64  `json:"logLimit,omitempty"`
	// Ready is a text; the time at which it first appears in the console's output is reported. Empty: none.
	Ready string `json:"ready,omitempty"`

	// PIDFile makes Args a command that detaches (an OCI runtime): when it exits with 0, the process named in PIDFile is
	// the guest. ConsoleSocket, if set, is a path that the keeper listens on while the command runs and on which it
	// receives the guest's terminal (runc's --console-socket); without it the guest's output is the command's, and a next
	// keeper takes it from the guest's standard output.
	PIDFile       string `json:"pidFile,omitempty"`
	ConsoleSocket string `json:"consoleSocket,omitempty"`
	// Terminal gives a process that does not detach a terminal in raw mode as standard input, output and error; it
	// leads a session of its own, of which the terminal is not the controlling one: the end of the keeper sends it no
	// SIGHUP. Without Terminal, input is empty and output goes to the log.
	Terminal bool `json:"terminal,omitempty"`
	// Stderr is the path of a file that a non-detaching process's standard error goes to instead of the terminal or log:
	// the last of it, of which StderrLimit bytes are kept at Stderr and as many at Stderr+".1". What comes faster than it
	// is taken is lost; the process does not wait.
	Stderr string `json:"stderr,omitempty"`
}

// File is something that the keeper opens for a process.
type File struct {
	Path    string `json:"path,omitempty"`    // a file, opened for reading and writing
	Tree    Tree   `json:"tree,omitempty"`    // with Path: a directory, as package place opens a tree
	NetNS   string `json:"netns,omitempty"`   // with Tap: the namespace of the device
	Tap     string `json:"tap,omitempty"`     // a tap device, attached to with TUNSETIFF (IFF_TAP|IFF_NO_PI)
	VnetHdr bool   `json:"vnetHdr,omitempty"` // with Tap: IFF_VNET_HDR
}

// Tree is whether a path is a directory, and what may be done in it.
type Tree string

const (
	ReadTree  Tree = "read"
	WriteTree Tree = "write"
)

// Status is what the keeper knows of a process.
type Status struct {
	ID      string    `json:"id"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Ready   time.Time `json:"ready,omitzero"` // when Spec.Ready was seen
	Ended   time.Time `json:"ended,omitzero"` // zero while it runs
	// Code is the exit code, or 128 plus the signal. -1 where it could not be learnt.
	Code   int `json:"code"`
	Signal int `json:"signal,omitempty"`
}
