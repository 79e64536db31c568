package agent

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine/fake"
	"github.com/croftproject/croft/internal/state"
	"github.com/croftproject/croft/internal/store"
)

func asked(s api.PowerState) func(*state.Server) {
	return func(r *state.Server) { r.Spec.State = s }
}

func deleted(r *state.Server) { r.Intent.Delete, r.Intent.Force = time.Now(), true }

func TestLife(t *testing.T) {
	h := newHost(t)
	h.agent()
	h.server("a", nil)
	h.phase("a", api.PhaseRunning)
	h.server("a", asked(api.StatePaused))
	h.phase("a", api.PhasePaused)
	h.server("a", asked(api.StateRunning))
	h.phase("a", api.PhaseRunning)
	h.server("a", asked(api.StateStopped))
	h.phase("a", api.PhaseStopped)
	h.mu.Lock()
	if open := h.volumes["a"]; open || len(h.groups) > 0 || len(h.ports) > 0 {
		t.Errorf("a stopped server holds: volume open %v, groups %v, ports %v", open, h.groups, h.ports)
	}
	h.mu.Unlock()
	h.server("a", nil)
	h.phase("a", api.PhaseRunning)
	h.server("a", deleted)
	h.gone("a")
	h.clean()
}

// What is due when the agent ends is written: events are told once.
func TestLastReport(t *testing.T) {
	h := newHost(t)
	a, stop := h.agent()
	h.server("a", nil)
	h.phase("a", api.PhaseRunning)
	a.event(&state.Server{Meta: api.Meta{ID: "a", Name: "a", Tenant: "t"}}, "Last", "words", false)
	stop()
	records, _, err := h.store.List(t.Context(), state.Events)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(records, func(r store.Record) bool { return bytes.Contains(r.Value, []byte(`"reason":"Last"`)) }) {
		t.Errorf("of %d events none is the last", len(records))
	}
}

// An engine that takes more than it did when the server was admitted is promised that first, or waits.
func TestMoreThanPromised(t *testing.T) {
	h := newHost(t)
	h.overhead, h.noRoom = 8*api.MiB, errors.New("no room")
	h.agent()
	h.server("a", func(r *state.Server) { r.Overhead = 4 * api.MiB })
	h.waitFor("a", "waiting for room", func(s *state.Status) bool { return s.Phase == api.PhaseBackoff })
	if r := h.guests.Running(); len(r) > 0 {
		t.Errorf("it runs: %v", r)
	}
	h.mu.Lock()
	h.noRoom = nil
	h.mu.Unlock()
	h.phase("a", api.PhaseRunning)
	h.server("b", func(r *state.Server) { r.Overhead = 8 * api.MiB })
	before := h.readmissions()
	h.phase("b", api.PhaseRunning)
	if n := h.readmissions(); n != before {
		t.Error("what was promised enough was promised anew")
	}
}

func TestRestartIsCarriedOutOnce(t *testing.T) {
	h := newHost(t)
	_, stop := h.agent()
	h.server("a", nil)
	first := h.phase("a", api.PhaseRunning)
	again := func(r *state.Server) { r.Intent.Restart = 1 }
	h.server("a", again)
	second := h.waitFor("a", "restarted", func(s *state.Status) bool { return s.Phase == api.PhaseRunning && s.Restarted == 1 })
	if !second.Started.After(first.Started) {
		t.Errorf("started at %v, after a restart at %v", first.Started, second.Started)
	}
	stop()
	h.agent()
	h.server("a", func(r *state.Server) { again(r); r.Meta.Labels = map[string]string{"seen": "yes"} })
	third := h.phase("a", api.PhaseRunning)
	if !third.Started.Equal(second.Started) {
		t.Error("the daemon's restart carried the restart out again")
	}
}

func TestEndsByThemselves(t *testing.T) {
	h := newHost(t)
	h.agent()
	h.server("off", func(r *state.Server) { r.Meta.Name = "off" })
	h.phase("off", api.PhaseRunning)
	h.guests.End("off", 0, "poweroff")
	st := h.phase("off", api.PhaseStopped)
	if st.Exit == nil || st.Exit.Reason != "poweroff" {
		t.Errorf("exit %+v", st.Exit)
	}
	// A start lifts the hold.
	h.server("off", func(r *state.Server) { r.Intent.Start = 1 })
	h.phase("off", api.PhaseRunning)

	h.server("crash", nil)
	h.phase("crash", api.PhaseRunning)
	h.guests.End("crash", 1, "exited")
	h.waitFor("crash", "backing off", func(s *state.Status) bool { return s.Phase == api.PhaseBackoff && !s.NextStart.IsZero() })
	h.waitFor("crash", "running again", func(s *state.Status) bool { return s.Phase == api.PhaseRunning && s.Restarts == 1 })

	h.server("reboot", func(r *state.Server) { r.Spec.Restart.Policy = api.RestartNever })
	first := h.phase("reboot", api.PhaseRunning)
	h.guests.End("reboot", 0, exitReboot)
	h.waitFor("reboot", "running again", func(s *state.Status) bool {
		return s.Phase == api.PhaseRunning && s.Started.After(first.Started)
	})
}

// Each step of a start, a stop and a delete fails once; the daemon is ended at each of them, too. In the end the host
// has what was asked for, or nothing.
func TestEveryStepFailsOnce(t *testing.T) {
	startSteps := []string{"prepare", "root", "ports", "cgroup", "launch"}
	stopSteps := []string{"shutdown", "release", "detach ports", "close volume", "remove cgroup"}
	deleteSteps := append(slices.Clone(stopSteps), "clean up", "delete volume", "finish deletion")
	for _, crash := range []bool{false, true} {
		kind := "fails"
		if crash {
			kind = "kills the daemon"
		}
		for _, step := range startSteps {
			t.Run("start/"+step+" "+kind, func(t *testing.T) {
				t.Parallel()
				h := newHost(t)
				h.through(step, crash, func() { h.server("a", nil) })
				h.phase("a", api.PhaseRunning)
				h.server("a", deleted)
				h.gone("a")
				h.clean()
			})
		}
		for _, step := range stopSteps {
			t.Run("stop/"+step+" "+kind, func(t *testing.T) {
				t.Parallel()
				h := newHost(t)
				h.through(step, crash, func() {
					h.server("a", nil)
					h.phase("a", api.PhaseRunning)
					h.server("a", asked(api.StateStopped))
				})
				h.phase("a", api.PhaseStopped)
				h.server("a", deleted)
				h.gone("a")
				h.clean()
			})
		}
		for _, step := range deleteSteps {
			t.Run("delete/"+step+" "+kind, func(t *testing.T) {
				t.Parallel()
				h := newHost(t)
				h.through(step, crash, func() {
					h.server("a", nil)
					h.phase("a", api.PhaseRunning)
					h.server("a", deleted)
				})
				h.gone("a")
				h.clean()
			})
		}
	}
}

// through runs an agent through act, with one step failing once; with crash the agent ends there, and another takes over.
func (h *host) through(step string, crash bool, act func()) {
	h.t.Helper()
	hit := make(chan struct{})
	once := sync.OnceFunc(func() { close(hit) })
	failed := false
	var mu sync.Mutex
	dead := make(chan struct{})
	h.setFault(func(_, s string) error {
		mu.Lock()
		defer mu.Unlock()
		if s != step || failed {
			return nil
		}
		failed = true
		once()
		if crash {
			mu.Unlock()
			<-dead
			mu.Lock()
		}
		return errors.New("failed for a test")
	})
	_, stop := h.agent()
	act()
	select {
	case <-hit:
	case <-time.After(20 * time.Second):
		h.t.Fatalf("step %q was never done", step)
	}
	if crash {
		ended := make(chan struct{})
		go func() { stop(); close(ended) }()
		close(dead)
		<-ended
		h.agent()
	}
}

func TestAdoptsWhatRuns(t *testing.T) {
	h := newHost(t)
	_, stop := h.agent()
	h.server("a", nil)
	h.server("b", nil)
	first := h.phase("a", api.PhaseRunning)
	h.phase("b", api.PhaseRunning)
	stop()
	h.guests.End("b", 1, "exited") // ends while nobody watches
	h.agent()
	h.waitFor("b", "running again", func(s *state.Status) bool { return s.Phase == api.PhaseRunning && s.Restarts == 1 })
	if st := h.phase("a", api.PhaseRunning); !st.Started.Equal(first.Started) {
		t.Error("an adopted guest was started anew")
	}
	h.server("a", deleted)
	h.server("b", deleted)
	h.gone("a")
	h.gone("b")
	h.clean()
}

// A store that lost its records, or is the wrong one, costs no guest and no volume. What was being deleted is deleted.
func TestWithoutARecordNothingIsDestroyed(t *testing.T) {
	h := newHost(t)
	_, stop := h.agent()
	h.server("kept", nil)
	h.server("damaged", nil)
	h.server("going", nil)
	for _, id := range []string{"kept", "damaged", "going"} {
		h.phase(id, api.PhaseRunning)
	}
	reached, hold := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(reached) })
	h.setFault(func(id, step string) error {
		if id == "going" && step == "delete volume" {
			once()
			<-hold
			return errors.New("failed for a test")
		}
		return nil
	})
	h.server("going", deleted)
	<-reached
	close(hold)
	stop()
	h.setFault(nil)
	for _, id := range []string{"kept", "going"} {
		if err := h.Gone(t.Context(), id); err != nil { // its record is lost
			t.Fatal(err)
		}
	}
	h.write(state.Servers+"damaged", 7)
	h.agent()
	h.server("new", nil)
	h.phase("new", api.PhaseRunning)
	h.eventually("the volume of what was being deleted is gone", func() bool { _, there := h.volumes["going"]; return !there })
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range []string{"kept", "damaged"} {
		if _, there := h.volumes[id]; !there || !slices.Contains(h.guests.Running(), id) {
			t.Errorf("%s was destroyed: volume %v, running %v", id, there, h.guests.Running())
		}
	}
}

func TestHostReboot(t *testing.T) {
	h := newHost(t)
	_, stop := h.agent()
	h.server("last", nil)
	h.server("never", func(r *state.Server) { r.Spec.Autostart.Policy = api.AutostartNever })
	h.server("always", func(r *state.Server) { r.Spec.Autostart = api.Autostart{Policy: api.AutostartAlways, Order: 1} })
	h.server("off", func(r *state.Server) {
		r.Spec.State = api.StateStopped
		r.Spec.Autostart = api.Autostart{Policy: api.AutostartAlways, Order: 2}
	})
	h.phase("last", api.PhaseRunning)
	h.phase("never", api.PhaseRunning)
	h.phase("always", api.PhaseRunning)
	h.phase("off", api.PhaseStopped)
	stop()
	h.guests = fake.NewHost()
	h.boot = "boot-2"
	h.mu.Lock()
	h.groups, h.ports = nil, nil
	h.mu.Unlock()
	h.reset()
	h.agent()
	h.waitFor("last", "running after the reboot", func(s *state.Status) bool { return s.Phase == api.PhaseRunning && s.BootID == "boot-2" })
	h.waitFor("never", "stopped after the reboot", func(s *state.Status) bool { return s.Phase == api.PhaseStopped && s.BootID == "boot-2" })
	h.waitFor("always", "running after the reboot", func(s *state.Status) bool { return s.Phase == api.PhaseRunning && s.BootID == "boot-2" })
	h.waitFor("off", "running after the reboot", func(s *state.Status) bool { return s.Phase == api.PhaseRunning && s.BootID == "boot-2" })
	h.server("never", func(r *state.Server) { r.Spec.Autostart.Policy = api.AutostartNever; r.Intent.Start = 1 })
	h.phase("never", api.PhaseRunning)
}

// A decision about autostart that fails is made later, by this daemon or the next of the same boot, and only once.
func TestAutostartIsDecidedUntilItIs(t *testing.T) {
	h := newHost(t)
	_, stop := h.agent()
	always := func(r *state.Server) {
		r.Spec.State = api.StateStopped
		r.Spec.Autostart = api.Autostart{Policy: api.AutostartAlways}
	}
	for _, id := range []string{"a", "b"} {
		h.server(id, always)
		h.phase(id, api.PhaseStopped)
	}
	boot := func() string {
		b, err := os.ReadFile(filepath.Join(h.dir, bootFile))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	reboot := func(id string, fails int) {
		stop()
		h.guests, h.boot = fake.NewHost(), id
		h.reset()
		h.mu.Lock()
		h.unheard = fails
		h.mu.Unlock()
		_, stop = h.agent()
	}
	up := func(s *state.Status) bool { return s.Phase == api.PhaseRunning && s.BootID == h.boot }
	reboot("boot-2", 4)
	for _, id := range []string{"a", "b"} {
		h.waitFor(id, "running after the reboot", up)
	}
	if got := boot(); got != "boot-2" {
		t.Errorf("all is decided, and the boot that is kept is %q", got)
	}
	for _, id := range []string{"a", "b"} {
		h.server(id, always)
		h.phase(id, api.PhaseStopped)
	}
	reboot("boot-3", 1<<30)
	if got := boot(); got != "boot-2" {
		t.Errorf("nothing is decided, and the boot that is kept is %q", got)
	}
	reboot("boot-3", 0) // the next daemon of the boot
	for _, id := range []string{"a", "b"} {
		h.waitFor(id, "running after the reboot", up)
	}
	h.server("a", always)
	h.phase("a", api.PhaseStopped)
	if err := os.WriteFile(filepath.Join(h.dir, bootFile), []byte("boot-2"), 0o600); err != nil { // another was not decided about
		t.Fatal(err)
	}
	stop()
	h.agent()
	if rec, _, err := store.Get[state.Server](t.Context(), h.store, state.Servers+"a"); err != nil || rec.Spec.State != api.StateStopped {
		t.Errorf("what was stopped since the reboot is started again: %v, %v", rec.Spec.State, err)
	}
}

func TestBadImageIsNotTriedAgain(t *testing.T) {
	h := newHost(t)
	h.agent()
	h.server("a", func(r *state.Server) { r.Digest = "bad" })
	st := h.phase("a", api.PhaseFailed)
	if st.Message == "" {
		t.Error("a failed server does not say why")
	}
	h.server("a", func(r *state.Server) { r.Digest = "bad"; deleted(r) })
	h.gone("a")
	h.clean()
}

// What the host remembers can't be written on a full disk; deletions go on all the same, as they make room.
func TestDeletionOnAFullDisk(t *testing.T) {
	for name, change := range map[string]func(*state.Server){"running": nil, "stopped": asked(api.StateStopped)} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			if err := unix.Mount("tmpfs", h.dir, "tmpfs", 0, "size=1m"); err != nil {
				t.Skip("mount a tmpfs:", err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(h.dir, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			_, stop := h.agent()
			h.server("a", nil)
			h.phase("a", api.PhaseRunning)
			if change != nil {
				h.server("a", change)
				h.phase("a", api.PhaseStopped)
			}
			err := os.WriteFile(filepath.Join(h.dir, "full"), make([]byte, 2<<20), 0o600)
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("fill the disk: %v", err)
			}
			stop() // the next daemon finds it so
			h.agent()
			h.server("a", func(r *state.Server) {
				if change != nil {
					change(r)
				}
				deleted(r)
			})
			h.gone("a")
			h.clean()
		})
	}
}

func TestGracefulStopIsGivenItsTime(t *testing.T) {
	h := newHost(t)
	h.agent()
	h.guests.Hook(fake.Hooks{Deaf: func(string) bool { return true }})
	h.server("a", nil)
	h.phase("a", api.PhaseRunning)
	h.server("a", func(r *state.Server) {
		r.Spec.State = api.StateStopped
		r.Spec.StopTimeout = api.Duration(50 * time.Millisecond)
	})
	h.phase("a", api.PhaseStopping)
	h.phase("a", api.PhaseStopped)
}

// What the host has of a server that the store places on another host is not touched: the host may have come up under a
// wrong identity.
func TestServersOfOtherHostsAreLeftAlone(t *testing.T) {
	h := newHost(t)
	_, stop := h.agent()
	h.server("a", nil)
	h.phase("a", api.PhaseRunning)
	stop()
	h.server("a", func(r *state.Server) { r.HostID = "another" })
	cleaned := false
	h.guests.Hook(fake.Hooks{Clean: func(string) error { cleaned = true; return nil }})
	h.agent()
	h.server("b", nil)
	h.phase("b", api.PhaseRunning)
	if cleaned || !slices.Contains(h.guests.Running(), "a") {
		t.Error("another host's server was removed")
	}
}

// What was said of one stop does not count for the next.
func TestAnOldStopIsForgotten(t *testing.T) {
	h := newHost(t)
	h.agent()
	var mu sync.Mutex
	deaf := true
	h.guests.Hook(fake.Hooks{Deaf: func(string) bool { mu.Lock(); defer mu.Unlock(); return deaf }})
	h.server("a", nil)
	h.phase("a", api.PhaseRunning)
	h.server("a", asked(api.StateStopped)) // ignored by the guest, and taken back
	h.phase("a", api.PhaseStopping)
	h.server("a", asked(api.StateRunning))
	h.phase("a", api.PhaseRunning)
	h.guests.End("a", 1, "exited") // by itself: the restart policy counts
	h.waitFor("a", "running again", func(s *state.Status) bool { return s.Phase == api.PhaseRunning && s.Restarts == 1 })
}

// A resume counts as a start where the guest has ended meanwhile, and leaves one that waits as it is.
func TestResume(t *testing.T) {
	h := newHost(t)
	h.agent()
	resumed := func(r *state.Server) { r.Intent.Start = 1 }
	for _, id := range []string{"waits", "ended"} {
		h.server(id, nil)
		h.phase(id, api.PhaseRunning)
		h.server(id, asked(api.StatePaused))
	}
	before := h.phase("waits", api.PhasePaused)
	h.server("waits", resumed)
	if now := h.phase("waits", api.PhaseRunning); !now.Started.Equal(before.Started) || now.Exit != nil {
		t.Errorf("resumed, it was started again: %+v", now)
	}
	h.phase("ended", api.PhasePaused)
	h.guests.End("ended", 0, "poweroff")
	h.phase("ended", api.PhaseStopped)
	h.server("ended", resumed)
	h.phase("ended", api.PhaseRunning)
}

// A guest that shuts down does not hear that it was asked to start again: it is started once it has ended, whatever the
// restart policy.
func TestAStartAfterAStopIsKept(t *testing.T) {
	for _, policy := range []api.RestartKind{api.RestartNever, api.RestartOnFailure} {
		t.Run(string(policy), func(t *testing.T) {
			h := newHost(t)
			h.agent()
			h.guests.Hook(fake.Hooks{Deaf: func(string) bool { return true }}) // it takes its time
			first := func(r *state.Server) { r.Spec.Restart.Policy = policy }
			h.server("a", first)
			before := h.phase("a", api.PhaseRunning)
			h.server("a", func(r *state.Server) { first(r); r.Spec.State = api.StateStopped })
			h.phase("a", api.PhaseStopping)
			h.server("a", func(r *state.Server) { first(r); r.Intent.Start = 1 })
			h.phase("a", api.PhaseRunning)
			h.guests.End("a", 0, "poweroff")
			h.waitFor("a", "running again", func(s *state.Status) bool {
				return s.Phase == api.PhaseRunning && s.Started.After(before.Started)
			})
		})
	}
}

func TestAStopEndsTheBackOff(t *testing.T) {
	h := newHost(t)
	h.agent()
	h.guests.Hook(fake.Hooks{Launch: func(string) error { return errors.New("no") }})
	h.server("a", nil)
	h.phase("a", api.PhaseBackoff)
	h.server("a", asked(api.StateStopped))
	h.phase("a", api.PhaseStopped)
}
