package httpapitest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
)

// Fake is a control plane in memory, with one host that runs every server at once.
type Fake struct {
	Now clock // default: time.Now
	// Refuse, if set, is asked before a server is created.
	Refuse func(*api.ServerSpec) error
	// Hold keeps servers from leaving the phase starting.
	Hold bool
	// Watched has a value for each of the first watches that were started.
	Watched chan struct{}

	ServerStore  *resources[api.Server, api.ServerSpec]
	NetworkStore *resources[api.Network, api.NetworkSpec]
	ImageStore   *resources[api.Image, api.ImageSpec]
	HostStore    *resources[api.Host, api.HostSpec]
	TenantStore  *resources[api.Tenant, api.TenantSpec]
	EventStore   *resources[api.Event, struct{}]
	JobStore     *resources[api.Job, api.JobSpec]

	mu      sync.Mutex
	counter int64
	ids     int
	callers []httpapi.Caller
	froms   []int64

	forgotten int64 // watches can't start before it
}

// New makes a Fake with a tenant "default", a host "host-1" and an image "micro".
func New() *Fake {
	f := &Fake{Now: time.Now, Watched: make(chan struct{}, 64)}
	f.ServerStore = newStore(f, "server", func(m api.Meta, s api.ServerSpec) *api.Server {
		return &api.Server{Meta: m, Spec: s, Status: api.ServerStatus{Phase: api.PhasePending, Host: "host-1", Engine: engineOf(s.Model)}}
	}, func(t *api.Server) *api.Meta { return &t.Meta }, func(t *api.Server) *api.ServerSpec { return &t.Spec })
	f.ServerStore.check = f.checkServer
	f.ServerStore.created = f.serverCreated
	f.ServerStore.updated = f.serverUpdated
	f.ServerStore.deletes = func(t *api.Server, o httpapi.DeleteOptions) error {
		if t.Spec.DeleteProtection {
			return api.Errorf(api.CodeProtected, "server %s is protected against deletion", t.Name)
		}
		if t.Status.Phase == api.PhaseRunning && !o.Force {
			return api.Errorf(api.CodeWrongState, "server %s is running", t.Name)
		}
		return nil
	}
	f.ServerStore.matches = func(t *api.Server, filter map[string]string) bool {
		return (filter["phase"] == "" || filter["phase"] == string(t.Status.Phase)) &&
			(filter["model"] == "" || filter["model"] == string(t.Spec.Model))
	}
	f.NetworkStore = newStore(f, "network", func(m api.Meta, s api.NetworkSpec) *api.Network {
		if len(s.Subnets) == 0 {
			s.Subnets = []api.Subnet{{Prefix: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.1")}}
		}
		return &api.Network{Meta: m, Spec: s, Status: api.NetworkStatus{Phase: "active"}}
	}, func(t *api.Network) *api.Meta { return &t.Meta }, func(t *api.Network) *api.NetworkSpec { return &t.Spec })
	f.ImageStore = newStore(f, "image", func(m api.Meta, s api.ImageSpec) *api.Image {
		return &api.Image{Meta: m, Spec: s}
	}, func(t *api.Image) *api.Meta { return &t.Meta }, func(t *api.Image) *api.ImageSpec { return &t.Spec })
	f.ImageStore.shared = func(t *api.Image) bool { return t.Spec.Shared }
	f.HostStore = newStore(f, "host", func(m api.Meta, s api.HostSpec) *api.Host {
		return &api.Host{Meta: m, Spec: s}
	}, func(t *api.Host) *api.Meta { return &t.Meta }, func(t *api.Host) *api.HostSpec { return &t.Spec })
	f.TenantStore = newStore(f, "tenant", func(m api.Meta, s api.TenantSpec) *api.Tenant {
		return &api.Tenant{Meta: m, Spec: s}
	}, func(t *api.Tenant) *api.Meta { return &t.Meta }, func(t *api.Tenant) *api.TenantSpec { return &t.Spec })
	f.EventStore = newStore(f, "event", func(m api.Meta, _ struct{}) *api.Event {
		return &api.Event{ID: m.ID, Time: m.Created, Tenant: m.Tenant, Kind: "server", Name: m.Name, Reason: "Created", Actor: "root"}
	}, func(t *api.Event) *api.Meta { return &api.Meta{Name: t.ID, Tenant: t.Tenant, ID: t.ID} }, func(*api.Event) *struct{} { return &struct{}{} })
	f.JobStore = newStore(f, "job", func(m api.Meta, s api.JobSpec) *api.Job {
		return &api.Job{Meta: m, Spec: s, Status: api.JobStatus{Phase: api.JobRunning}}
	}, func(t *api.Job) *api.Meta { return &t.Meta }, func(t *api.Job) *api.JobSpec { return &t.Spec })
	f.seed()
	return f
}

func newStore[T, S any](f *Fake, kind string, create func(api.Meta, S) *T, meta func(*T) *api.Meta, spec func(*T) *S) *resources[T, S] {
	return &resources[T, S]{fake: f, kind: kind, make: create, meta: meta, spec: spec, items: map[string]*T{}, watchers: map[chan []byte]string{}}
}

func engineOf(m api.Model) string {
	return map[api.Model]string{api.ModelOS: "runc", api.ModelPara: "uml", api.ModelFull: "qemu"}[m]
}

// seed puts in what a new Fake holds.
func (f *Fake) seed() {
	must(f.TenantStore.Put("", "default", nil, api.TenantSpec{}))
	must(f.HostStore.Put("", "host-1", nil, api.HostSpec{}))
	f.HostStore.change("", "host-1", func(h *api.Host) {
		h.Status = api.HostStatus{
			Phase: "ready", Version: "test", Kernel: "6.1.0", Cgroups: "hybrid",
			Capacity:    api.Resources{CPU: 4000, Memory: 16 * api.GiB, HugePages: 2 * api.GiB, Disk: 100 * api.GiB},
			Allocatable: api.Resources{CPU: 3900, Memory: 15 * api.GiB, HugePages: 2 * api.GiB, Disk: 198 * api.GiB},
			Allocated:   api.Resources{Servers: 1, CPU: 100, Memory: 512 * api.MiB, HugePages: 512 * api.MiB, Disk: 10 * api.GiB},
			Engines: []api.EngineStatus{
				{Name: "runc", Model: api.ModelOS, Available: true, Version: "1.1.5"},
				{Name: "qemu", Model: api.ModelFull, Available: true, Accelerator: "tcg", Reason: "KVM does not run a guest here",
					Grants: []api.GrantKind{api.GrantDirectory, api.GrantHugePages}, Withheld: []api.WithheldGrant{{Kind: api.GrantDevice, Reason: "no IOMMU"}}},
			},
		}
	})
	f.PutImage("default", "micro", true)
}

// PutImage adds an image.
func (f *Fake) PutImage(tenant, name string, shared bool) {
	must(f.ImageStore.Put(tenant, name, nil, api.ImageSpec{Shared: shared}))
	f.ImageStore.change(tenant, name, func(i *api.Image) {
		i.Status = api.ImageStatus{
			Digest: fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(name))), Size: 8 * api.MiB, Models: api.Models, Format: "build",
		}
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func (f *Fake) id() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ids++
	return fmt.Sprintf("01k%023d", f.ids)
}

func (f *Fake) next() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counter++
	return f.counter
}

func (f *Fake) revision() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counter
}

func (f *Fake) note(who httpapi.Caller) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.callers = append(f.callers, who)
}

func (f *Fake) watchFrom(from int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.froms = append(f.froms, from)
	select {
	case f.Watched <- struct{}{}:
	default:
	}
	if from > 0 && from < f.forgotten {
		return api.Errorf(api.CodeExpired, "changes after revision %d are not remembered any more", from)
	}
	return nil
}

// LastCaller is who asked last.
func (f *Fake) LastCaller() httpapi.Caller {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.callers[len(f.callers)-1]
}

// WatchedFrom are the revisions that watches were started from.
func (f *Fake) WatchedFrom() []int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]int64(nil), f.froms...)
}

// BreakServerWatches ends every watch of servers.
func (f *Fake) BreakServerWatches() { f.ServerStore.breakWatches() }

// Forget makes every revision until now one that a watch can't start from.
func (f *Fake) Forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forgotten = f.counter + 1
}

// SetServer edits a server as its host would.
func (f *Fake) SetServer(tenant, name string, edit func(*api.Server)) {
	f.ServerStore.change(tenant, name, edit)
}

func (f *Fake) checkServer(s *api.ServerSpec) error {
	if f.Refuse != nil {
		if err := f.Refuse(s); err != nil {
			return err
		}
	}
	if s.Image == "none" {
		return api.Invalid([]api.FieldError{{Pointer: "/spec/image", Code: api.CodeNotFound, Message: `there is no image "none"`}})
	}
	return nil
}

// serverCreated runs a new server, through the phases that a host takes it through.
func (f *Fake) serverCreated(s *api.Server) {
	must(f.EventStore.Put(s.Tenant, s.Name, nil, struct{}{}))
	f.SetServer(s.Tenant, s.Name, func(s *api.Server) { s.Status.Phase = api.PhaseStarting })
	if f.Hold {
		return
	}
	phase := phaseOf(s.Spec.State)
	f.SetServer(s.Tenant, s.Name, func(s *api.Server) {
		s.Status.Phase, s.Status.Observed = phase, s.Revision
		if phase == api.PhaseRunning {
			s.Status.Started, s.Status.Ready = f.Now(), f.Now()
		}
		for i, p := range s.Spec.Ports {
			address := p.Address
			if !address.IsValid() {
				address = netip.AddrFrom4([4]byte{10, 0, 0, byte(5 + i)})
			}
			s.Status.Ports = append(s.Status.Ports, api.PortStatus{Network: p.Network, MAC: "02:00:00:00:00:05", Address: address, Prefix: 24, Name: s.Name})
		}
	})
}

// serverUpdated takes a server to the state that its spec asks for, unless it has ended by itself.
func (f *Fake) serverUpdated(s *api.Server) {
	if f.Hold {
		return
	}
	f.SetServer(s.Tenant, s.Name, func(s *api.Server) {
		s.Status.Observed = s.Revision
		if s.Status.Exit == nil {
			s.Status.Phase = phaseOf(s.Spec.State)
		}
	})
}

func phaseOf(state api.PowerState) api.Phase {
	if state == "" {
		return api.PhaseRunning
	}
	return api.Phase(state)
}

func (f *Fake) Servers() httpapi.Resources[api.Server, api.ServerSpec]    { return f.ServerStore }
func (f *Fake) Networks() httpapi.Resources[api.Network, api.NetworkSpec] { return f.NetworkStore }
func (f *Fake) Images() httpapi.Resources[api.Image, api.ImageSpec]       { return f.ImageStore }
func (f *Fake) Hosts() httpapi.Resources[api.Host, api.HostSpec]          { return f.HostStore }
func (f *Fake) Tenants() httpapi.Resources[api.Tenant, api.TenantSpec]    { return f.TenantStore }
func (f *Fake) Events() httpapi.Resources[api.Event, struct{}]            { return f.EventStore }
func (f *Fake) Jobs() httpapi.Resources[api.Job, api.JobSpec]             { return f.JobStore }

// Power sets the state and the phase that follows from it.
func (f *Fake) Power(ctx context.Context, who httpapi.Caller, tenant, name string, action api.PowerAction, force bool) (*api.Server, error) {
	f.note(who)
	if action == "" {
		panic("no action")
	}
	s, err := f.ServerStore.Get(ctx, who, tenant, name)
	if err != nil {
		return nil, err
	}
	states := map[api.PowerAction]api.PowerState{
		api.PowerStart: api.StateRunning, api.PowerStop: api.StateStopped, api.PowerRestart: api.StateRunning,
		api.PowerPause: api.StatePaused, api.PowerResume: api.StateRunning,
	}
	if action == api.PowerPause && s.Status.Phase != api.PhaseRunning {
		return nil, api.Errorf(api.CodeWrongState, "server %s is %s; only a running one can be paused", name, s.Status.Phase)
	}
	f.SetServer(tenant, name, func(s *api.Server) {
		s.Revision = f.next()
		s.Spec.State = states[action]
		s.Status.Observed = s.Revision
		s.Status.Phase = api.Phase(states[action])
		s.Status.Started = f.Now()
	})
	return f.ServerStore.Get(ctx, who, tenant, name)
}

// ImportImage reads the upload and makes an image whose digest is the upload's.
func (f *Fake) ImportImage(_ context.Context, who httpapi.Caller, tenant string, r httpapi.ImageImport) (*api.Job, error) {
	f.note(who)
	digest, size := sha256.New(), int64(0)
	if r.Body != nil {
		n, err := io.Copy(digest, r.Body)
		if err != nil {
			return nil, fmt.Errorf("read the upload: %w", err)
		}
		size = n
	}
	j := must(f.JobStore.Put(tenant, "import-"+r.Name, nil, api.JobSpec{Kind: "image-import", Object: r.Name, Source: r.Registry}))
	phase, problem := api.JobDone, ""
	if size > 0 && size < 16 {
		phase, problem = api.JobFailed, "the upload is no image"
	} else {
		must(f.ImageStore.Put(tenant, r.Name, r.Labels, api.ImageSpec{Shared: r.Shared}))
		f.ImageStore.change(tenant, r.Name, func(i *api.Image) {
			i.Status = api.ImageStatus{Digest: fmt.Sprintf("sha256:%x", digest.Sum(nil)), Size: api.Bytes(size), Models: []api.Model{api.ModelOS}, Format: "tree"}
		})
	}
	f.JobStore.change(tenant, j.Name, func(j *api.Job) {
		j.Status = api.JobStatus{Phase: phase, Progress: 100, Error: problem, Finished: f.Now()}
		if problem != "" {
			j.Status.Code = api.CodeBadImage
		}
	})
	return f.JobStore.Get(context.Background(), who, tenant, j.Name)
}

// BuildImage makes an image at once.
func (f *Fake) BuildImage(ctx context.Context, who httpapi.Caller, tenant, name, builtin string, shared bool) (*api.Job, error) {
	f.note(who)
	if builtin != "micro" && builtin != "debian-12" {
		return nil, api.Invalid([]api.FieldError{{Pointer: "/builtin", Code: api.CodeInvalid, Message: "must be one of micro, debian-12"}})
	}
	j := must(f.JobStore.Put(tenant, "build-"+name, nil, api.JobSpec{Kind: "image-build", Object: name}))
	f.PutImage(tenant, name, shared)
	f.JobStore.change(tenant, j.Name, func(j *api.Job) {
		j.Status = api.JobStatus{Phase: api.JobDone, Progress: 100, Finished: f.Now()}
	})
	return f.JobStore.Get(ctx, who, tenant, j.Name)
}
