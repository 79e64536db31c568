package fake

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
)

// Guest is a view of a guest on the host. It can be paused, resized and executed in.
type Guest struct {
	host  *Host
	guest *guest
}

var (
	_ engine.Guest   = (*Guest)(nil)
	_ engine.Pauser  = (*Guest)(nil)
	_ engine.Resizer = (*Guest)(nil)
	_ engine.Execer  = (*Guest)(nil)
)

// Handle names the guest by its PID.
func (g *Guest) Handle() engine.Handle {
	data, _ := json.Marshal(handleData{PID: g.guest.pid}) // an int always marshals
	return engine.Handle{Engine: Name, Version: handleVersion, Data: data}
}

func (g *Guest) PID() int              { return g.guest.pid }
func (g *Guest) Done() <-chan struct{} { return g.guest.done }

func (g *Guest) Exit() api.Exit {
	g.host.mu.Lock()
	defer g.host.mu.Unlock()
	return g.guest.exit
}

// Stop ends the guest at once, unless it is Deaf to being asked.
func (g *Guest) Stop(_ context.Context, mode engine.StopMode) error {
	id := g.guest.id
	if err := g.host.hook(func(h Hooks) func(string) error { return h.Stop }, id); err != nil {
		return fmt.Errorf("stop %s: %w", id, err)
	}
	deaf := mode == engine.Graceful && g.host.deaf(id)
	g.host.mu.Lock()
	defer g.host.mu.Unlock()
	g.guest.asked = true
	switch {
	case deaf:
	case mode == engine.Kill:
		g.guest.end(api.Exit{Code: 137})
	default:
		g.guest.end(api.Exit{})
	}
	return nil
}

// Release forgets the guest.
func (g *Guest) Release(context.Context) error {
	id := g.guest.id
	if err := g.host.hook(func(h Hooks) func(string) error { return h.Release }, id); err != nil {
		return fmt.Errorf("release %s: %w", id, err)
	}
	g.host.mu.Lock()
	defer g.host.mu.Unlock()
	if g.guest.running() {
		return fmt.Errorf("release %s: the guest runs", id)
	}
	if g.host.guests[id] == g.guest {
		delete(g.host.guests, id)
	}
	return nil
}

func (g *Guest) Pause(context.Context) error  { return g.setPaused(true) }
func (g *Guest) Resume(context.Context) error { return g.setPaused(false) }

func (g *Guest) setPaused(paused bool) error {
	id := g.guest.id
	if err := g.host.hook(func(h Hooks) func(string) error { return h.Pause }, id); err != nil {
		return fmt.Errorf("pause %s: %w", id, err)
	}
	g.host.mu.Lock()
	defer g.host.mu.Unlock()
	if !g.guest.running() {
		return fmt.Errorf("pause %s: %w", id, engine.ErrGone)
	}
	g.guest.paused = paused
	return nil
}

func (g *Guest) Paused(context.Context) (bool, error) {
	g.host.mu.Lock()
	defer g.host.mu.Unlock()
	return g.guest.paused, nil
}

// Resize takes every change but one of the number of virtual CPUs.
func (g *Guest) Resize(_ context.Context, from, to *api.ServerSpec) error {
	if from.CPU.Count != to.CPU.Count {
		return fmt.Errorf("%w: the number of virtual CPUs changes at the next start", engine.ErrUnsupported)
	}
	return nil
}

// Exec plays a few commands: "exit N", "streams", "cat", "size", "hang", "gone", "context". There are no others, and no user "nobody-knows".
func (g *Guest) Exec(ctx context.Context, p engine.Process) (int, error) {
	if !g.guest.running() {
		return 0, fmt.Errorf("exec in %s: %w", g.guest.id, engine.ErrGone)
	}
	if len(p.Args) == 0 || p.User == "nobody-knows" {
		return 0, fmt.Errorf("%w: no command, or no such user", engine.ErrProcess)
	}
	out, errs := writer(p.Stdout), writer(p.Stderr)
	switch p.Args[0] {
	case "exit":
		if len(p.Args) != 2 {
			return 2, nil
		}
		code, err := strconv.Atoi(p.Args[1])
		return code, err
	case "streams":
		io.WriteString(out, "out")
		io.WriteString(errs, "err")
	case "cat":
		if p.Stdin != nil {
			if _, err := io.Copy(out, p.Stdin); err != nil {
				return 1, err
			}
		}
	case "size":
		select {
		case size := <-p.Resize:
			fmt.Fprintf(out, "%d %d\n", size.Rows, size.Cols)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	case "hang":
		fmt.Fprintln(out, "2")
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-g.guest.done:
			return 137, nil
		}
	case "gone":
	case "context":
		user, _, _ := strings.Cut(p.User, ":")
		fmt.Fprintf(out, "%s\n%s\n%s\n", variable(p.Env, "CROFT_TEST"), p.Dir, user)
	default:
		return 0, fmt.Errorf("%w: %s: not found", engine.ErrProcess, p.Args[0])
	}
	return 0, nil
}

func writer(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

func variable(env []string, name string) string {
	for _, e := range env {
		if value, ok := strings.CutPrefix(e, name+"="); ok {
			return value
		}
	}
	return ""
}
