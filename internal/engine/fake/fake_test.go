package fake_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"testing"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/enginetest"
	"github.com/croftproject/croft/internal/engine/fake"
)

func machine(t testing.TB, id string, model api.Model) *engine.Machine {
	return &engine.Machine{
		ID: id, Name: id, Dir: t.TempDir(), RunDir: t.TempDir(),
		Spec: &api.ServerSpec{Model: model, CPU: api.CPU{Count: 1}, Memory: api.Memory{Limit: 64 * api.MiB}},
	}
}

func TestContract(t *testing.T) {
	for _, model := range api.Models {
		t.Run(string(model), func(t *testing.T) {
			host := fake.NewHost()
			enginetest.Run(t, enginetest.Harness{
				New:      func(testing.TB) engine.Engine { return fake.New(host, model) },
				Machine:  func(t testing.TB, id string) *engine.Machine { return machine(t, id, model) },
				Alive:    host.Alive,
				End:      func(_ testing.TB, m *engine.Machine, _ int) { host.End(m.ID, 139, "signal") },
				PowerOff: func(_ context.Context, _ testing.TB, m *engine.Machine) { host.End(m.ID, 0, "poweroff") },
				Console: func(_ context.Context, m *engine.Machine) (io.ReadWriteCloser, error) {
					return host.Console(m.ID)
				},
				ConsoleSend: "hello\n", ConsoleExpect: "hello",
				Commands: enginetest.Commands{
					Exit7: []string{"exit", "7"}, Streams: []string{"streams"}, Cat: []string{"cat"}, Size: []string{"size"},
					Hang: []string{"hang"}, Gone: func(string) []string { return []string{"gone"} }, Context: []string{"context"},
				},
				Leaks: func(_ testing.TB, m *engine.Machine) []string {
					if host.Known(m.ID) {
						return []string{"the host knows " + m.ID}
					}
					return nil
				},
			})
		})
	}
}

// Each hook fails its act once; the act then has not happened and works when it is done again.
func TestHooks(t *testing.T) {
	boom := errors.New("boom")
	fail := func(string) error { return boom }
	ctx := context.Background()
	host := fake.NewHost()
	e := fake.New(host, api.ModelOS)
	m := machine(t, "web", api.ModelOS)

	step := func(name string, hooks fake.Hooks, act func() error) {
		t.Helper()
		host.Hook(hooks)
		if err := act(); !errors.Is(err, boom) {
			t.Errorf("%s: %v; want the hook's error", name, err)
		}
		host.Hook(fake.Hooks{})
		if err := act(); err != nil {
			t.Errorf("%s again: %v", name, err)
		}
	}
	var g engine.Guest
	step("launch", fake.Hooks{Launch: fail}, func() (err error) { g, err = e.Launch(ctx, m); return err })
	step("recover", fake.Hooks{Recover: fail}, func() error { _, err := e.Recover(ctx, m, g.Handle()); return err })
	step("pause", fake.Hooks{Pause: fail}, func() error { return g.(engine.Pauser).Pause(ctx) })

	host.Hook(fake.Hooks{Deaf: func(id string) bool { return id == "web" }})
	if err := g.Stop(ctx, engine.Graceful); err != nil || len(host.Running()) != 1 {
		t.Errorf("deaf guest: %v, running: %v", err, host.Running())
	}
	step("stop", fake.Hooks{Stop: fail}, func() error { return g.Stop(ctx, engine.Kill) })
	<-g.Done()
	step("release", fake.Hooks{Release: fail}, func() error { return g.Release(ctx) })
	step("clean", fake.Hooks{Clean: fail}, func() error { return e.Clean(ctx, m) })
}

func TestThousandGuestsTakeNoGoroutine(t *testing.T) {
	e := fake.New(fake.NewHost(), api.ModelOS)
	before := runtime.NumGoroutine()
	for i := range 1000 {
		m := &engine.Machine{ID: fmt.Sprint(i), Spec: &api.ServerSpec{Model: api.ModelOS}}
		if _, err := e.Launch(context.Background(), m); err != nil {
			t.Fatal(err)
		}
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines became %d", before, after)
	}
}
