package agent

import (
	"time"

	"github.com/croftproject/croft/api"
)

// Restarts are delayed by doubling spans, and the count of restarts in a row is cleared by a long run.
const (
	firstRestart = time.Second
	lastRestart  = 5 * time.Minute
	longRun      = 10 * time.Minute
	shortRun     = 10 * time.Second // a guest that reboots sooner than this is slowed down
)

// verdict is what follows from the end of a guest.
type verdict struct {
	Restart bool
	Delay   time.Duration
	InRow   int // restarts in a row, with this one
}

// afterExit decides what follows when a guest ended by itself after running for ran, having been restarted inRow times.
// A guest that reboots has not ended: afterReboot.
func afterExit(p api.RestartPolicy, e api.Exit, ran time.Duration, inRow int) verdict {
	if e.Reason == exitReboot {
		return afterReboot(ran, inRow)
	}
	if ran >= longRun {
		inRow = 0
	}
	failed := e.Code != 0 || e.Reason == exitLost || e.Reason == exitOOM
	switch p.Policy {
	case api.RestartAlways:
	case api.RestartOnFailure:
		if !failed {
			return verdict{}
		}
	default:
		return verdict{}
	}
	if p.MaxRetries > 0 && inRow >= p.MaxRetries {
		return verdict{InRow: inRow}
	}
	return verdict{Restart: true, Delay: backoff(inRow), InRow: inRow + 1}
}

// afterReboot starts a guest again at once, whatever the policy. One that does nothing but reboot is slowed down.
func afterReboot(ran time.Duration, inRow int) verdict {
	switch {
	case ran >= shortRun:
		return verdict{Restart: true}
	case inRow == 0:
		return verdict{Restart: true, InRow: 1}
	}
	return verdict{Restart: true, Delay: backoff(inRow - 1), InRow: inRow + 1}
}

// backoff is the delay before the restart that follows n others.
func backoff(n int) time.Duration {
	return min(firstRestart<<min(n, 16), lastRestart)
}

// Reasons of an exit, as engines give them.
const (
	exitAsked  = "asked"
	exitReboot = "reboot"
	exitLost   = "lost"
	exitOOM    = "oom"
)
