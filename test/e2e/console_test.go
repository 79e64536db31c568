package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/croftproject/croft/client"
	"github.com/croftproject/croft/test/world"
)

// shell is the shell on the console of a server.
type shell struct {
	t       testing.TB
	console *client.Console
	cancel  context.CancelFunc

	mu   sync.Mutex
	out  bytes.Buffer
	more chan struct{} // told of new output
}

var marks atomic.Int64

// attach attaches to the console of a server of the image micro, at its shell's prompt.
func attach(t testing.TB, w *world.World, name string) *shell {
	t.Helper()
	s := attachTo(t, w, name)
	// What is typed before the shell has set its terminal up would be lost.
	if s.await(`:~# `, world.Patience) == nil {
		t.Fatalf("the console of %s shows no prompt:\n%s", name, s.text())
	}
	return s
}

// attachTo attaches to a server's console.
func attachTo(t testing.TB, w *world.World, name string) *shell {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c, err := w.Client.Console(ctx, world.Tenant, name)
	if err != nil {
		cancel()
		t.Fatalf("attach to the console of %s: %v", name, err)
	}
	s := &shell{t: t, console: c, cancel: cancel, more: make(chan struct{}, 1)}
	go func() {
		io.Copy(s, c)
		cancel()
	}()
	t.Cleanup(s.detach)
	return s
}

func (s *shell) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.more <- struct{}{}:
	default:
	}
	return s.out.Write(p)
}

func (s *shell) detach() {
	s.console.Close()
	s.cancel()
}

func (s *shell) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String()
}

// await waits until the console has shown what matches, for at most a time, and returns the groups; nil if it did not.
func (s *shell) await(pattern string, limit time.Duration) []string {
	re := regexp.MustCompile(pattern)
	end := time.NewTimer(limit)
	defer end.Stop()
	for {
		if found := re.FindStringSubmatch(s.text()); found != nil {
			return found
		}
		select {
		case <-s.more:
		case <-end.C:
			return nil
		}
	}
}

func (s *shell) send(line string) {
	s.t.Helper()
	if _, err := s.console.Write([]byte(line)); err != nil {
		s.t.Fatalf("type into the console: %v", err)
	}
}

// run types a command and returns its exit code and what it printed.
func (s *shell) run(command string) (code int, out string) {
	s.t.Helper()
	n := marks.Add(1)
	// The marks are put together by the shell, so that the echo of what is typed is not taken for them.
	s.send(fmt.Sprintf("echo mark-\"\"begin-%d; %s; echo mark-\"\"end-%d-$?.\r", n, command, n))
	found := s.await(fmt.Sprintf(`(?s)mark-begin-%d\r?\n(.*)mark-end-%d-(\d+)\.`, n, n), world.Patience)
	if found == nil {
		s.t.Fatalf("the console did not answer %q:\n%s", command, s.text())
	}
	fmt.Sscan(found[2], &code)
	return code, strings.TrimSpace(strings.ReplaceAll(found[1], "\r", ""))
}

// ok runs a command that must succeed.
func (s *shell) ok(command string) string {
	s.t.Helper()
	code, out := s.run(command)
	if code != 0 {
		s.t.Fatalf("%q ended with code %d:\n%s", command, code, out)
	}
	return out
}
