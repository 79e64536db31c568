package enginetest

import (
	"errors"
	"fmt"
	"testing"

	"github.com/croftproject/croft/internal/engine"
)

func testRecoverRunning(t *testing.T, h *Harness) {
	m, g := h.running(t, h.New(t))
	found, err := h.New(t).Recover(within(t, h.LaunchLimit), m, g.Handle())
	if err != nil {
		t.Fatalf("recover: %v", err)
	}
	if found.PID() != g.PID() || !open(found) {
		t.Fatalf("recovered process %d (runs: %v), launched %d", found.PID(), open(found), g.PID())
	}
	if a, b := fmt.Sprintf("%+v", found.Handle()), fmt.Sprintf("%+v", g.Handle()); a != b {
		t.Errorf("handle became %s, was %s", a, b)
	}
	if err := found.Stop(within(t, h.StopLimit), engine.Graceful); err != nil {
		t.Fatalf("stop recovered guest: %v", err)
	}
	if exit := h.ended(t, found); exit.Reason != "asked" {
		t.Errorf("exit of the recovered guest is %+v", exit)
	}
	h.ended(t, g)
	h.release(t, m, found)
}

// testRecoverEnded has the guest end while no daemon looks.
func testRecoverEnded(t *testing.T, h *Harness) {
	m, g := h.running(t, h.New(t))
	h.End(t, m, g.PID())
	h.ended(t, g)
	e := h.New(t)
	found, err := e.Recover(within(t, h.LaunchLimit), m, g.Handle())
	if err != nil {
		t.Fatalf("recover: %v", err)
	}
	if open(found) {
		t.Fatal("Done is open though the guest has ended")
	}
	exit := found.Exit()
	if exit.Reason == "" || exit.Reason == "asked" || exit.Time.IsZero() {
		t.Errorf("exit is %+v; nobody asked for it", exit)
	}
	if h.Alive(g.PID()) {
		t.Errorf("process %d still runs", g.PID())
	}
	h.release(t, m, found)
	if _, err := e.Recover(within(t, h.LaunchLimit), m, g.Handle()); !errors.Is(err, engine.ErrGone) {
		t.Errorf("recover after release: %v; want ErrGone", err)
	}
	h.checkClean(t, e, m)
}

// testRecoverUnknown uses a handle of a machine that is no more.
func testRecoverUnknown(t *testing.T, h *Harness) {
	e := h.New(t)
	m := h.machine(t, e)
	handle := h.launch(t, e, m).Handle()
	h.checkClean(t, e, m)
	if _, err := h.New(t).Recover(within(t, h.LaunchLimit), m, handle); !errors.Is(err, engine.ErrGone) {
		t.Errorf("recover: %v; want ErrGone", err)
	}
}

func testRecoverGarbage(t *testing.T, h *Harness) {
	e := h.New(t)
	m := h.machine(t, e)
	good := h.launch(t, e, m).Handle()
	change := func(f func(*engine.Handle)) engine.Handle {
		c := good
		c.Data = append([]byte(nil), good.Data...)
		f(&c)
		return c
	}
	for name, handle := range map[string]engine.Handle{
		"empty":          {},
		"another engine": change(func(h *engine.Handle) { h.Engine = "no-such" }),
		"later version":  change(func(h *engine.Handle) { h.Version = 1 << 30 }),
		"no data":        change(func(h *engine.Handle) { h.Data = nil }),
		"cut":            change(func(h *engine.Handle) { h.Data = h.Data[:len(h.Data)/2] }),
		"null":           change(func(h *engine.Handle) { h.Data = []byte("null") }),
		"noise":          change(func(h *engine.Handle) { h.Data = []byte("\x00\xff{[\"") }),
		"other type":     change(func(h *engine.Handle) { h.Data = []byte(`{"pid":"x","id":{},"version":[1]}`) }),
	} {
		t.Run(name, func(t *testing.T) {
			if g, err := e.Recover(within(t, h.LaunchLimit), m, handle); err == nil {
				t.Errorf("recovered %v from a handle that is none", g)
			}
		})
	}
}
