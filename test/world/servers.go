package world

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
)

// Create creates a server, and returns at once.
func (w *World) Create(t testing.TB, name string, spec api.ServerSpec) *api.Server {
	t.Helper()
	s, err := w.Servers(Tenant).Create(t.Context(), client.Create[api.ServerSpec]{Name: name, Spec: spec})
	if err != nil {
		t.Fatalf("create %s: %v", name, err)
	}
	return s
}

// Run creates a server and waits until its userspace is up.
func (w *World) Run(t testing.TB, name string, spec api.ServerSpec) *api.Server {
	t.Helper()
	w.Create(t, name, spec)
	return w.Ready(t, name)
}

// Ready waits until a server's userspace is up.
func (w *World) Ready(t testing.TB, name string) *api.Server {
	t.Helper()
	return w.ReadyOf(t, Tenant, name)
}

// ReadyOf is Ready for a server of any tenant.
func (w *World) ReadyOf(t testing.TB, tenant, name string) *api.Server {
	t.Helper()
	up := func(s *api.Server) bool { return s.Status.Phase == api.PhaseRunning && !s.Status.Ready.IsZero() }
	return w.waitOf(t, tenant, name, "ready", up)
}

// Phase waits until a server is in a phase.
func (w *World) Phase(t testing.TB, name string, p api.Phase) *api.Server {
	t.Helper()
	return w.Wait(t, name, string(p), func(s *api.Server) bool { return s.Status.Phase == p })
}

// Wait follows a server until ok. A server that failed, where that is not what is waited for, fails the test at once.
func (w *World) Wait(t testing.TB, name, what string, ok func(*api.Server) bool) *api.Server {
	t.Helper()
	return w.waitOf(t, Tenant, name, what, ok)
}

func (w *World) waitOf(t testing.TB, tenant, name, what string, ok func(*api.Server) bool) *api.Server {
	t.Helper()
	last, there := w.follow(t, tenant, name, Patience, ok)
	if !there {
		t.Fatalf("%s never came to be %s: %s\nconsole:\n%s", name, what, describe(last), tail(w.consoleOf(tenant, name), 4096))
	}
	return last
}

// follow returns the server as it was last, and whether it came to be ok in the time.
func (w *World) follow(t testing.TB, tenant, name string, limit time.Duration, ok func(*api.Server) bool) (last *api.Server, there bool) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for c, err := range w.Servers(tenant).Watch(ctx, client.ListOptions{}, 0) {
		if err != nil {
			break
		}
		if c.Object.Name != name {
			continue
		}
		s := c.Object
		last = &s
		if ok(last) {
			return last, true
		}
		if last.Status.Phase == api.PhaseFailed && last.Status.Observed >= last.Revision {
			break
		}
	}
	return last, false
}

func describe(s *api.Server) string {
	if s == nil {
		return "it was not seen"
	}
	return fmt.Sprintf("it is %s: %s (exit %+v)", s.Status.Phase, s.Status.Message, s.Status.Exit)
}

// Console is what a server has printed.
func (w *World) Console(name string) string { return w.consoleOf(Tenant, name) }

func (w *World) consoleOf(tenant, name string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	log, err := w.Client.Log(ctx, tenant, name, false)
	if err != nil {
		return err.Error()
	}
	defer log.Close()
	data, _ := io.ReadAll(log)
	return string(data)
}

// Output runs a command in an os server, and returns what it prints. Any exit code but zero fails the test.
func (w *World) Output(t testing.TB, name string, args ...string) string {
	t.Helper()
	code, out := w.Exec(t, name, args...)
	if code != 0 {
		t.Fatalf("%s in %s: exit code %d\n%s", strings.Join(args, " "), name, code, out)
	}
	return out
}

// Exec runs a command in an os server, and returns its exit code and what it prints.
func (w *World) Exec(t testing.TB, name string, args ...string) (int, string) {
	t.Helper()
	return w.ExecOf(t, Tenant, name, args...)
}

// ExecOf is Exec in a server of any tenant.
func (w *World) ExecOf(t testing.TB, tenant, name string, args ...string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	var out bytes.Buffer
	code, err := w.Client.Exec(ctx, tenant, name, client.Exec{Args: args, Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatalf("%s in %s: %v", strings.Join(args, " "), name, err)
	}
	return code, out.String()
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}
