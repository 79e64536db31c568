package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/cgroup"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/fake"
	"github.com/croftproject/croft/internal/hostnet"
	"github.com/croftproject/croft/internal/image"
	"github.com/croftproject/croft/internal/keeper"
	"github.com/croftproject/croft/internal/pool"
	"github.com/croftproject/croft/internal/state"
	"github.com/croftproject/croft/internal/store"
)

// host is a host whose parts are all in memory but the store. It outlives agents, as a machine outlives daemons.
type host struct {
	t       *testing.T
	store   *store.Etcd
	guests  *fake.Host
	model   api.Model // of its engine
	dir     string
	ids     string
	boot    string
	mu      sync.Mutex
	volumes map[string]bool // open or not
	ports   map[string]hostnet.Network
	groups  map[string]cgroup.Limits
	scores  map[string]int
	fault   func(id, step string) error
	device  int64 // below the pool, its major number
	grow    error // of the pool
	grown   int   // calls for it
	unheard int   // calls of Started that fail; those after don't
	noNet   error // of each Set of a network
	sets    int   // calls for it
	uplink  string
	divided chan hostnet.Shares // each division of the uplink; nil: nobody looks

	overhead   api.Bytes // of the engine, now
	readmitted int       // calls for it
	noRoom     error     // of each
}

// heavy is an engine that takes what its host says.
type heavy struct {
	*fake.Engine
	h *host
}

func (e heavy) Overhead(*api.ServerSpec) api.Bytes {
	e.h.mu.Lock()
	defer e.h.mu.Unlock()
	return e.h.overhead
}

func newHost(t *testing.T) *host {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	h := &host{
		t: t, store: s, guests: fake.NewHost(), model: api.ModelOS, dir: t.TempDir(), ids: t.TempDir(), boot: "boot-1",
		volumes: map[string]bool{}, ports: map[string]hostnet.Network{}, groups: map[string]cgroup.Limits{}, scores: map[string]int{},
	}
	h.write(state.Networks+"net1", state.Network{Meta: api.Meta{Name: "corp", ID: "net1"}, Spec: api.NetworkSpec{
		MTU: 1500, Subnets: []api.Subnet{{Prefix: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.1")}},
	}})
	return h
}

// agent starts an agent on the host; stop ends it as a crash would: nothing is told to anybody.
func (h *host) agent() (a *Agent, stop func()) {
	h.t.Helper()
	a = New(Options{
		HostID: "host1", HostName: "h", StateDir: h.dir, RunDir: h.dir + "/run", IDDir: h.ids, BootID: h.boot, CPUs: []int{0, 1},
		Capacity: func() api.MilliCPU { return 2000 }, Store: h.store, Control: h, Keeper: nobody{},
		Engines: []engine.Engine{heavy{fake.New(h.guests, h.model), h}}, Pool: memPool{h}, Images: h, Net: memNet{h}, Cgroups: memGroups{h},
		Logger: slog.New(slog.DiscardHandler), Now: time.Now,
		Fault: func(id, step string) error {
			h.mu.Lock()
			f := h.fault
			h.mu.Unlock()
			if f == nil {
				return nil
			}
			return f(id, step)
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Errorf("agent: %v", err)
		}
	})
	h.t.Cleanup(stop)
	select {
	case <-a.Adopted():
	case <-time.After(10 * time.Second):
		h.t.Fatal("agent did not come up")
	}
	return a, stop
}

func (h *host) server(id string, change func(*state.Server)) {
	h.t.Helper()
	rec := &state.Server{
		Meta: api.Meta{ID: id, Name: id, Tenant: "t"}, HostID: "host1", Host: "h", Engine: fake.Name, Digest: "d",
		Spec: api.ServerSpec{
			Model: api.ModelOS, State: api.StateRunning, CPU: api.CPU{Count: 1, Entitlement: 100, Cap: 1000},
			Memory: api.Memory{Limit: 64 * api.MiB, Reservation: 64 * api.MiB}, StopTimeout: api.Duration(time.Minute),
			Restart: api.RestartPolicy{Policy: api.RestartOnFailure},
		},
		Ports: []state.Port{{ID: id, Network: "corp", NetworkID: "net1", MAC: "52:54:00:00:00:01", Address: netip.MustParseAddr("10.0.0.2"), Bits: 24}},
	}
	if change != nil {
		change(rec)
	}
	h.write(state.Servers+id, rec)
}

func (h *host) write(key string, value any) {
	h.t.Helper()
	if _, err := store.Write(h.t.Context(), h.store, key, value); err != nil {
		h.t.Fatal(err)
	}
}

// waitFor follows a server's status until ok, and returns it.
func (h *host) waitFor(id string, what string, ok func(*state.Status) bool) *state.Status {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	defer cancel()
	var last *state.Status
	records, rev, err := h.store.List(ctx, state.ServerStatus)
	if err != nil {
		h.t.Fatal(err)
	}
	see := func(key string, value []byte) bool {
		if key != state.ServerStatus+id {
			return false
		}
		last = &state.Status{}
		if err := json.Unmarshal(value, last); err != nil {
			h.t.Fatal(err)
		}
		return ok(last)
	}
	for _, r := range records {
		if see(r.Key, r.Value) {
			return last
		}
	}
	for batch := range h.store.Watch(ctx, state.ServerStatus, rev+1) {
		for _, e := range batch.Changes {
			if !e.Deleted && see(e.Key, e.Value) {
				return last
			}
		}
	}
	h.t.Fatalf("server %s never came to be %s; its last status: %+v", id, what, last)
	return nil
}

func (h *host) phase(id string, p api.Phase) *state.Status {
	h.t.Helper()
	return h.waitFor(id, string(p), func(s *state.Status) bool { return s.Phase == p })
}

// gone waits until a server's record is away.
func (h *host) gone(id string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	defer cancel()
	_, rev, err := h.store.List(ctx, state.Servers+id)
	if err != nil {
		h.t.Fatal(err)
	}
	watch := h.store.Watch(ctx, state.Servers+id, rev+1)
	if _, err := h.store.Get(ctx, state.Servers+id); errors.Is(err, store.ErrNotFound) {
		return
	}
	for batch := range watch {
		for _, e := range batch.Changes {
			if e.Deleted {
				return
			}
		}
	}
	h.t.Fatalf("server %s was not deleted", id)
}

// clean fails the test where anything of a server is left.
func (h *host) clean() {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.volumes)+len(h.ports)+len(h.groups) > 0 {
		h.t.Errorf("left on the host: volumes %v, networks %v, groups %v", h.volumes, h.ports, h.groups)
	}
	if ids, _ := os.ReadDir(h.ids); len(ids) > 0 {
		h.t.Errorf("ranges of ids are still taken: %v", ids)
	}
	if r := h.guests.Running(); len(r) > 0 {
		h.t.Errorf("guests still run: %v", r)
	}
}

func (h *host) setFault(f func(id, step string) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fault = f
}

// Control.

func (h *host) Gone(ctx context.Context, id string) error {
	_, err := h.store.Commit(ctx, store.Tx{Deletes: []string{state.Servers + id, state.ServerStatus + id}})
	return err
}

func (h *host) Readmit(context.Context, string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.readmitted++
	return h.noRoom
}

func (h *host) readmissions() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.readmitted
}

func (h *host) Started(ctx context.Context, id string) error {
	h.mu.Lock()
	h.unheard--
	fails := h.unheard >= 0
	h.mu.Unlock()
	if fails {
		return store.ErrUnavailable
	}
	rec, rev, err := store.Get[state.Server](ctx, h.store, state.Servers+id)
	if err != nil {
		return err
	}
	rec.Spec.State = api.StateRunning
	_, err = h.store.Commit(ctx, store.Tx{
		Checks: []store.Check{{Key: state.Servers + id, Revision: rev}}, Puts: []store.Put{store.Encode(state.Servers+id, rec)},
	})
	return err
}

func (h *host) Get(_ context.Context, digest string) (image.Content, error) {
	if digest == "bad" {
		return image.Content{}, fmt.Errorf("%w: it is truncated", image.ErrBad)
	}
	return image.Content{Digest: digest, Tree: "/image", RootFS: "/image.ext4"}, nil
}

type nobody struct{}

func (nobody) Get(context.Context, string) (keeper.Status, error) {
	return keeper.Status{}, keeper.ErrUnknown
}
func (nobody) Ready(string) <-chan struct{} { return nil }
func (nobody) Attach(context.Context, string, <-chan keeper.WinSize) (io.ReadWriteCloser, error) {
	return nil, keeper.ErrUnknown
}

type memPool struct{ h *host }

func (p memPool) Info(context.Context) (pool.Info, error) {
	return pool.Info{Driver: "memory", Major: p.h.device}, nil
}
func (p memPool) Create(_ context.Context, s pool.Spec) error {
	p.h.mu.Lock()
	defer p.h.mu.Unlock()
	p.h.volumes[s.ID] = p.h.volumes[s.ID]
	return nil
}
func (p memPool) Open(_ context.Context, s pool.Spec) (pool.Opened, error) {
	p.h.mu.Lock()
	defer p.h.mu.Unlock()
	if _, ok := p.h.volumes[s.ID]; !ok {
		return pool.Opened{}, pool.ErrNotFound
	}
	p.h.volumes[s.ID] = true
	return pool.Opened{Path: p.h.t.TempDir()}, nil
}
func (p memPool) Close(_ context.Context, id string) error {
	p.h.mu.Lock()
	defer p.h.mu.Unlock()
	if _, ok := p.h.volumes[id]; ok {
		p.h.volumes[id] = false
	}
	return nil
}
func (p memPool) Grow(context.Context, string, api.Bytes) error {
	p.h.mu.Lock()
	defer p.h.mu.Unlock()
	p.h.grown++
	return p.h.grow
}
func (p memPool) Delete(_ context.Context, id string) error {
	p.h.mu.Lock()
	defer p.h.mu.Unlock()
	delete(p.h.volumes, id)
	return nil
}
func (p memPool) List(context.Context) ([]string, error) {
	p.h.mu.Lock()
	defer p.h.mu.Unlock()
	var ids []string
	for id := range p.h.volumes {
		ids = append(ids, id)
	}
	return ids, nil
}

type memNet struct{ h *host }

func (n memNet) Set(_ context.Context, c hostnet.Network) error {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	n.h.sets++
	if n.h.noNet == nil {
		n.h.ports[c.ID] = c
	}
	return n.h.noNet
}
func (n memNet) SetShares(_ context.Context, s hostnet.Shares) error {
	n.h.mu.Lock()
	to := n.h.divided
	n.h.mu.Unlock()
	if to != nil {
		to <- s
	}
	return nil
}
func (n memNet) Uplink() (string, error) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	return n.h.uplink, nil
}
func (n memNet) Remove(_ context.Context, id string) error {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	delete(n.h.ports, id)
	return nil
}
func (n memNet) List(context.Context) ([]string, error) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	var ids []string
	for id := range n.h.ports {
		ids = append(ids, id)
	}
	return ids, nil
}
func (n memNet) Attachment(string, hostnet.Port) hostnet.Attachment {
	return hostnet.Attachment{}
}
func (n memNet) Counters(context.Context, string, string) (hostnet.Counters, error) {
	return hostnet.Counters{}, nil
}
func (n memNet) Close() error { return nil }

type memGroups struct{ h *host }

func (g memGroups) Set(id string, l cgroup.Limits) error {
	g.h.mu.Lock()
	defer g.h.mu.Unlock()
	g.h.groups[id] = l
	return nil
}
func (g memGroups) Path(id string) string              { return "croft-test/" + id }
func (g memGroups) Usage(string) (cgroup.Usage, error) { return cgroup.Usage{}, nil }
func (g memGroups) Kill(context.Context, string) error { return nil }
func (g memGroups) Remove(_ context.Context, id string) error {
	g.h.mu.Lock()
	defer g.h.mu.Unlock()
	delete(g.h.groups, id)
	return nil
}
func (g memGroups) SetOOMScore(id string, score int) error {
	g.h.mu.Lock()
	defer g.h.mu.Unlock()
	g.h.scores[id] = score
	return nil
}
func (g memGroups) List() ([]string, error) {
	g.h.mu.Lock()
	defer g.h.mu.Unlock()
	var ids []string
	for id := range g.h.groups {
		ids = append(ids, id)
	}
	return ids, nil
}

// reset empties what a reboot of the host empties.
func (h *host) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.groups, h.ports = map[string]cgroup.Limits{}, map[string]hostnet.Network{}
}

// eventually waits until something holds that no status tells; it looks again and again.
func (h *host) eventually(what string, ok func() bool) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	defer cancel()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for {
		h.mu.Lock()
		holds := ok()
		h.mu.Unlock()
		if holds {
			return
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			h.t.Fatalf("not so: %s", what)
		}
	}
}
