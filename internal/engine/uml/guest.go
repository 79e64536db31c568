package uml

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/uml/mconsole"
)

// Guest is a UML guest.
type Guest struct {
	engine  *Engine
	m       engine.Machine
	pid     int
	started time.Time
	memory  int64 // bytes that it was started with
	done    <-chan struct{}
	console *mconsole.Client

	once sync.Once
	exit api.Exit
}

var (
	_ engine.Guest   = (*Guest)(nil)
	_ engine.Pauser  = (*Guest)(nil)
	_ engine.Resizer = (*Guest)(nil)
)

// Handle names the kernel's process.
func (g *Guest) Handle() engine.Handle {
	data, _ := json.Marshal(handleData{PID: g.pid, Memory: g.memory}) // numbers always marshal
	return engine.Handle{Engine: Name, Version: handleVersion, Data: data}
}

func (g *Guest) PID() int              { return g.pid }
func (g *Guest) Done() <-chan struct{} { return g.done }

func (g *Guest) running() bool {
	select {
	case <-g.done:
		return false
	default:
		return true
	}
}

// exitLimit bounds asking the keeper how a guest ended.
const exitLimit = 10 * time.Second

// Exit asks the keeper how the process ended, once.
func (g *Guest) Exit() api.Exit {
	g.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), exitLimit)
		defer cancel()
		status, err := g.engine.Keeper.Get(ctx, g.m.ID)
		if err != nil || status.PID != g.pid {
			g.exit = api.Exit{Code: -1, Reason: "lost", Time: time.Now()}
			return
		}
		g.exit = api.Exit{Code: status.Code, Reason: g.reason(status.Code, status.Signal), Time: status.Ended}
	})
	return g.exit
}

// restarting is what the kernel prints on its way to a reboot (kernel/reboot.c). UML ends with 0 then, as after a power
// off. A guest may print it too, and is started again: that is its own affair.
const restarting = "reboot: Restarting system"

func (g *Guest) reason(code, signal int) string {
	switch {
	case g.marked(askedMark):
		return "asked"
	case code < 0:
		return "lost"
	case signal == int(unix.SIGKILL) && g.engine.OOMKilled != nil && g.engine.OOMKilled(g.m.Cgroup):
		return "oom"
	case signal != 0:
		return "signal" // a panic is SIGABRT
	case code != 0:
		return "exited"
	case strings.Contains(lastLines(engine.ConsoleLog(&g.m)), restarting):
		return "reboot"
	}
	return "poweroff"
}

// Stop presses Ctrl-Alt-Del, or kills every process of the guest: its kernel's helpers would outlive it.
func (g *Guest) Stop(ctx context.Context, mode engine.StopMode) error {
	if !g.running() {
		return nil
	}
	if err := g.mark(askedMark); err != nil {
		return fmt.Errorf("stop %s: %w", g.m.ID, err)
	}
	var err error
	if mode == engine.Kill {
		err = g.engine.Groups.Kill(ctx, path.Base(g.m.Cgroup))
	} else if err = g.pressPower(ctx); err != nil && g.running() {
		err = errors.Join(err, g.unmark(askedMark))
	}
	if err != nil && g.running() {
		return fmt.Errorf("stop %s: %w", g.m.ID, err)
	}
	return nil
}

func (g *Guest) pressPower(ctx context.Context) error {
	if g.marked(pauseMark) {
		if err := g.Resume(ctx); err != nil {
			return err
		}
	}
	return g.command(ctx, g.console.CtrlAltDel)
}

// command does a command of the management console. A guest that was just launched gets the time to open its console.
func (g *Guest) command(ctx context.Context, do func(context.Context) error) error {
	poll := time.NewTicker(10 * startPoll)
	defer poll.Stop()
	for {
		err := do(ctx)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		select {
		case <-poll.C:
		case <-g.done:
			return err
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// Release ends the helpers that a guest's kernel left and forgets it.
func (g *Guest) Release(ctx context.Context) error {
	if g.running() {
		return fmt.Errorf("release %s: the guest runs", g.m.ID)
	}
	g.Exit() // after this nobody knows
	g.engine.mu.Lock()
	current := g.engine.guests[g.m.ID]
	g.engine.mu.Unlock()
	if current != nil && current != g {
		return nil // the machine was launched again
	}
	status, err := g.engine.Keeper.Get(ctx, g.m.ID)
	if err == nil && status.Ended.IsZero() {
		return nil // likewise, by another daemon
	}
	if err := g.engine.tidy(ctx, &g.m); err != nil {
		return fmt.Errorf("release %s: %w", g.m.ID, err)
	}
	return nil
}

// Pause halts the kernel. The mark is made first, so that a daemon that comes after a crash finishes the act.
func (g *Guest) Pause(ctx context.Context) error {
	if err := g.mark(pauseMark); err != nil {
		return fmt.Errorf("pause %s: %w", g.m.ID, err)
	}
	if err := g.command(ctx, g.console.Stop); err != nil {
		return fmt.Errorf("pause %s: %w", g.m.ID, errors.Join(err, g.unmark(pauseMark)))
	}
	return nil
}

// Resume continues the kernel.
func (g *Guest) Resume(ctx context.Context) error {
	if err := g.command(ctx, g.console.Go); err != nil {
		return fmt.Errorf("resume %s: %w", g.m.ID, err)
	}
	return g.unmark(pauseMark)
}

// Paused reads the mark; the console has no command that tells.
func (g *Guest) Paused(context.Context) (bool, error) { return g.marked(pauseMark), nil }

func (g *Guest) mark(name string) error {
	f, err := os.OpenFile(filepath.Join(g.m.RunDir, name), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func (g *Guest) unmark(name string) error {
	if err := os.Remove(filepath.Join(g.m.RunDir, name)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (g *Guest) marked(name string) bool {
	_, err := os.Lstat(filepath.Join(g.m.RunDir, name))
	return err == nil
}

// lastLines are the last lines of a console log.
func lastLines(log string) string {
	const most = 2048
	f, err := os.Open(log)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > most {
		f.Seek(-most, io.SeekEnd)
	}
	tail, _ := io.ReadAll(io.LimitReader(f, most))
	return strings.ToValidUTF8(string(bytes.TrimSpace(tail)), "?")
}
