package enginetest

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"github.com/croftproject/croft/internal/engine"
)

// testLife takes a guest from launch to release, the way it should go.
func testLife(t *testing.T, h *Harness) {
	e := h.New(t)
	before := time.Now()
	m, g := h.running(t, e)
	if !h.Alive(g.PID()) {
		t.Fatalf("process %d does not run", g.PID())
	}
	if !open(g) {
		t.Fatal("Done is closed while the guest runs")
	}
	handle := g.Handle()
	if handle.Engine != e.Traits().Name || handle.Version < 1 {
		t.Errorf("handle %+v does not name engine %q and a version", handle, e.Traits().Name)
	}
	again := h.launch(t, e, m)
	if again.PID() != g.PID() {
		t.Errorf("a second launch made process %d beside %d", again.PID(), g.PID())
	}

	if err := g.Stop(within(t, h.StopLimit), engine.Graceful); err != nil {
		t.Fatalf("stop: %v", err)
	}
	exit := h.ended(t, g)
	if exit.Reason != "asked" || exit.Time.Before(before) || exit.Time.After(time.Now()) {
		t.Errorf("exit is %+v after a graceful stop; want the reason asked, and the time", exit)
	}
	if h.ended(t, again) != exit {
		t.Errorf("the same guest tells two ends: %+v, %+v", exit, again.Exit())
	}
	if h.Alive(g.PID()) {
		t.Errorf("process %d still runs", g.PID())
	}
	for _, mode := range []engine.StopMode{engine.Graceful, engine.Kill} {
		if err := g.Stop(within(t, h.StopLimit), mode); err != nil {
			t.Errorf("stopping an ended guest (%d): %v", mode, err)
		}
	}
	h.release(t, m, g)
	h.checkRestart(t, e, m)
}

// checkRestart launches a machine again whose guest was released, and leaves it to the cleaning.
func (h *Harness) checkRestart(t *testing.T, e engine.Engine, m *engine.Machine) {
	t.Helper()
	g := h.launch(t, e, m)
	if !open(g) || !h.Alive(g.PID()) {
		t.Error("launched again, the guest does not run")
	}
	h.checkClean(t, e, m)
}

func testPowerOff(t *testing.T, h *Harness) {
	if h.PowerOff == nil {
		return
	}
	e := h.New(t)
	m, g := h.running(t, e)
	h.PowerOff(within(t, h.StopLimit), t, m)
	if exit := h.ended(t, g); exit.Reason != "poweroff" && exit.Reason != "exited" || exit.Code != 0 {
		t.Errorf("exit is %+v after the guest powered itself off", exit)
	}
	h.release(t, m, g)
}

// testKill pulls the plug at once, when a guest with a kernel of its own has barely begun.
func testKill(t *testing.T, h *Harness) {
	e := h.New(t)
	m := h.machine(t, e)
	g := h.launch(t, e, m)
	if err := g.Stop(within(t, h.StopLimit), engine.Kill); err != nil {
		t.Fatalf("kill: %v", err)
	}
	if exit := h.ended(t, g); exit.Reason != "asked" {
		t.Errorf("exit is %+v after a kill that was asked for", exit)
	}
	h.checkProcesses(t, m, g.PID())
	h.release(t, m, g)
}

func testTwoAtOnce(t *testing.T, h *Harness) {
	e := h.New(t)
	machines := []*engine.Machine{h.machine(t, e), h.machine(t, e)}
	guests := make([]engine.Guest, len(machines))
	errs := make([]error, len(machines))
	ctx := within(t, h.LaunchLimit)
	var launches sync.WaitGroup
	for i, m := range machines {
		launches.Go(func() { guests[i], errs[i] = e.Launch(ctx, m) })
	}
	launches.Wait()
	for i, err := range errs {
		if err != nil {
			t.Fatalf("launch %d of two: %v", i, err)
		}
	}
	if guests[0].PID() == guests[1].PID() {
		t.Fatalf("two machines share process %d", guests[0].PID())
	}
	if err := guests[0].Stop(within(t, h.StopLimit), engine.Kill); err != nil {
		t.Fatalf("kill: %v", err)
	}
	h.ended(t, guests[0])
	h.checkClean(t, e, machines[0])
	if !open(guests[1]) || !h.Alive(guests[1].PID()) {
		t.Error("killing and cleaning one machine ended the other")
	}
}

func testConsole(t *testing.T, h *Harness) {
	if h.Console == nil {
		return
	}
	m, _ := h.running(t, h.New(t))
	ctx := within(t, h.ReadyLimit)
	console, err := h.Console(ctx, m)
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	defer context.AfterFunc(ctx, func() { console.Close() })()
	defer console.Close()
	if _, err := console.Write([]byte(h.ConsoleSend)); err != nil {
		t.Fatalf("write to console: %v", err)
	}
	var seen []byte
	buf := make([]byte, 4096)
	for !bytes.Contains(seen, []byte(h.ConsoleExpect)) {
		n, err := console.Read(buf)
		seen = append(seen, buf[:n]...)
		if err != nil && !bytes.Contains(seen, []byte(h.ConsoleExpect)) {
			t.Fatalf("console ended with %v before %q; it showed:\n%s", err, h.ConsoleExpect, seen)
		}
	}
}

func testPause(t *testing.T, h *Harness) {
	e := h.New(t)
	m, g := h.running(t, e)
	p, ok := g.(engine.Pauser)
	if !ok {
		return // the engine's guests can't be paused
	}
	want := func(paused bool) {
		t.Helper()
		got, err := p.Paused(within(t, h.StopLimit))
		if err != nil || got != paused {
			t.Fatalf("paused is %v, %v; want %v", got, err, paused)
		}
	}
	want(false)
	for range 2 {
		if err := p.Pause(within(t, h.StopLimit)); err != nil {
			t.Fatalf("pause: %v", err)
		}
		want(true)
	}
	// A daemon that comes up while the guest is paused must see it.
	found, err := h.New(t).Recover(within(t, h.LaunchLimit), m, g.Handle())
	if err != nil {
		t.Fatalf("recover paused guest: %v", err)
	}
	p = found.(engine.Pauser)
	want(true)
	for range 2 {
		if err := p.Resume(within(t, h.StopLimit)); err != nil {
			t.Fatalf("resume: %v", err)
		}
		want(false)
	}
	if !open(g) {
		t.Error("the guest ended")
	}
	if err := p.Pause(within(t, h.StopLimit)); err != nil {
		t.Fatalf("pause: %v", err)
	}
	if err := g.Stop(within(t, h.StopLimit), engine.Kill); err != nil {
		t.Fatalf("kill paused guest: %v", err)
	}
	h.ended(t, g)
	h.release(t, m, g)
}
