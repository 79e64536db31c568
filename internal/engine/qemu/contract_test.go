package qemu_test

import (
	"context"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/enginetest"
	"github.com/croftproject/croft/internal/engine/qemu"
)

// engines are the two engines by model.
var engines = map[api.Model]func(engine.Keeper, qemu.Options) *qemu.Engine{
	api.ModelFull: qemu.NewFull,
	api.ModelPara: qemu.NewMicroVM,
}

func TestContract(t *testing.T) {
	for model, newEngine := range engines {
		t.Run(string(model), func(t *testing.T) {
			b := newBench(t)
			enginetest.Run(t, enginetest.Harness{
				New:     func(testing.TB) engine.Engine { return newEngine(b.keeper, qemu.Options{}) },
				Machine: func(t testing.TB, id string) *engine.Machine { return b.tiny(t, id, model) },
				Ready: func(ctx context.Context, t testing.TB, m *engine.Machine) {
					b.await(ctx, t, m, m.Boot.Ready)
				},
				PowerOff: func(ctx context.Context, t testing.TB, m *engine.Machine) {
					b.typeIn(ctx, t, m, "q")
				},
				Console:     b.attach,
				ConsoleSend: "hello", ConsoleExpect: "HELLO",
				Bad: []enginetest.BadSpec{
					{Name: "no cpu", Change: func(s *api.ServerSpec) { s.CPU.Count = 0 }, Pointer: "/spec/cpu/count"},
					{Name: "too many cpus", Change: func(s *api.ServerSpec) { s.CPU.Count = 256 }, Pointer: "/spec/cpu/count"},
					{Name: "little memory", Change: func(s *api.ServerSpec) { s.Memory.Limit = api.MiB }, Pointer: "/spec/memory/limit"},
					{Name: "odd memory", Change: func(s *api.ServerSpec) { s.Memory.Limit++ }, Pointer: "/spec/memory/limit"},
					{Name: "an application", Change: func(s *api.ServerSpec) { s.App = &api.App{} }, Pointer: "/spec/app"},
					{Name: "relative directory", Change: func(s *api.ServerSpec) {
						s.Grants = []api.Grant{{Kind: api.GrantDirectory, Source: "srv"}}
					}, Pointer: "/spec/grants/0/source"},
					{Name: "long tag", Change: func(s *api.ServerSpec) {
						s.Grants = []api.Grant{{Kind: api.GrantDirectory, Source: "/srv/a-directory-with-a-long-name"}}
					}, Pointer: "/spec/grants/0/target"},
					{Name: "a capability", Change: func(s *api.ServerSpec) {
						s.Grants = []api.Grant{{Kind: api.GrantCapability, Source: "CAP_NET_RAW"}}
					}, Pointer: "/spec/grants/0/kind"},
				},
				LaunchLimit: 20 * time.Second, ReadyLimit: 20 * time.Second, StopLimit: 20 * time.Second,
			})
		})
	}
}
