package reconcile

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestOneRunPerKeyAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most, runs atomic.Int32
		release := make(chan struct{})
		l := New(func(context.Context, string) (time.Duration, error) {
			most.Store(max(most.Load(), now.Add(1)))
			<-release
			now.Add(-1)
			runs.Add(1)
			return 0, nil
		}, 8, func(string, error) {})
		stop := start(t, l)
		for range 50 {
			l.Wake("a")
		}
		synctest.Wait()
		close(release)
		synctest.Wait()
		if most.Load() != 1 || runs.Load() != 2 {
			t.Errorf("most at a time %d, runs %d; want 1 and 2 (the second for the wakes meanwhile)", most.Load(), runs.Load())
		}
		stop()
	})
}

func TestTimerAndBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var at []time.Duration
		l := New(func(context.Context, string) (time.Duration, error) {
			at = append(at, time.Since(began))
			switch len(at) {
			case 1, 2:
				return 0, errors.New("broken")
			case 3:
				return time.Second, nil
			}
			return 0, nil
		}, 1, func(string, error) {})
		stop := start(t, l)
		l.Wake("a")
		time.Sleep(time.Hour) // in the bubble's time
		synctest.Wait()       // orders what ran before what follows, which a sleep does not
		want := []time.Duration{0, 100 * time.Millisecond, 300 * time.Millisecond, 1300 * time.Millisecond}
		if len(at) != len(want) {
			t.Fatalf("runs at %v, want %v", at, want)
		}
		for i := range want {
			if at[i] != want[i] {
				t.Errorf("run %d at %v, want %v", i, at[i], want[i])
			}
		}
		stop()
	})
}

func TestPanicIsAnErrorOfItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var heard error
		other := false
		l := New(func(_ context.Context, key string) (time.Duration, error) {
			if key == "bad" {
				panic("boom")
			}
			other = true
			return 0, nil
		}, 2, func(_ string, err error) { heard = err })
		stop := start(t, l)
		l.Wake("bad")
		l.Wake("good")
		synctest.Wait()
		if heard == nil || !other {
			t.Errorf("heard %v, other key ran: %v", heard, other)
		}
		stop()
	})
}

func TestWakeBeforeRunIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ran := false
		l := New(func(context.Context, string) (time.Duration, error) { ran = true; return 0, nil }, 1, func(string, error) {})
		l.Wake("a")
		stop := start(t, l)
		synctest.Wait()
		if !ran {
			t.Error("key woken before Run did not run")
		}
		stop()
	})
}

func start(t *testing.T, l *Loop) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { l.Run(ctx); close(done) }()
	synctest.Wait()
	return func() { cancel(); <-done }
}
