package httpapitest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/httpapi"
)

// Guests are guests that a test can look into. A console echoes what it is sent, in upper case. Exec knows the commands
// "cat" (stdin to stdout), "echo ARGS", "err ARGS" (to stderr), "exit" (code 7), "size" (prints the first window size),
// and "env". "/etc/passwd" may not be run, and other commands are not found.
type Guests struct {
	Fake *Fake
	// Log is what ConsoleLog gives; with follow, More follows.
	Log  string
	More chan string
	// Started and Ended have a value for each "sleep" that began, and ended with its context.
	Started, Ended chan struct{}

	mu    sync.Mutex
	sizes []engine.WinSize
	seen  chan struct{}
}

// NewGuests makes the guests of a control plane.
func NewGuests(f *Fake) *Guests {
	return &Guests{Fake: f, Log: "booted\n", More: make(chan string), Started: make(chan struct{}, 8), Ended: make(chan struct{}, 8), seen: make(chan struct{}, 64)}
}

// Sizes are the window sizes that consoles were given; Resized has a value for each.
func (g *Guests) Sizes() []engine.WinSize {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]engine.WinSize(nil), g.sizes...)
}

// Resized has a value for each window size that a console was given.
func (g *Guests) Resized() <-chan struct{} { return g.seen }

func (g *Guests) running(ctx context.Context, who httpapi.Caller, tenant, name string) error {
	s, err := g.Fake.ServerStore.Get(ctx, who, tenant, name)
	if err != nil {
		return err
	}
	if s.Status.Phase != api.PhaseRunning {
		return api.Errorf(api.CodeWrongState, "server %s is %s", name, s.Status.Phase)
	}
	return nil
}

// Console echoes in upper case.
func (g *Guests) Console(ctx context.Context, who httpapi.Caller, tenant, name string, resize <-chan engine.WinSize) (io.ReadWriteCloser, error) {
	if err := g.running(ctx, who, tenant, name); err != nil {
		return nil, err
	}
	near, far := net.Pipe()
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case size := <-resize:
				g.mu.Lock()
				g.sizes = append(g.sizes, size)
				g.mu.Unlock()
				g.seen <- struct{}{}
			}
		}
	}()
	go func() {
		defer far.Close() //nolint:errcheck // of a pipe it never fails
		fmt.Fprintf(far, "%s login: ", name)
		buf := make([]byte, 1024)
		for {
			n, err := far.Read(buf)
			if err != nil {
				return
			}
			if _, err := io.WriteString(far, strings.ToUpper(string(buf[:n]))); err != nil {
				return
			}
		}
	}()
	return near, nil
}

// ConsoleLog gives Log, and with follow what comes through More.
func (g *Guests) ConsoleLog(ctx context.Context, who httpapi.Caller, tenant, name string, follow bool) (io.ReadCloser, error) {
	if _, err := g.Fake.ServerStore.Get(ctx, who, tenant, name); err != nil {
		return nil, err
	}
	if !follow {
		return io.NopCloser(strings.NewReader(g.Log)), nil
	}
	r, w := io.Pipe()
	go func() {
		io.WriteString(w, g.Log) //nolint:errcheck // the reader may be gone
		for {
			select {
			case <-ctx.Done():
				w.Close() //nolint:errcheck // of a pipe it never fails
				return
			case more, ok := <-g.More:
				if !ok {
					w.Close() //nolint:errcheck // of a pipe it never fails
					return
				}
				io.WriteString(w, more) //nolint:errcheck // the reader may be gone
			}
		}
	}()
	return r, nil
}

// Exec runs one of the known commands.
func (g *Guests) Exec(ctx context.Context, who httpapi.Caller, tenant, name string, p engine.Process) (int, error) {
	if err := g.running(ctx, who, tenant, name); err != nil {
		return 0, err
	}
	if p.User == "nobody-such" {
		return 0, notStarted("the guest has no user %q", p.User)
	}
	switch p.Args[0] {
	case "/etc/passwd":
		return 0, notStarted("exec: %q: permission denied", p.Args[0])
	case "cat":
		_, err := io.Copy(p.Stdout, p.Stdin)
		return 0, err
	case "echo":
		fmt.Fprintln(p.Stdout, strings.Join(p.Args[1:], " "))
	case "err":
		fmt.Fprintln(p.Stderr, strings.Join(p.Args[1:], " "))
	case "exit":
		return 7, nil
	case "env":
		fmt.Fprintf(p.Stdout, "%s user=%s dir=%s tty=%t\n", strings.Join(p.Env, ","), p.User, p.Dir, p.TTY)
	case "size":
		select {
		case size := <-p.Resize:
			fmt.Fprintf(p.Stdout, "%dx%d\n", size.Rows, size.Cols)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	case "sleep":
		g.Started <- struct{}{}
		<-ctx.Done()
		g.Ended <- struct{}{}
		return 0, ctx.Err()
	case "line":
		line, err := bufio.NewReader(p.Stdin).ReadString('\n')
		fmt.Fprintf(p.Stdout, "got %q\n", line)
		return 3, err
	default:
		return 0, notStarted("exec: %q: executable file not found in $PATH", p.Args[0])
	}
	return 0, nil
}

func notStarted(format string, args ...any) error {
	return api.Errorf(api.CodeInvalid, "the process can't be started: "+format, args...)
}

// Display is a peer that sends the RFB version and echoes.
func (g *Guests) Display(ctx context.Context, who httpapi.Caller, tenant, name string) (net.Conn, error) {
	if err := g.running(ctx, who, tenant, name); err != nil {
		return nil, err
	}
	near, far := net.Pipe()
	go func() {
		defer far.Close() //nolint:errcheck // of a pipe it never fails
		if _, err := io.WriteString(far, "RFB 003.008\n"); err == nil {
			io.Copy(far, far) //nolint:errcheck // until the other side ends it
		}
	}()
	return near, nil
}

// Usage gives one sample of each running server.
func (g *Guests) Usage(ctx context.Context, who httpapi.Caller, tenant string) ([]api.Usage, error) {
	g.Fake.note(who)
	store := g.Fake.ServerStore
	store.mu.Lock()
	defer store.mu.Unlock()
	var out []api.Usage
	for _, s := range store.items {
		if tenant == "" || s.Tenant == tenant {
			out = append(out, api.Usage{
				Server: s.Name, Tenant: s.Tenant, CPUTime: api.Duration(90 * time.Second), CPU: 250, Memory: 12 * api.MiB, PIDs: 3,
				Read: api.MiB, Written: 2 * api.MiB, RxBytes: 1500, TxBytes: 900,
			})
		}
	}
	return out, nil
}
