package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/keeper"
)

// undoTime is how long cleaning up may take after what it undoes was cancelled.
const undoTime = 30 * time.Second

// startLimit bounds the runtime's work, of some 50 ms. It goes through the guest's files, which the guest can make hang
// (a FIFO that nobody writes to, in a directory that is granted). Tests shorten it.
var startLimit = time.Minute

// Launch gathers the facts, writes the bundle and has the keeper run the runtime, once. See engine.Engine.
func (e *Engine) Launch(ctx context.Context, m *engine.Machine) (engine.Guest, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	status, err := e.keeper.Get(ctx, m.ID)
	switch {
	case err == nil && status.Ended.IsZero():
		if saved, err := loadSaved(m); err == nil {
			return e.guest(m, saved, status), nil
		}
		fallthrough // it runs, but was launched by something else
	case err == nil, errors.Is(err, keeper.ErrUnknown) && e.leftovers(m):
		if err := e.clear(ctx, m); err != nil {
			return nil, fmt.Errorf("clear what an earlier launch left: %w", err)
		}
	case !errors.Is(err, keeper.ErrUnknown):
		return nil, fmt.Errorf("ask the keeper for %s: %w", m.ID, err)
	}
	g, err := e.launch(ctx, m)
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		return nil, errors.Join(err, e.clear(undo, m))
	}
	return g, nil
}

// leftovers tells whether an earlier launch left something that this one would stumble over.
func (e *Engine) leftovers(m *engine.Machine) bool {
	_, err := os.Lstat(string(bundleOf(m)))
	return err == nil || e.runtime.known(m.ID)
}

// launch does it on a clean host. Its caller undoes it where it fails.
func (e *Engine) launch(ctx context.Context, m *engine.Machine) (*Guest, error) {
	binary, err := e.runtime.path()
	if err != nil {
		return nil, err
	}
	b := bundleOf(m)
	if err := os.MkdirAll(string(b), 0o700); err != nil {
		return nil, fmt.Errorf("make bundle: %w", err)
	}
	host, release, err := gather(m, e.groups)
	defer release()
	if err != nil {
		return nil, err
	}
	saved := saved{ID: m.ID, PowerOff: host.PowerOff, System: m.App == nil}
	if err := b.write(Config(m, host), saved); err != nil {
		return nil, err
	}
	if err := e.groups.delegate(m); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	starting, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	status, err := e.keeper.Start(starting, e.command(m, binary))
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return nil, fmt.Errorf("start guest: the runtime has not started it within %v", startLimit)
	} else if err != nil {
		return nil, explain(m, b, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := checkIDs(status.PID, m.IDs); err != nil && host.UserNS != "" {
		return nil, err
	}
	if saved.System {
		if err := freeConsole(ctx, status.PID, func(pid int) bool { return e.groups.holds(guestGroup(m), pid) }); err != nil {
			return nil, err
		}
	}
	return e.guest(m, saved, status), nil
}

// command is the one invocation of the runtime.
func (e *Engine) command(m *engine.Machine, binary string) keeper.Spec {
	b := bundleOf(m)
	s := keeper.Spec{
		ID:       m.ID,
		Env:      []string{"PATH=" + defaultPath},
		Dir:      string(b),
		Log:      engine.ConsoleLog(m),
		LogLimit: engine.ConsoleLogLimit,
		Ready:    m.Boot.Ready,
		PIDFile:  b.file("pid"),
	}
	s.Args = []string{
		binary, "--root", e.runtime.root, "--log", b.file("log"), "--log-format", "json",
		"run", "--detach", "--bundle", string(b), "--pid-file", s.PIDFile,
	}
	if m.App == nil {
		s.ConsoleSocket = b.file("tty")
		s.Args = append(s.Args, "--console-socket", s.ConsoleSocket)
	}
	s.Args = append(s.Args, m.ID)
	return s
}

// saved is what is remembered of a launch: in the handle, and in the bundle.
type saved struct {
	ID       string   `json:"id"`
	PowerOff powerOff `json:"powerOff"`
	System   bool     `json:"system"`
}

const handleVersion = 1

func (s saved) encode() []byte {
	data, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings and numbers always encode
	}
	return data
}

func decodeSaved(data []byte, m *engine.Machine) (saved, error) {
	var s saved
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&s); err != nil {
		return s, err
	}
	if s.ID != m.ID || s.PowerOff <= 0 {
		return s, fmt.Errorf("speaks of %q", s.ID)
	}
	return s, nil
}

func loadSaved(m *engine.Machine) (saved, error) {
	data, err := os.ReadFile(bundleOf(m).file("saved.json"))
	if err != nil {
		return saved{}, err
	}
	return decodeSaved(data, m)
}

// write writes what the runtime reads, and what a second launch reads.
func (b bundle) write(config any, s saved) error {
	data, err := json.Marshal(config)
	if err != nil {
		return fmt.Errorf("encode the runtime's configuration: %w", err)
	}
	if err := os.WriteFile(b.file("config.json"), data, 0o600); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	if err := os.WriteFile(b.file("saved.json"), s.encode(), 0o600); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}

// explain adds what the runtime said, and the reason behind its most common complaint.
func explain(m *engine.Machine, b bundle, err error) error {
	log, _ := os.ReadFile(b.file("log"))
	said := lastMessage(log)
	if said == "" {
		return fmt.Errorf("start guest: %w", err)
	}
	if strings.Contains(said, "permission denied") {
		if dir := unsearchable(m.Root.Path, m.IDs.Base); dir != "" {
			return fmt.Errorf("start guest: directory %s can't be entered by the guest's user: give it mode o+x (%s)", dir, said)
		}
	}
	return fmt.Errorf("start guest: %s", said)
}

// unsearchable is the first directory on the way to path that neither other users can enter nor the user's own group;
// empty where there is none.
func unsearchable(path string, user uint32) string {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		var st unix.Stat_t
		err := unix.Stat(dir, &st)
		byGroup := st.Gid == user && st.Mode&0o010 != 0
		if err == nil && st.Mode&0o001 == 0 && !byGroup {
			return dir
		}
		if dir == filepath.Dir(dir) {
			return ""
		}
	}
}

// checkIDs makes sure that a guest that joined a user namespace got the server's ids and no others.
func checkIDs(pid int, ids engine.IDRange) error {
	for _, name := range []string{"uid_map", "gid_map"} {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			return nil // it has ended already
		}
		if err != nil {
			return fmt.Errorf("check the guest's ids: %w", err)
		}
		got, want := strings.Join(strings.Fields(string(data)), " "), fmt.Sprintf("0 %d %d", ids.Base, ids.Size)
		if got != want {
			return fmt.Errorf("the network namespace belongs to ids %q, the server's are %q", got, want)
		}
	}
	return nil
}

// Recover asks the keeper. See engine.Engine.
func (e *Engine) Recover(ctx context.Context, m *engine.Machine, h engine.Handle) (engine.Guest, error) {
	if h.Engine != e.Traits().Name || h.Version != handleVersion {
		return nil, fmt.Errorf("handle of engine %q, version %d: %w", h.Engine, h.Version, engine.ErrUnsupported)
	}
	saved, err := decodeSaved(h.Data, m)
	if err != nil {
		return nil, fmt.Errorf("handle of %s: %w", m.ID, err)
	}
	status, err := e.keeper.Get(ctx, m.ID)
	if errors.Is(err, keeper.ErrUnknown) {
		return nil, fmt.Errorf("%s: %w", m.ID, engine.ErrGone)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the keeper for %s: %w", m.ID, err)
	}
	return e.guest(m, saved, status), nil
}
