package agent

import (
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/state"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestPlan(t *testing.T) {
	start := stages{{stepPrepare}, {stepPorts, stepRoot, stepCgroup}, {stepLaunch}}
	parts := stages{{stepClean}, {stepUnport, stepClose, stepUncgroup}}
	after := stages{{stepRelease}, {stepUnport, stepClose, stepUncgroup}}
	deletion := stages{{stepDelete}, {stepGone}}
	for _, c := range []struct {
		name string
		w    want
		g    guestState
		want stages
	}{
		{"start", wantRunning, guestNone, start},
		{"runs", wantRunning, guestRunning, nil},
		{"resume", wantRunning, guestPaused, stages{{stepResume}}},
		{"ended, to run again", wantRunning, guestEnded, after},
		{"start, then pause", wantPaused, guestNone, start},
		{"pause", wantPaused, guestRunning, stages{{stepPause}}},
		{"is paused", wantPaused, guestPaused, nil},
		{"stop", wantStopped, guestRunning, stages{{stepShutdown}}},
		{"stop a paused one", wantStopped, guestPaused, stages{{stepShutdown}}},
		{"ended", wantStopped, guestEnded, after},
		{"is stopped", wantStopped, guestNone, parts},
		{"delete a running one", wantDeleted, guestRunning, stages{{stepShutdown}}},
		{"delete an ended one", wantDeleted, guestEnded, append(append(stages{{stepRelease}}, parts...), deletion...)},
		{"delete a stopped one", wantDeleted, guestNone, append(append(stages{}, parts...), deletion...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, plan(c.w, c.g, false, true)); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

// Of a server that holds nothing but its volume, nothing is taken down a second time.
func TestPlanOfWhatIsTorn(t *testing.T) {
	if p := plan(wantStopped, guestNone, true, true); p != nil {
		t.Errorf("stopped: %v", p)
	}
	if diff := cmp.Diff(stages{{stepDelete}, {stepGone}}, plan(wantDeleted, guestNone, true, true)); diff != "" {
		t.Errorf("deleted (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(stages{{stepDelete}}, plan(wantDeleted, guestNone, true, false)); diff != "" {
		t.Errorf("an orphan (-want +got):\n%s", diff)
	}
}

func TestDecide(t *testing.T) {
	now := time.Unix(1000, 0)
	asked := func(s api.PowerState, i state.Intent) *state.Server {
		return &state.Server{Spec: api.ServerSpec{State: s}, Intent: i}
	}
	for _, c := range []struct {
		name  string
		rec   *state.Server
		l     local
		g     guestState
		want  want
		again time.Duration
	}{
		{"no record: an orphan", nil, local{}, guestRunning, wantDeleted, 0},
		{"deletion", asked(api.StateRunning, state.Intent{Delete: now}), local{}, guestRunning, wantDeleted, 0},
		{"run", asked(api.StateRunning, state.Intent{}), local{}, guestNone, wantRunning, 0},
		{"pause", asked(api.StatePaused, state.Intent{}), local{}, guestRunning, wantPaused, 0},
		{"stop", asked(api.StateStopped, state.Intent{}), local{}, guestRunning, wantStopped, 0},
		{"held", asked(api.StateRunning, state.Intent{}), local{Held: true}, guestNone, wantStopped, 0},
		{"held, but runs", asked(api.StateRunning, state.Intent{}), local{Held: true}, guestRunning, wantRunning, 0},
		{"back-off", asked(api.StateRunning, state.Intent{}), local{NextStart: now.Add(time.Second)}, guestNone, wantStopped, time.Second},
		{"back-off over", asked(api.StateRunning, state.Intent{}), local{NextStart: now}, guestNone, wantRunning, 0},
		{"restart stops first", asked(api.StateRunning, state.Intent{Restart: 2}), local{Restarted: 1}, guestRunning, wantStopped, 0},
		{"restart done", asked(api.StateRunning, state.Intent{Restart: 2}), local{Restarted: 2}, guestRunning, wantRunning, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, again := decide(c.rec, &c.l, c.g, now)
			if w != c.want || again != c.again {
				t.Errorf("decide = %v, %v; want %v, %v", w, again, c.want, c.again)
			}
		})
	}
}

func TestAcknowledge(t *testing.T) {
	rec := &state.Server{Intent: state.Intent{Start: 2, Restart: 3}}
	l := local{StartSeen: 1, Restarted: 2, Held: true, Failure: "x", InRow: 4}
	acknowledge(rec, &l, guestRunning)
	if l.Held || l.StartSeen != 2 || l.InRow != 0 || l.Restarted != 2 {
		t.Errorf("after a start: %+v", l)
	}
	acknowledge(rec, &l, guestNone)
	if l.Restarted != 3 {
		t.Errorf("after a restart: %+v", l)
	}
}

func TestAfterExit(t *testing.T) {
	failed := api.Exit{Code: 1, Reason: "exited"}
	for _, c := range []struct {
		name  string
		p     api.RestartPolicy
		e     api.Exit
		ran   time.Duration
		inRow int
		want  verdict
	}{
		{"never", api.RestartPolicy{Policy: api.RestartNever}, failed, 0, 0, verdict{}},
		{"failure", api.RestartPolicy{Policy: api.RestartOnFailure}, failed, 0, 0, verdict{true, time.Second, 1}},
		{"third failure", api.RestartPolicy{Policy: api.RestartOnFailure}, failed, 0, 2, verdict{true, 4 * time.Second, 3}},
		{"many failures", api.RestartPolicy{Policy: api.RestartOnFailure}, failed, 0, 40, verdict{true, 5 * time.Minute, 41}},
		{"long run clears", api.RestartPolicy{Policy: api.RestartOnFailure}, failed, time.Hour, 9, verdict{true, time.Second, 1}},
		{"no more retries", api.RestartPolicy{Policy: api.RestartOnFailure, MaxRetries: 2}, failed, 0, 2, verdict{false, 0, 2}},
		{"power off", api.RestartPolicy{Policy: api.RestartOnFailure}, api.Exit{Reason: "poweroff"}, 0, 0, verdict{}},
		{"power off, always", api.RestartPolicy{Policy: api.RestartAlways}, api.Exit{Reason: "poweroff"}, 0, 0, verdict{true, time.Second, 1}},
		{"reboot", api.RestartPolicy{Policy: api.RestartNever}, api.Exit{Code: 129, Reason: exitReboot}, time.Minute, 3, verdict{true, 0, 0}},
		{"reboots again and again", api.RestartPolicy{Policy: api.RestartNever}, api.Exit{Code: 129, Reason: exitReboot}, time.Second, 2, verdict{true, 2 * time.Second, 3}},
		{"reboots soon", api.RestartPolicy{Policy: api.RestartNever}, api.Exit{Code: 129, Reason: exitReboot}, time.Second, 0, verdict{true, 0, 1}},
		{"lost", api.RestartPolicy{Policy: api.RestartOnFailure}, api.Exit{Reason: exitLost}, 0, 0, verdict{true, time.Second, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := afterExit(c.p, c.e, c.ran, c.inRow); got != c.want {
				t.Errorf("afterExit = %+v, want %+v", got, c.want)
			}
		})
	}
}

// Whatever the claims that admission accepts, each gets at least its entitlement when all want everything.
func TestDivideMeetsEntitlements(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cpus := rapid.IntRange(1, 64).Draw(t, "cpus")
		capacity := api.MilliCPU(cpus) * api.CPU1
		left := capacity
		var claims []claim
		for i := range rapid.IntRange(1, 20).Draw(t, "servers") {
			if left < 1 {
				break
			}
			e := api.MilliCPU(rapid.Int64Range(1, int64(left)).Draw(t, "entitlement"))
			left -= e
			claims = append(claims, claim{ID: string(rune('a' + i)), Entitlement: e, Weight: rapid.IntRange(0, 10000).Draw(t, "weight")})
		}
		portions := divide(numbered(cpus), capacity, claims)
		var sum int64
		for _, p := range portions {
			sum += p.Shares
		}
		for _, c := range claims {
			got := float64(portions[c.ID].Shares) / float64(sum) * float64(capacity)
			// Rounding of shares to thousandths may cost each one thousandth of a CPU.
			if got < float64(c.Entitlement)-1 {
				t.Fatalf("%s gets %.2f of its %d", c.ID, got, c.Entitlement)
			}
		}
	})
}

func numbered(n int) (cpus []int) {
	for i := range n {
		cpus = append(cpus, i)
	}
	return cpus
}

func TestDivideDedicated(t *testing.T) {
	got := divide([]int{0, 1, 2, 3}, 4000, []claim{{ID: "a", Entitlement: 2000, Dedicated: []int{1, 2}}, {ID: "b", Entitlement: 300}, {ID: "c", Entitlement: 100}})
	want := map[string]portion{
		"a": {Shares: 2000, CPUs: []int{1, 2}},
		"b": {Shares: 300, CPUs: []int{0, 3}},
		"c": {Shares: 100, CPUs: []int{0, 3}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("divide (-want +got):\n%s", diff)
	}
}
