package control

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/image"
	"github.com/croftproject/croft/internal/state"
	"github.com/croftproject/croft/internal/store"
)

// fakeEngine has the rules of an engine, and some overhead.
type fakeEngine struct {
	traits   engine.Traits
	overhead api.Bytes
	maxCPUs  int
}

func (e fakeEngine) Traits() engine.Traits              { return e.traits }
func (e fakeEngine) Overhead(*api.ServerSpec) api.Bytes { return e.overhead }
func (e fakeEngine) Validate(s *api.ServerSpec) []api.FieldError {
	if e.maxCPUs > 0 && s.CPU.Count > e.maxCPUs {
		return []api.FieldError{{Pointer: "/spec/cpu/count", Message: fmt.Sprintf("can be at most %d", e.maxCPUs)}}
	}
	return nil
}

func fakeEngines() []Engine {
	return []Engine{
		fakeEngine{engine.Traits{Name: "qemu", Model: api.ModelFull}, 64 * api.MiB, 0},
		fakeEngine{engine.Traits{Name: "uml", Model: api.ModelPara}, 16 * api.MiB, 1},
		fakeEngine{engine.Traits{Name: "microvm", Model: api.ModelPara}, 32 * api.MiB, 0},
		fakeEngine{engine.Traits{Name: "runc", Model: api.ModelOS}, 0, 0},
	}
}

func fakeStatus() api.HostStatus {
	return api.HostStatus{Phase: "ready", Seen: time.Now(), Engines: []api.EngineStatus{
		{Name: "qemu", Model: api.ModelFull, Available: true, Accelerator: "tcg", Abilities: []string{"pause"}, Grants: []api.GrantKind{"directory"},
			Withheld: []api.WithheldGrant{{Kind: api.GrantHugePages, Reason: "none are set aside"}}},
		{Name: "uml", Model: api.ModelPara, Available: true},
		{Name: "microvm", Model: api.ModelPara, Available: true, Accelerator: "tcg", Abilities: []string{"pause"}},
		{Name: "runc", Model: api.ModelOS, Available: true, Abilities: []string{"exec", "pause", "resize"},
			Grants: []api.GrantKind{"directory", "device", "dedicated-cpu", "capability", "nesting"}},
	}}
}

// fakeImages keeps contents by the sum of what was uploaded. An upload "bad" is no image; an upload of another fakeUpload
// waits in the middle.
type fakeImages struct {
	mu   sync.Mutex
	have map[string]image.Content
	hold chan struct{} // builds wait for it, where it is set
}

func (f *fakeImages) Import(ctx context.Context, src image.Source, progress func(string, int)) (image.Content, error) {
	progress("read", 10)
	if src.Registry != "" {
		return f.keep(src.Registry, "oci"), f.wait(ctx)
	}
	data, err := io.ReadAll(src.Reader)
	if err != nil {
		return image.Content{}, err
	}
	progress("unpack", 50)
	if string(data) == "bad" {
		return image.Content{}, fmt.Errorf("%w: it is truncated", image.ErrBad)
	}
	return f.keep(string(data), "tree"), nil
}

func (f *fakeImages) wait(ctx context.Context) error {
	if f.hold == nil {
		return nil
	}
	select {
	case <-f.hold:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *fakeImages) Build(ctx context.Context, name string, progress func(string, int)) (image.Content, error) {
	progress("debootstrap", 20)
	if err := f.wait(ctx); err != nil {
		return image.Content{}, err
	}
	return f.keep(name, "build"), nil
}

func (f *fakeImages) keep(what, format string) image.Content {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := image.Content{
		Digest: fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(what))), Format: format, Size: api.MiB, MinDisk: 64 * api.MiB,
		Models: []api.Model{api.ModelFull, api.ModelPara, api.ModelOS},
	}
	switch what {
	case "iso":
		c.Format, c.Models = "iso", []api.Model{api.ModelFull}
	case "huge":
		c.MinDisk = 20 * api.GiB
	}
	if f.have == nil {
		f.have = map[string]image.Content{}
	}
	f.have[c.Digest] = c
	return c
}

func (f *fakeImages) Get(_ context.Context, digest string) (image.Content, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, ok := f.have[digest]
	if !ok {
		return c, errors.New("no such content")
	}
	return c, nil
}

func (f *fakeImages) Remove(_ context.Context, digest string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.have, digest)
	return nil
}

func (f *fakeImages) List(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for d := range f.have {
		out = append(out, d)
	}
	slices.Sort(out)
	return out, nil
}

var root = httpapi.Caller{Name: "root", Operator: true}

func openStore(t testing.TB) *store.Etcd {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func start(t testing.TB, s store.Store, images *fakeImages) *Control {
	t.Helper()
	c, err := New(t.Context(), Options{Store: s, Images: images, Engines: fakeEngines()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// world is a control plane with a host, an image "micro", and a network "corp" of the default tenant.
type world struct {
	*Control
	t      testing.TB
	store  *store.Etcd
	images *fakeImages
	hostID string
}

// machine has room for 100 servers of the smallest kind, by memory.
var machine = Machine{
	Name:     "h1",
	Capacity: api.Resources{CPU: 64 * api.CPU1, Memory: 512*api.MiB + 100*256*api.MiB, Disk: api.TiB},
	CPUs:     []int{0, 1, 2, 3, 4, 5, 6, 7},
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, store: openStore(t), images: &fakeImages{}}
	w.Control = start(t, w.store, w.images)
	w.register(machine)
	w.image("micro")
	_, err := w.Networks().Create(t.Context(), root, DefaultTenant, httpapi.Create[api.NetworkSpec]{Name: "corp"})
	w.must(err)
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) register(m Machine) {
	w.t.Helper()
	m.Own = true
	id, err := w.RegisterHost(w.t.Context(), m)
	w.must(err)
	w.hostID = id
	w.write(state.HostStatus+id, fakeStatus())
}

// write does what an agent does: it writes a record of its own.
func (w *world) write(key string, v any) {
	w.t.Helper()
	revision, err := store.Write(w.t.Context(), w.store, key, v)
	w.must(err)
	w.must(w.ix.wait(w.t.Context(), revision))
}

// phase reports a server's phase, as its host's agent does.
func (w *world) phase(s *api.Server, p api.Phase) {
	w.t.Helper()
	w.write(state.ServerStatus+s.ID, state.Status{ServerStatus: api.ServerStatus{Phase: p}})
}

func (w *world) image(name string) *api.Job {
	w.t.Helper()
	job, err := w.ImportImage(w.t.Context(), root, DefaultTenant, httpapi.ImageImport{Name: name, Body: &text{name}, Shared: true})
	w.must(err)
	return job
}

// text reads a string.
type text struct{ rest string }

func (s *text) Read(p []byte) (int, error) {
	if s.rest == "" {
		return 0, io.EOF
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func small() api.ServerSpec {
	return api.ServerSpec{Model: api.ModelOS, Image: "micro", Memory: api.Memory{Limit: 256 * api.MiB}, Disk: api.Disk{Size: 64 * api.MiB}}
}

func (w *world) create(name string, edit ...func(*api.ServerSpec)) (*api.Server, error) {
	spec := small()
	for _, e := range edit {
		e(&spec)
	}
	return w.Servers().Create(w.t.Context(), root, DefaultTenant, httpapi.Create[api.ServerSpec]{Name: name, Spec: spec})
}

func (w *world) server(name string, edit ...func(*api.ServerSpec)) *api.Server {
	w.t.Helper()
	s, err := w.create(name, edit...)
	w.must(err)
	return s
}

// remove deletes a server and does the agent's part of it.
func (w *world) remove(name string) {
	w.t.Helper()
	s, err := w.Servers().Delete(w.t.Context(), root, DefaultTenant, name, httpapi.DeleteOptions{Force: true})
	w.must(err)
	w.must(w.Gone(w.t.Context(), s.ID))
}

// sound demands that the ledgers are what the records say.
func (w *world) sound() {
	w.t.Helper()
	differences, err := w.Verify(w.t.Context())
	w.must(err)
	for _, d := range differences {
		w.t.Error(d)
	}
}

func (w *world) host() *api.Host {
	w.t.Helper()
	h, err := w.Hosts().Get(w.t.Context(), root, "", "h1")
	w.must(err)
	return h
}

// soon waits for a condition that a goroutine brings about, looking whenever the index moves.
func (w *world) soon(what string, met func() bool) {
	w.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		w.ix.mu.RLock()
		moved := w.ix.moved
		w.ix.mu.RUnlock()
		if met() {
			return
		}
		select {
		case <-moved:
		case <-deadline:
			w.t.Fatal("never: " + what)
		}
	}
}

// problem demands a problem with a code, and pointers of its fields.
func problem(t testing.TB, err error, code api.Code, pointers ...string) *api.Problem {
	t.Helper()
	var p *api.Problem
	if !errors.As(err, &p) {
		t.Fatalf("%v (%T) is no problem; want %s", err, err, code)
	}
	if p.Code != code {
		t.Fatalf("%s: %v; want %s", p.Code, p, code)
	}
	var have []string
	for _, f := range p.Errors {
		have = append(have, f.Pointer)
	}
	for _, want := range pointers {
		if !slices.Contains(have, want) {
			t.Fatalf("pointers %v; want %s", have, want)
		}
	}
	return p
}
