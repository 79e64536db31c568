package qemu

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/keeper"
)

// ending is all that is known of how QEMU ended.
type ending struct {
	status   keeper.Status
	known    bool // the keeper could tell
	asked    bool // we asked for it
	shutdown *shutdown
	stderr   string // the end of what QEMU complained of
	oom      bool
}

// shutdown is QEMU's event SHUTDOWN (qapi/run-state.json).
type shutdown struct {
	Guest  bool   `json:"guest"`
	Reason string `json:"reason"` // "guest-shutdown", "host-signal", "host-qmp-quit", …
}

func decodeShutdown(data json.RawMessage) *shutdown {
	var s shutdown
	if json.Unmarshal(data, &s) != nil {
		return nil
	}
	return &s
}

// terminated is what QEMU writes when a signal made it end in good order, with exit code 0.
const terminated = "terminating on signal "

// exit judges an ending; purely.
func (e ending) exit() api.Exit {
	x := api.Exit{Code: e.status.Code, Time: e.status.Ended}
	var signal int
	if _, rest, ok := strings.Cut(e.stderr, terminated); ok {
		_, _ = fmt.Sscanf(rest, "%d", &signal)
	}
	switch {
	case !e.known || e.status.Code < 0:
		x.Reason, x.Code = "lost", -1
	case e.oom && e.status.Signal == int(unix.SIGKILL):
		x.Reason = "oom"
	case e.asked:
		x.Reason = "asked"
	case e.status.Signal != 0:
		x.Reason = "signal"
	case e.status.Code != 0:
		x.Reason = "exited"
	case signal != 0:
		x.Reason, x.Code = "signal", 128+signal
	case e.shutdown != nil && !e.shutdown.Guest:
		x.Reason = "exited"
	default:
		x.Reason = "poweroff"
	}
	return x
}

// complaints are the last of what QEMU complained of. The keeper moves what is older to a file beside it.
func (p paths) complaints() string {
	text := tail(p.stderr, stderrLimit)
	if missing := stderrLimit - len(text); missing > 0 {
		text = tail(p.stderr+".1", int64(missing)) + text
	}
	return strings.TrimSpace(text)
}

// tail is the end of a file, as text; empty where there is none.
func tail(path string, limit int64) string {
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return ""
	}
	text := make([]byte, min(info.Size(), limit))
	n, _ := file.ReadAt(text, info.Size()-int64(len(text)))
	return string(text[:n])
}

// stderrLimit is how much of QEMU's complaints is looked at, in bytes.
const stderrLimit = 4096
