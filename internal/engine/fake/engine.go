package fake

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
)

// Name is the engine's name.
const Name = "fake"

const handleVersion = 1

// Engine runs fake guests on a Host.
type Engine struct {
	host  *Host
	model api.Model
}

var _ engine.Engine = (*Engine)(nil)

// New makes an engine of a model on a host.
func New(host *Host, model api.Model) *Engine { return &Engine{host: host, model: model} }

// Traits are those of a usual engine of the model.
func (e *Engine) Traits() engine.Traits {
	t := engine.Traits{Name: Name, Model: e.model}
	switch e.model {
	case api.ModelOS:
		t.Root, t.NIC = engine.RootTree, engine.NICNamespace
	case api.ModelPara:
		t.Root, t.NIC, t.Seed = engine.RootFS, engine.NICTap, true
	case api.ModelFull:
		t.Root, t.NIC, t.Seed = engine.RootDisk, engine.NICTap, true
	}
	return t
}

// Probe always finds the engine available.
func (e *Engine) Probe(context.Context) engine.Report {
	return engine.Report{
		Available: true,
		Version:   "1",
		Abilities: []string{"console", "exec", "pause", "resize", "grow"},
		Grants:    api.GrantKinds,
	}
}

// Validate takes every spec of its model.
func (e *Engine) Validate(spec *api.ServerSpec) []api.FieldError {
	var errs []api.FieldError
	if spec.Model != e.model {
		errs = append(errs, api.FieldError{
			Pointer: "/spec/model", Code: api.CodeUnsupported, Message: fmt.Sprintf("the engine %s gives the model %s", Name, e.model),
		})
	}
	for i, g := range spec.Grants {
		if !slices.Contains(api.GrantKinds, g.Kind) {
			errs = append(errs, api.FieldError{
				Pointer: fmt.Sprintf("/spec/grants/%d/kind", i), Code: api.CodeInvalid, Message: fmt.Sprintf("unknown kind of grant %q", g.Kind),
			})
		}
	}
	return errs
}

// Overhead is none.
func (e *Engine) Overhead(*api.ServerSpec) api.Bytes { return 0 }

// Launch adds the guest to the host.
func (e *Engine) Launch(ctx context.Context, m *engine.Machine) (engine.Guest, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("launch %s: %w", m.ID, err)
	}
	if m.Root.Path != "" {
		if _, err := os.Stat(m.Root.Path); err != nil {
			return nil, fmt.Errorf("launch %s: root: %w", m.ID, err)
		}
	}
	if err := e.host.hook(func(h Hooks) func(string) error { return h.Launch }, m.ID); err != nil {
		return nil, fmt.Errorf("launch %s: %w", m.ID, err)
	}
	h := e.host
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.guests[m.ID]
	if g == nil || !g.running() {
		h.last++
		g = &guest{id: m.ID, pid: firstPID + h.last, done: make(chan struct{})}
		h.guests[m.ID] = g
	}
	return &Guest{host: h, guest: g}, nil
}

type handleData struct {
	PID int `json:"pid"`
}

// Recover finds a guest on the host.
func (e *Engine) Recover(ctx context.Context, m *engine.Machine, handle engine.Handle) (engine.Guest, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("recover %s: %w", m.ID, err)
	}
	if handle.Engine != Name || handle.Version != handleVersion {
		return nil, fmt.Errorf("recover %s: handle of engine %q, version %d", m.ID, handle.Engine, handle.Version)
	}
	var data handleData
	if err := json.Unmarshal(handle.Data, &data); err != nil || data.PID < firstPID {
		return nil, fmt.Errorf("recover %s: handle is damaged: %q", m.ID, handle.Data)
	}
	if err := e.host.hook(func(h Hooks) func(string) error { return h.Recover }, m.ID); err != nil {
		return nil, fmt.Errorf("recover %s: %w", m.ID, err)
	}
	e.host.mu.Lock()
	defer e.host.mu.Unlock()
	g := e.host.guests[m.ID]
	if g == nil || g.pid != data.PID {
		return nil, fmt.Errorf("recover %s: %w", m.ID, engine.ErrGone)
	}
	return &Guest{host: e.host, guest: g}, nil
}

// Clean takes the machine off the host.
func (e *Engine) Clean(ctx context.Context, m *engine.Machine) error {
	if err := e.host.hook(func(h Hooks) func(string) error { return h.Clean }, m.ID); err != nil {
		return fmt.Errorf("clean %s: %w", m.ID, err)
	}
	e.host.mu.Lock()
	defer e.host.mu.Unlock()
	if g := e.host.guests[m.ID]; g != nil {
		g.asked = true
		g.end(api.Exit{Code: 137})
		delete(e.host.guests, m.ID)
	}
	return nil
}
