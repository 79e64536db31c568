package enginetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/croftproject/croft/internal/engine"
)

func testExec(t *testing.T, h *Harness) {
	e := h.New(t)
	_, g := h.running(t, e)
	x, ok := g.(engine.Execer)
	if !ok {
		return // the host can't start processes in the engine's guests
	}
	for _, test := range []struct {
		name string
		run  func(*testing.T, *Harness, engine.Execer)
	}{
		{"exit code", testExecCode},
		{"streams", testExecStreams},
		{"input", testExecInput},
		{"surroundings", testExecContext},
		{"terminal", testExecTerminal},
		{"cancel", testExecCancel},
		{"no such command", testExecMissing},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, h, x) })
	}
	if !open(g) {
		t.Error("the guest ended")
	}
}

func testExecCode(t *testing.T, h *Harness, x engine.Execer) {
	code, err := x.Exec(within(t, h.StopLimit), engine.Process{Args: h.Commands.Exit7})
	if err != nil || code != 7 {
		t.Errorf("got %d, %v; want 7", code, err)
	}
}

func testExecStreams(t *testing.T, h *Harness, x engine.Execer) {
	var out, errs bytes.Buffer
	code, err := x.Exec(within(t, h.StopLimit), engine.Process{Args: h.Commands.Streams, Stdout: &out, Stderr: &errs})
	if err != nil || code != 0 || out.String() != "out" || errs.String() != "err" {
		t.Errorf("got %d, %v, %q on stdout, %q on stderr", code, err, &out, &errs)
	}
}

func testExecInput(t *testing.T, h *Harness, x engine.Execer) {
	in := strings.Repeat("0123456789abcdef", 1<<14) // more than a pipe holds (pipe(7): 64 KiB)
	var out bytes.Buffer
	code, err := x.Exec(within(t, h.StopLimit), engine.Process{Args: h.Commands.Cat, Stdin: strings.NewReader(in), Stdout: &out})
	if err != nil || code != 0 || out.String() != in {
		t.Errorf("got %d, %v, and %d of %d bytes back", code, err, out.Len(), len(in))
	}
	out.Reset()
	code, err = x.Exec(within(t, h.StopLimit), engine.Process{Args: h.Commands.Cat, Stdout: &out})
	if err != nil || code != 0 || out.Len() != 0 {
		t.Errorf("without input: %d, %v, %q", code, err, &out)
	}
}

func testExecContext(t *testing.T, h *Harness, x engine.Execer) {
	var out bytes.Buffer
	code, err := x.Exec(within(t, h.StopLimit), engine.Process{
		Args: h.Commands.Context, Env: []string{"CROFT_TEST=a b"}, Dir: "/tmp", User: "1234:5678", Stdout: &out,
	})
	if want := "a b\n/tmp\n1234\n"; err != nil || code != 0 || out.String() != want {
		t.Errorf("got %d, %v, %q; want %q", code, err, &out, want)
	}
}

func testExecTerminal(t *testing.T, h *Harness, x engine.Execer) {
	resize := make(chan engine.WinSize, 1)
	resize <- engine.WinSize{Rows: 33, Cols: 77}
	in, hold := io.Pipe() // a terminal whose user types nothing
	defer hold.Close()
	var out bytes.Buffer
	code, err := x.Exec(within(t, h.StopLimit), engine.Process{
		Args: h.Commands.Size, TTY: true, Stdin: in, Stdout: &out, Resize: resize,
	})
	if err != nil || code != 0 || !strings.Contains(out.String(), "33 77") {
		t.Errorf("got %d, %v, %q; a size that was given before the start holds from the start", code, err, &out)
	}
}

// firstLine keeps what is written and tells when there is a line.
type firstLine struct {
	buf  bytes.Buffer
	line chan string
	told bool
}

func (w *firstLine) Write(p []byte) (int, error) {
	w.buf.Write(p)
	if line, _, ok := strings.Cut(w.buf.String(), "\n"); ok && !w.told {
		w.told = true
		w.line <- strings.TrimSpace(line)
	}
	return len(p), nil
}

func testExecCancel(t *testing.T, h *Harness, x engine.Execer) {
	ctx, cancel := context.WithCancel(within(t, h.StopLimit))
	defer cancel()
	out := &firstLine{line: make(chan string, 1)}
	result := make(chan error, 1)
	go func() {
		_, err := x.Exec(ctx, engine.Process{Args: h.Commands.Hang, Stdout: out})
		result <- err
	}()
	var pid string
	select {
	case pid = <-out.line:
		cancel()
	case err := <-result:
		t.Fatalf("ended by itself: %v", err)
	}
	select {
	case err := <-result:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v; want context.Canceled", err)
		}
	case <-time.After(h.StopLimit):
		t.Fatal("Exec goes on after its context was cancelled")
	}
	if _, err := x.Exec(within(t, h.StopLimit), engine.Process{Args: h.Commands.Gone(pid)}); err != nil {
		t.Errorf("process %s outlives the cancelled Exec: %v", pid, err)
	}
}

func testExecMissing(t *testing.T, h *Harness, x engine.Execer) {
	for what, p := range map[string]engine.Process{
		"program": {Args: []string{"/no/such/command"}},
		"user":    {Args: h.Commands.Exit7, User: "nobody-knows"},
		"command": {},
	} {
		for _, tty := range []bool{false, true} {
			var out, errs bytes.Buffer
			p.TTY, p.Stdout, p.Stderr = tty, &out, &errs
			code, err := x.Exec(within(t, h.StopLimit), p)
			if !errors.Is(err, engine.ErrProcess) || out.Len()+errs.Len() > 0 {
				t.Errorf("no such %s, terminal %t: %d, %v, output %q and %q; want ErrProcess alone", what, tty, code, err, out.String(), errs.String())
			}
		}
	}
}
