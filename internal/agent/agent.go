// Package agent makes a host as the control plane wants it. It watches the records of the servers that are placed on its
// host, and for each one, alone and whenever something changed, it observes, plans (in pure code: plan.go, restart.go,
// divide.go), acts (act.go) and reports (status.go).
//
// What it did it remembers on the host (local.go), so that guests that outlived the daemon are adopted, and what was
// begun and not finished is finished or removed.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/cgroup"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/hostnet"
	"github.com/croftproject/croft/internal/image"
	"github.com/croftproject/croft/internal/keeper"
	"github.com/croftproject/croft/internal/pool"
	"github.com/croftproject/croft/internal/reconcile"
	"github.com/croftproject/croft/internal/state"
	"github.com/croftproject/croft/internal/store"
)

// Control is what the agent asks of the control plane.
type Control interface {
	// Gone says that nothing of a server is left on the host: its records go, and what was promised to it is free again.
	Gone(ctx context.Context, serverID string) error
	// Started says that the host started a server by itself (autostart: always); its spec says so from then on.
	Started(ctx context.Context, serverID string) error
	// Readmit promises a server what its engine takes now, which is more than was promised.
	Readmit(ctx context.Context, serverID string) error
}

// Images finds the content of images on this host.
type Images interface {
	Get(ctx context.Context, digest string) (image.Content, error)
}

// Keeper is what the agent asks of the keeper of guests.
type Keeper interface {
	Get(ctx context.Context, id string) (keeper.Status, error)
	// Ready is closed when the guest's ready text was seen, or the guest ended.
	Ready(id string) <-chan struct{}
	Attach(ctx context.Context, id string, resize <-chan keeper.WinSize) (io.ReadWriteCloser, error)
}

// ProbeGroup is the name of the control group, beside those of servers, in which engines try guests. It is no server's:
// an agent that took it for a leftover would end the trial, and the engine would seem not to work.
const ProbeGroup = "probe"

// Cgroups are the control groups of this host's servers.
type Cgroups interface {
	Set(name string, l cgroup.Limits) error
	Path(name string) string
	SetOOMScore(name string, score int) error
	Usage(name string) (cgroup.Usage, error)
	Kill(ctx context.Context, name string) error
	Remove(ctx context.Context, name string) error
	List() ([]string, error)
}

// Options of an agent; all are needed.
type Options struct {
	HostID, HostName string
	StateDir         string              // for servers/ID
	RunDir           string              // for s/ID; short, on a file system that a reboot empties
	IDDir            string              // tells whose each range of ids is; one for all daemons of a machine
	BootID           string              // of the host's kernel (proc(5), random/boot_id)
	CPUs             []int               // host CPUs, by number
	Capacity         func() api.MilliCPU // what guests may use of them
	Store            store.Store
	Control          Control
	Keeper           Keeper
	Engines          []engine.Engine
	Pool             pool.Pool
	Images           Images
	Net              hostnet.Host
	Cgroups          Cgroups
	Logger           *slog.Logger
	Now              func() time.Time
	// Fault, if set, is called before each step, and as "remember" before a launched guest is noted; it may return an error
	// or end the process: for tests.
	Fault func(serverID, step string) error
}

// Agent runs the servers of one host.
type Agent struct {
	Options
	engines map[string]engine.Engine
	loop    *reconcile.Loop
	nets    *networks
	status  *reporter
	boot    *bootOrder
	ids     ranges
	divider *divider
	metrics *metrics
	ioDev   [2]int64   // block device below the pool
	usage   sync.Mutex // one reading of usages at a time
	rates   rates
	halting atomic.Bool // the host goes down

	mu        sync.Mutex
	ctx       context.Context // of Run
	desired   map[string]*state.Server
	revision  map[string]int64
	foreign   map[string]bool // servers of other hosts: what this one has of them is left alone
	machines  map[string]*machine
	accel     map[string]string // accelerator, by engine
	left      map[string]bool   // servers of which an earlier daemon left something
	undecided map[string]bool   // servers that a reboot of the host is to be taken note of for
	seen      chan struct{}     // closed once the first list of records was taken in
	watchers  sync.WaitGroup
}

// machine is a server on this host. Its fields belong to the run of its key, but for guest and local, which others read
// under mu.
type machine struct {
	id      string
	dir     string
	run     string
	torn    bool         // nothing but the volume is left, as far as this daemon knows
	stopAt  time.Time    // when a graceful stop becomes a hard one; zero: none is under way
	watched engine.Guest // whose end is being waited for
	unknown error        // why it is not known whether there is a guest; nil: it is

	mu     sync.Mutex
	local  *local
	guest  engine.Guest
	build  *engine.Machine // as launched
	paused bool
}

// New makes an agent; Run lets it work.
func New(o Options) *Agent {
	a := &Agent{
		Options: o, engines: map[string]engine.Engine{}, desired: map[string]*state.Server{}, revision: map[string]int64{}, foreign: map[string]bool{},
		machines: map[string]*machine{}, rates: rates{by: map[string]sample{}}, undecided: map[string]bool{}, seen: make(chan struct{}),
	}
	a.ids = ranges{dir: o.IDDir, subIDs: []string{"/etc/subuid", "/etc/subgid"}}
	for _, e := range o.Engines {
		a.engines[e.Traits().Name] = e
	}
	a.loop = reconcile.New(a.reconcile, 16, func(id string, err error) {
		a.Logger.Error("server needs another try", "server", id, "error", err)
	})
	a.metrics = newMetrics(a)
	a.nets = newNetworks(a)
	a.status = newReporter(a)
	a.boot = newBootOrder(a.loop.Wake)
	a.divider = newDivider(a)
	return a
}

// Run works until ctx ends. Guests go on.
func (a *Agent) Run(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(a.StateDir, "servers"), 0o711); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(a.RunDir, "s"), 0o711); err != nil {
		return err
	}
	info, err := a.Pool.Info(ctx)
	if err != nil {
		return fmt.Errorf("look at the pool: %w", err)
	}
	a.ioDev = [2]int64{info.Major, info.Minor}
	a.mu.Lock()
	a.ctx = ctx
	a.mu.Unlock()
	left, err := a.leftovers(ctx)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() { a.status.run(ctx) })
	wg.Go(func() { a.watchNetworks(ctx) })
	wg.Go(func() { a.watchTenants(ctx) })
	wg.Go(func() { a.watchServers(ctx, left) })
	wg.Go(func() {
		select {
		case <-a.seen: // decide nothing before the records are known
		case <-ctx.Done():
		}
		var loops sync.WaitGroup
		loops.Go(func() { a.nets.loop.Run(ctx) })
		loops.Go(func() { a.nets.reports.Run(ctx) })
		loops.Go(func() { a.nets.shares.loop.Run(ctx) })
		a.loop.Run(ctx)
		loops.Wait()
	})
	<-ctx.Done()
	wg.Wait()
	a.watchers.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastReport)
	defer cancel()
	for a.status.flush(last) {
	}
	return nil
}

// Adopted is closed when the records were read and every guest that still runs was found again.
func (a *Agent) Adopted() <-chan struct{} { return a.seen }

// leftovers finds what earlier daemons left on the host, by server id.
func (a *Agent) leftovers(ctx context.Context) ([]string, error) {
	found := map[string]bool{}
	entries, err := os.ReadDir(filepath.Join(a.StateDir, "servers"))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		found[e.Name()] = true
	}
	volumes, err := a.Pool.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	groups, err := a.Cgroups.List()
	if err != nil {
		return nil, fmt.Errorf("list control groups: %w", err)
	}
	for _, id := range append(volumes, groups...) {
		if !strings.HasPrefix(id, image.GroupPrefix) { // an import's, which the image store sees to
			found[id] = true
		}
	}
	delete(found, ProbeGroup)
	a.mu.Lock()
	a.left = found
	a.mu.Unlock()
	ids := make([]string, 0, len(found))
	for id := range found {
		ids = append(ids, id)
	}
	return ids, nil
}

// machineOf finds or makes the machine of a server, with what the host remembers of it.
func (a *Agent) machineOf(id string) (*machine, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if m := a.machines[id]; m != nil {
		return m, nil
	}
	m := &machine{id: id, dir: filepath.Join(a.StateDir, "servers", id), run: filepath.Join(a.RunDir, "s", id)}
	l, err := loadLocal(m.dir, id)
	if err != nil {
		return nil, err
	}
	if l == nil {
		l = &local{ID: id}
	}
	m.torn = l.Torn
	m.local = l
	a.machines[id] = m
	return m, nil
}

// known tells whether the host has, or may have, anything of a server.
func (a *Agent) known(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.machines[id] != nil || a.left[id]
}

func (a *Agent) forget(m *machine) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.machines, m.id)
	delete(a.left, m.id)
}

// record is the server's record; ours tells that it is not another host's.
func (a *Agent) record(id string) (rec *state.Server, revision int64, ours bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.desired[id], a.revision[id], !a.foreign[id]
}

// guestOf is the server's guest, with what was launched; nil where it has none.
func (m *machine) guestOf() (engine.Guest, *engine.Machine) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.guest, m.build
}

func (m *machine) setGuest(g engine.Guest, b *engine.Machine) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.guest, m.build = g, b
	m.paused = false
}

func (m *machine) state() guestState {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.guest == nil {
		return guestNone
	}
	select {
	case <-m.guest.Done():
		return guestEnded
	default:
	}
	if m.paused {
		return guestPaused
	}
	return guestRunning
}

// update changes what the host remembers of a server, and writes it. A deletion goes on where the disk is too full for
// that, as it makes room: the server's record has the intent, and is removed last, so that another daemon begins again.
func (m *machine) update(change func(l *local)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(m.local)
	err := os.MkdirAll(m.dir, 0o711)
	if err == nil {
		err = m.local.save(m.dir)
	}
	if m.local.Deleting && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) {
		return nil
	}
	return err
}

func (m *machine) remembered() local {
	m.mu.Lock()
	defer m.mu.Unlock()
	return *m.local
}
