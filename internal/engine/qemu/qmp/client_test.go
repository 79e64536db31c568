package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNegotiatesOutOfBand(t *testing.T) {
	f, conn := newFake(t)
	asked := make(chan received, 2)
	go func() {
		f.say(greeting)
		first := f.next()
		asked <- first
		f.answer(first, `{}`)
		second := f.next()
		asked <- second
		f.answer(second, `{"status": "running"}`)
	}()
	c, err := New(t.Context(), conn, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if r := <-asked; r.Execute != "qmp_capabilities" || string(r.Arguments) != `{"enable":["oob"]}` {
		t.Errorf("negotiated with %+v", r)
	}
	var status struct{ Status string }
	if err := c.ExecuteNow(t.Context(), "query-status", nil, &status); err != nil || status.Status != "running" {
		t.Errorf("%+v, %v", status, err)
	}
	if r := <-asked; r.OOB != "query-status" {
		t.Errorf("sent %+v", r)
	}
	if g := c.Greeting(); g.String() != "7.2.22" {
		t.Errorf("version %s", g.String())
	}
}

func TestAnswersOutOfOrderFindTheirCommands(t *testing.T) {
	const commands = 50
	f, c := connected(t, nil)
	go func() {
		var all []received
		for range commands {
			all = append(all, f.next())
		}
		f.say(`{"return": "nobody's", "id": 999999}`)
		f.say(`{"return": "nobody's", "id": "word"}`)
		for i := len(all) - 1; i >= 0; i-- {
			f.answer(all[i], string(all[i].Arguments))
			f.answer(all[i], `"said twice"`)
		}
	}()
	var wait sync.WaitGroup
	for i := range commands {
		wait.Go(func() {
			var got struct{ N int }
			if err := c.Execute(t.Context(), "echo", map[string]int{"n": i}, &got); err != nil || got.N != i {
				t.Errorf("command %d: got %d, %v", i, got.N, err)
			}
		})
	}
	wait.Wait()
}

func TestSplitReadsAreOneMessage(t *testing.T) {
	f, c := connected(t, nil)
	go func() {
		text := fmt.Sprintf(`{"return": {"text": "zwölf"}, "id": %s}`+"\r\n\r\n", f.next().ID)
		for i := range len(text) {
			_, _ = f.conn.Write([]byte{text[i]})
		}
	}()
	var got struct{ Text string }
	if err := c.Execute(t.Context(), "x", nil, &got); err != nil || got.Text != "zwölf" {
		t.Errorf("%q, %v", got.Text, err)
	}
}

func TestLateAnswerIsDropped(t *testing.T) {
	f, c := connected(t, nil)
	first := make(chan received)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		first <- f.next()
	}()
	go func() {
		r := <-first
		cancel()
		second := f.next()
		f.answer(r, `"late"`)
		f.answer(second, `"in time"`)
	}()
	if err := c.Execute(ctx, "slow", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled command returned %v", err)
	}
	var got string
	if err := c.Execute(t.Context(), "quick", nil, &got); err != nil || got != "in time" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestRefusalIsTyped(t *testing.T) {
	f, c := connected(t, nil)
	go func() {
		f.say(fmt.Sprintf(`{"error": {"class": "CommandNotFound", "desc": "The command x has not been found"}, "id": %s}`, f.next().ID))
	}()
	err := c.Execute(t.Context(), "x", nil, nil)
	if !IsClass(err, "CommandNotFound") || !strings.Contains(err.Error(), "qmp x: The command x has not been found") {
		t.Errorf("got %v", err)
	}
}

// Whatever ends the connection ends everyone who waits on it, with the reason.
func TestLossEndsAllWaiters(t *testing.T) {
	for name, end := range map[string]struct {
		last string
		want string
	}{
		"death":             {"", "EOF"},
		"death in a word":   {`{"return": {"sta`, "not a QMP message"},
		"garbage":           {"\x00\xffKernel panic\n", "not a QMP message"},
		"an array":          {"[1]\n", "not a QMP message"},
		"two kinds":         {`{"return": {}, "error": {}, "id": 1}` + "\n", "2 kinds"},
		"a second greeting": {greeting + "\n" + greeting + "\n", "greeted twice"},
		"nameless error":    {`{"error": {"class": "GenericError", "desc": "Parse error"}}` + "\n", "can't name"},
	} {
		t.Run(name, func(t *testing.T) {
			events := NewEvents(10)
			f, c := connected(t, events)
			go func() {
				for range 5 {
					f.next()
				}
				_, _ = f.conn.Write([]byte(end.last))
				_ = f.conn.Close()
			}()
			var wait sync.WaitGroup
			for range 5 {
				wait.Go(func() {
					err := c.Execute(t.Context(), "x", nil, nil)
					if !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), end.want) {
						t.Errorf("got %v, want %q", err, end.want)
					}
				})
			}
			wait.Wait()
			if _, err := events.Next(t.Context()); !errors.Is(err, ErrLost) {
				t.Errorf("the subscriber got %v", err)
			}
			<-c.Done()
			if err := c.Execute(t.Context(), "x", nil, nil); !errors.Is(err, ErrLost) {
				t.Errorf("a command after the end got %v", err)
			}
		})
	}
}

func TestMessageWithoutEndIsBounded(t *testing.T) {
	f, c := connected(t, nil)
	go func() {
		f.next()
		chunk := []byte(strings.Repeat("[", 1<<20))
		for {
			if _, err := f.conn.Write(chunk); err != nil {
				return
			}
		}
	}()
	if err := c.Execute(t.Context(), "x", nil, nil); !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), "too long") {
		t.Errorf("got %v", err)
	}
}

func TestFloodOfEventsBlocksNobody(t *testing.T) {
	const flood, limit = 20000, 1000
	idle, read := NewEvents(limit), NewEvents(flood+1)
	f, c := connected(t, idle)
	c.Subscribe(read)
	go func() {
		r := f.next()
		for i := range flood {
			f.say(fmt.Sprintf(`{"event": "N", "data": %d, "timestamp": {"seconds": 1, "microseconds": 5}}`, i))
		}
		f.answer(r, `{}`)
	}()
	if err := c.Execute(t.Context(), "x", nil, nil); err != nil {
		t.Fatal(err)
	}
	for i := range flood {
		event, err := read.Next(t.Context())
		var n int
		if err != nil || json.Unmarshal(event.Data, &n) != nil || n != i {
			t.Fatalf("event %d is %+v, %v", i, event, err)
		}
	}
	if first, err := idle.Next(t.Context()); err != nil || string(first.Data) != fmt.Sprint(flood-limit) || idle.Lost() != flood-limit {
		t.Errorf("the idle queue begins with %+v, %v; %d lost", first, err, idle.Lost())
	}
}

// A QEMU that reads nothing must not hold a caller past its context.
func TestHungReader(t *testing.T) {
	f, c := connected(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() { failed <- c.Execute(ctx, "x", nil, nil) }()
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	// Nothing of the line was taken, so the connection is as good as before.
	go func() { f.answer(f.next(), `{}`) }()
	if err := c.Execute(t.Context(), "y", nil, nil); err != nil {
		t.Errorf("after it: %v", err)
	}
}

func TestLineCutInTheMiddleEndsTheConnection(t *testing.T) {
	f, c := connected(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, _ = io.ReadFull(f.conn, make([]byte, 5))
		cancel()
	}()
	if err := c.Execute(ctx, "x", nil, nil); !errors.Is(err, ErrLost) {
		t.Errorf("got %v", err)
	}
}

func TestNoGreeting(t *testing.T) {
	_, conn := newFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(ctx, conn, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	f, conn := newFake(t)
	go f.conn.Close()
	if _, err := New(t.Context(), conn, nil); !errors.Is(err, ErrLost) {
		t.Errorf("got %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		greeting, `{"return": {}, "id": 1}`, `{"return": null, "id": null}`, `{"error": {"class": "GenericError", "desc": "x"}}`,
		`{"event": "STOP", "timestamp": {"seconds": -1, "microseconds": -1}}`, `{}`, `[`, `{"id": 1e400, "return": 1}`, `{"QMP": null}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := Decode(line)
		if err != nil {
			if m.Greeting != nil || m.Return != nil || m.Error != nil || m.Event != nil {
				t.Errorf("an error comes with a message: %+v", m)
			}
			return
		}
		kinds := 0
		for _, set := range []bool{m.Greeting != nil, m.Return != nil, m.Error != nil, m.Event != nil} {
			if set {
				kinds++
			}
		}
		if kinds != 1 || !json.Valid(line) {
			t.Errorf("%q is of %d kinds", line, kinds)
		}
		if m.Return != nil && !json.Valid(m.Return) {
			t.Errorf("%q returns %q", line, m.Return)
		}
	})
}
