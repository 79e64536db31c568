package qemu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/keeper"
)

func TestExitTellsHowTheGuestEnded(t *testing.T) {
	at := time.Unix(1e9, 0)
	status := func(code, signal int) keeper.Status { return keeper.Status{Ended: at, Code: code, Signal: signal} }
	guest, host := &shutdown{Guest: true, Reason: "guest-shutdown"}, &shutdown{Reason: "host-qmp-quit"}
	for name, test := range map[string]struct {
		ending ending
		code   int
		reason string
	}{
		"guest's power off":        {ending{status: status(0, 0), known: true, shutdown: guest}, 0, "poweroff"},
		"power off, events lost":   {ending{status: status(0, 0), known: true}, 0, "poweroff"},
		"asked, graceful":          {ending{status: status(0, 0), known: true, asked: true, shutdown: guest}, 0, "asked"},
		"asked, killed":            {ending{status: status(137, 9), known: true, asked: true}, 137, "asked"},
		"killed by a stranger":     {ending{status: status(137, 9), known: true}, 137, "signal"},
		"crashed":                  {ending{status: status(139, 11), known: true, shutdown: guest}, 139, "signal"},
		"terminated in good order": {ending{status: status(0, 0), known: true, stderr: "qemu: terminating on signal 15 from pid 1"}, 143, "signal"},
		"gave up":                  {ending{status: status(1, 0), known: true, stderr: "qemu: no such file"}, 1, "exited"},
		"quit by somebody":         {ending{status: status(0, 0), known: true, shutdown: host}, 0, "exited"},
		"out of memory":            {ending{status: status(137, 9), known: true, oom: true}, 137, "oom"},
		"the keeper knows nothing": {ending{}, -1, "lost"},
		"the keeper was away":      {ending{status: status(-1, 0), known: true}, -1, "lost"},
	} {
		got := test.ending.exit()
		want := api.Exit{Code: test.code, Reason: test.reason, Time: test.ending.status.Ended}
		if got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}

// The end of what QEMU complained of is found wherever the keeper's log was just turned over.
func TestComplaints(t *testing.T) {
	long := strings.Repeat("x", 2*stderrLimit)
	for name, test := range map[string]struct{ older, newer, want string }{
		"nothing":           {"", "", ""},
		"one file":          {"", "first\nlast\n", "first\nlast"},
		"just turned over":  {"first\n", "last\n", "first\nlast"},
		"more than is read": {"first\n", long + "last\n", long[:stderrLimit-5] + "last"},
		"most of it older":  {long + "\n", "last\n", long[:stderrLimit-6] + "\nlast"},
	} {
		p := paths{stderr: filepath.Join(t.TempDir(), "stderr")}
		for path, text := range map[string]string{p.stderr + ".1": test.older, p.stderr: test.newer} {
			if text == "" {
				continue
			}
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := p.complaints(); got != test.want {
			t.Errorf("%s: %d bytes that end with %q", name, len(got), got[max(0, len(got)-20):])
		}
	}
}
