package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/qemu/qmp"
	"github.com/croftproject/croft/internal/keeper"
)

// life is one run of a machine: what all Guests of it share. A goroutine follows it to its end.
type life struct {
	engine *Engine
	id     string // machine
	user   uint32 // that QEMU runs as
	grants []api.Grant
	cgroup string
	paths  paths
	data   handleData

	done chan struct{}
	exit api.Exit // valid once done is closed
}

// guest is a guest of either engine.
type guest struct{ *life }

// displayed is a guest with a display.
type displayed struct{ guest }

var (
	_ engine.Guest     = guest{}
	_ engine.Pauser    = guest{}
	_ engine.Resizer   = guest{}
	_ engine.Displayer = displayed{}
)

func (e *Engine) guest(l *life) engine.Guest {
	if e.machine.display {
		return displayed{guest{l}}
	}
	return guest{l}
}

// handleData is what finds a run again, and what it runs on.
type handleData struct {
	PID         int    `json:"pid"`
	MachineType string `json:"machineType"`
	Accelerator string `json:"accelerator"`
}

const handleVersion = 1

func (l *life) Handle() engine.Handle {
	data, err := json.Marshal(l.data)
	if err != nil {
		panic(err) // it is a struct of words and a number
	}
	return engine.Handle{Engine: l.engine.machine.name, Version: handleVersion, Data: data}
}

func (e *Engine) decodeHandle(h engine.Handle) (handleData, error) {
	var d handleData
	if h.Engine != e.machine.name || h.Version != handleVersion {
		return d, fmt.Errorf("handle of engine %q, version %d: not ours", h.Engine, h.Version)
	}
	if err := json.Unmarshal(h.Data, &d); err != nil {
		return d, fmt.Errorf("handle: %w", err)
	}
	if d.PID <= 0 {
		return d, errors.New("handle: names no process")
	}
	return d, nil
}

func (l *life) PID() int              { return l.data.PID }
func (l *life) Done() <-chan struct{} { return l.done }
func (l *life) Exit() api.Exit        { return l.exit }

func (l *life) ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// follow waits for the end of a run and judges it. It ends with the run.
func (l *life) follow(ended <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	events := qmp.NewEvents(64)
	go l.listen(ctx, events)
	<-ended
	last := ending{asked: exists(l.paths.asked), stderr: l.paths.complaints()}
	status, err := l.engine.keeper.Get(ctx, l.id)
	last.status, last.known = status, err == nil && status.PID == l.data.PID
	last.shutdown = lastShutdown(events)
	if f := l.engine.options.OOMKilled; f != nil && status.Signal == int(unix.SIGKILL) {
		last.oom = f(l.cgroup)
	}
	l.exit = last.exit()
	close(l.done)
}

// listen holds the connection for events. It is lost with QEMU, or with the daemon.
func (l *life) listen(ctx context.Context, events *qmp.Events) {
	client, err := dialQMP(ctx, l.paths.events, l.user, events)
	if err != nil {
		return // then the exit is judged without
	}
	select {
	case <-client.Done():
	case <-ctx.Done():
		_ = client.Close()
	}
}

// lastShutdown looks for the event SHUTDOWN among those that have come.
func lastShutdown(events *qmp.Events) (found *shutdown) {
	now, cancel := context.WithCancel(context.Background())
	cancel()
	for {
		event, err := events.Next(now)
		if err != nil {
			return found
		}
		if event.Name == "SHUTDOWN" {
			found = decodeShutdown(event.Data)
		}
	}
}

// Stop presses the power button, or pulls the plug. A paused guest is continued first: it could not see the button.
func (l *life) Stop(ctx context.Context, mode engine.StopMode) error {
	if l.ended() {
		return nil
	}
	if err := l.markAsked(); err != nil {
		return fmt.Errorf("stop %s: %w", l.id, err)
	}
	var err error
	if mode == engine.Kill {
		err = l.engine.keeper.Signal(ctx, l.id, unix.SIGKILL)
	} else {
		err = l.control(ctx, func(c *qmp.Client) error {
			if paused, err := paused(ctx, c); err != nil {
				return err
			} else if paused {
				if err := c.Execute(ctx, "cont", nil, nil); err != nil {
					return err
				}
			}
			return c.Execute(ctx, "system_powerdown", nil, nil)
		})
	}
	if err != nil && l.gone(ctx) {
		return nil // it ended while we asked
	}
	if err != nil {
		return fmt.Errorf("stop %s: %w", l.id, err)
	}
	return nil
}

// gone tells whether the process has ended, though Done may not be closed yet.
func (l *life) gone(ctx context.Context) bool {
	status, err := l.engine.keeper.Get(ctx, l.id)
	return errors.Is(err, keeper.ErrUnknown) || err == nil && (!status.Ended.IsZero() || status.PID != l.data.PID)
}

// markAsked notes where a later daemon finds it that the end was asked for.
func (l *life) markAsked() error {
	file, err := os.OpenFile(l.paths.asked, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return file.Close()
}

// Release forgets an ended run and removes its sockets. The console log and the firmware's variables stay.
func (l *life) Release(ctx context.Context) error {
	if !l.ended() {
		return fmt.Errorf("release %s: the guest runs", l.id)
	}
	e := l.engine
	e.mu.Lock()
	current := e.lives[l.id] == nil || e.lives[l.id] == l
	e.mu.Unlock()
	if !current {
		return nil // another run has begun, and what is there is its own
	}
	if status, err := e.keeper.Get(ctx, l.id); err == nil && status.PID != l.data.PID {
		return nil
	}
	if err := e.keeper.Forget(ctx, l.id); err != nil {
		return fmt.Errorf("release %s: %w", l.id, err)
	}
	if err := errors.Join(hostDevices.takeBack(l.grants, l.user), l.paths.removeRun()); err != nil {
		return fmt.Errorf("release %s: %w", l.id, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.lives[l.id] == l {
		delete(e.lives, l.id)
	}
	return nil
}

// Display connects to QEMU's RFB server.
func (g displayed) Display(ctx context.Context) (net.Conn, error) {
	conn, err := dial(ctx, g.paths.vnc, g.user)
	if err != nil {
		return nil, fmt.Errorf("display of %s: %w", g.id, err)
	}
	return conn, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
