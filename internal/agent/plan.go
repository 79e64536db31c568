package agent

import (
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/state"
)

// want is what is to become of a server on this host now.
type want int

const (
	wantStopped want = iota
	wantRunning
	wantPaused
	wantDeleted
)

// guestState is what there is of its guest.
type guestState int

const (
	guestNone guestState = iota
	guestRunning
	guestPaused
	guestEnded
)

// step is one act on the host. Each can be done again, and is, when the host was interrupted in it.
type step int

const (
	stepPrepare  step = iota // directories, an id range
	stepRoot                 // the volume: made, opened, seeded
	stepPorts                // ports in their networks
	stepCgroup               // the server's cgroup with its limits
	stepLaunch               // the guest
	stepPause                //
	stepResume               //
	stepShutdown             // ask the guest to end; end it when its time is over
	stepRelease              // what an ended guest held
	stepUnport               // ports away
	stepUncgroup             // cgroup away
	stepClose                // volume closed
	stepClean                // whatever the engine may have left
	stepDelete               // volume, directories
	stepGone                 // tell the control plane
)

var stepNames = [...]string{"prepare", "root", "ports", "cgroup", "launch", "pause", "resume", "shutdown", "release",
	"detach ports", "remove cgroup", "close volume", "clean up", "delete volume", "finish deletion"}

func (s step) String() string { return stepNames[s] }

// stages are steps in order; the steps of one stage do not depend on each other and are done at the same time.
type stages [][]step

// plan tells the way from what there is to what is wanted. torn tells that nothing but the volume is left of the last
// run, recorded that the control plane knows the server. The plan ends early where the guest must do something first
// (end, after a shutdown): the next one goes on from there.
//
// A guest that ended is released, which keeps its console's log and its firmware's variables. Engines clean up, which
// removes those too, where it is not known what there is, and before a server is deleted.
func plan(w want, g guestState, torn, recorded bool) stages {
	away := []step{stepUnport, stepClose, stepUncgroup}
	var parts stages
	switch {
	case g == guestEnded && w != wantDeleted:
		parts = stages{{stepRelease}, away}
	case g == guestEnded:
		parts = stages{{stepRelease}, {stepClean}, away}
	case !torn:
		parts = stages{{stepClean}, away}
	}
	switch w {
	case wantRunning, wantPaused:
		switch {
		case g == guestEnded:
			return parts
		case g == guestNone:
			return stages{{stepPrepare}, {stepPorts, stepRoot, stepCgroup}, {stepLaunch}}
		case g == guestRunning && w == wantPaused:
			return stages{{stepPause}}
		case g == guestPaused && w == wantRunning:
			return stages{{stepResume}}
		}
		return nil
	case wantStopped, wantDeleted:
		if g == guestRunning || g == guestPaused {
			return stages{{stepShutdown}}
		}
		if w == wantDeleted {
			parts = append(parts, []step{stepDelete})
			if recorded {
				parts = append(parts, []step{stepGone})
			}
		}
		return parts
	}
	return nil
}

// acknowledge takes note of what was asked since: a start lifts a hold, a restart is done once there is no guest. It
// tells whether that changed anything.
func acknowledge(rec *state.Server, l *local, g guestState) (changed bool) {
	if rec == nil {
		return false
	}
	if rec.Intent.Start > l.StartSeen {
		l.StartSeen = rec.Intent.Start
		l.lift()
		changed = true
	}
	if rec.Spec.State == api.StateStopped && g == guestNone && (!l.NextStart.IsZero() || l.Failure != "" || l.Held) {
		l.lift() // what it would have done next is moot
		changed = true
	}
	if rec.Intent.Restart > l.Restarted && g == guestNone {
		l.Restarted = rec.Intent.Restart
		l.lift()
		changed = true
	}
	return changed
}

// decide tells what is wanted now, and after how long to decide again (zero: when something changes).
func decide(rec *state.Server, l *local, g guestState, now time.Time) (want, time.Duration) {
	if rec == nil || !rec.Intent.Delete.IsZero() {
		return wantDeleted, 0
	}
	alive := g == guestRunning || g == guestPaused
	switch {
	case rec.Intent.Restart > l.Restarted && alive:
		return wantStopped, 0
	case rec.Spec.State == api.StateStopped:
		return wantStopped, 0
	case !alive && l.Held:
		return wantStopped, 0
	case !alive && l.NextStart.After(now):
		return wantStopped, l.NextStart.Sub(now)
	case rec.Spec.State == api.StatePaused:
		return wantPaused, 0
	}
	return wantRunning, 0
}

// agree tells whether a guest that lives is in the state that is wanted.
func agree(w want, g guestState) bool {
	return w == wantRunning && g == guestRunning || w == wantPaused && g == guestPaused
}

// phase names where the server stands. torn tells that nothing but the volume is left of its last run.
func phase(w want, l *local, g guestState, torn bool) api.Phase {
	switch {
	case w == wantDeleted:
		return api.PhaseDeleting
	case w == wantStopped && !torn:
		return api.PhaseStopping
	case g == guestPaused:
		return api.PhasePaused
	case g == guestRunning:
		return api.PhaseRunning
	case w == wantStopped && l.Held && l.Failure != "":
		return api.PhaseFailed
	case w == wantStopped && !l.NextStart.IsZero():
		return api.PhaseBackoff
	case w == wantStopped:
		return api.PhaseStopped
	}
	return api.PhaseStarting
}
