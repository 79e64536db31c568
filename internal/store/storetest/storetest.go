// Package storetest is the contract of store.Store as a test suite. Every implementation passes it.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/croftproject/croft/internal/store"
)

// Run runs the suite. open makes an empty store and closes it with the test.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for name, test := range map[string]func(*testing.T, store.Store){
		"records come and go":                       recordsComeAndGo,
		"a list is one revision, in order":          listInOrder,
		"a failed check changes nothing":            failedCheck,
		"racing counters lose no increment":         racingCounters,
		"a watch delivers all, in order, once":      watchInOrder,
		"a watch from an old revision catches up":   watchCatchesUp,
		"a watch sees its prefix only":              watchPrefix,
		"a watch ends with its context":             watchEnds,
		"a record with a time to live expires":      expires,
		"large transactions and values are carried": large,
		"a cancelled call says so":                  cancelled,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func commit(t *testing.T, s store.Store, tx store.Tx) int64 {
	t.Helper()
	revision, err := s.Commit(t.Context(), tx)
	if err != nil {
		t.Fatal(err)
	}
	return revision
}

func put(key, value string) store.Put { return store.Put{Key: key, Value: []byte(value)} }

func recordsComeAndGo(t *testing.T, s store.Store) {
	if _, err := s.Get(t.Context(), "a/1"); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("get of nothing: %v, want ErrNotFound", err)
	}
	first := commit(t, s, store.Tx{Puts: []store.Put{put("a/1", "one"), put("a/2", "two")}})
	got, err := s.Get(t.Context(), "a/1")
	if err != nil || string(got.Value) != "one" || got.Key != "a/1" || got.Revision != first {
		t.Fatalf("got %+v, %v", got, err)
	}
	second := commit(t, s, store.Tx{Checks: []store.Check{{Key: "a/1", Revision: first}}, Deletes: []string{"a/1"}, Puts: []store.Put{put("a/2", "zwei")}})
	if second <= first {
		t.Fatalf("revision %d does not grow from %d", second, first)
	}
	if _, err := s.Get(t.Context(), "a/1"); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("get of a deleted record: %v", err)
	}
}

func listInOrder(t *testing.T, s store.Store) {
	const n = 1203
	for i := 0; i < n; i += 100 {
		var tx store.Tx
		for j := i; j < min(i+100, n); j++ {
			tx.Puts = append(tx.Puts, put(fmt.Sprintf("list/%05d", j), fmt.Sprint(j)))
		}
		commit(t, s, tx)
	}
	last := commit(t, s, store.Tx{Puts: []store.Put{put("lisu", "after"), put("lis", "before")}})
	records, revision, err := s.List(t.Context(), "list/")
	if err != nil || len(records) != n || revision != last {
		t.Fatalf("%d records at %d, %v; want %d at %d", len(records), revision, err, n, last)
	}
	for i, r := range records {
		if r.Key != fmt.Sprintf("list/%05d", i) || string(r.Value) != fmt.Sprint(i) {
			t.Fatalf("record %d is %+v", i, r)
		}
	}
	all, _, err := s.List(t.Context(), "")
	if err != nil || len(all) != n+2 {
		t.Fatalf("all: %d, %v", len(all), err)
	}
}

func failedCheck(t *testing.T, s store.Store) {
	revision := commit(t, s, store.Tx{Puts: []store.Put{put("x", "1")}})
	for name, check := range map[string]store.Check{
		"stale": {Key: "x", Revision: revision - 1}, "not absent": {Key: "x"}, "not there": {Key: "y", Revision: revision},
	} {
		_, err := s.Commit(t.Context(), store.Tx{
			Checks: []store.Check{{Key: "z"}, check}, Puts: []store.Put{put("z", "made")}, Deletes: []string{"x"},
		})
		if !errors.Is(err, store.ErrConflict) {
			t.Errorf("%s: %v, want ErrConflict", name, err)
		}
	}
	if _, err := s.Get(t.Context(), "z"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a failed transaction left a record: %v", err)
	}
	if _, err := s.Get(t.Context(), "x"); err != nil {
		t.Errorf("a failed transaction deleted a record: %v", err)
	}
}

func racingCounters(t *testing.T, s store.Store) {
	var wg sync.WaitGroup
	var conflicts atomic.Int64
	const workers, each = 8, 25
	for range workers {
		wg.Go(func() {
			for done := 0; done < each; {
				n, revision := 0, int64(0)
				if r, err := s.Get(t.Context(), "n"); err == nil {
					fmt.Sscan(string(r.Value), &n)
					revision = r.Revision
				}
				_, err := s.Commit(t.Context(), store.Tx{
					Checks: []store.Check{{Key: "n", Revision: revision}}, Puts: []store.Put{put("n", fmt.Sprint(n+1))},
				})
				switch {
				case err == nil:
					done++
				case errors.Is(err, store.ErrConflict):
					conflicts.Add(1)
				default:
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	r, err := s.Get(t.Context(), "n")
	if err != nil || string(r.Value) != fmt.Sprint(workers*each) {
		t.Fatalf("counted %s (%v), want %d; %d conflicts", r.Value, err, workers*each, conflicts.Load())
	}
}

// next waits for a batch.
func next(t *testing.T, ch <-chan store.Batch) store.Batch {
	t.Helper()
	select {
	case b, ok := <-ch:
		if !ok {
			t.Fatal("the watch ended")
		}
		return b
	case <-time.After(20 * time.Second):
		t.Fatal("the watch delivers nothing")
	}
	panic("unreachable")
}

func watchInOrder(t *testing.T, s store.Store) {
	_, revision, err := s.List(t.Context(), "w/")
	if err != nil {
		t.Fatal(err)
	}
	ch := s.Watch(t.Context(), "w/", revision+1)
	const n = 300
	var want []int64
	for i := range n {
		want = append(want, commit(t, s, store.Tx{Puts: []store.Put{put("w/a", fmt.Sprint(i)), put("w/b", fmt.Sprint(i))}}))
	}
	want = append(want, commit(t, s, store.Tx{Deletes: []string{"w/a"}, Puts: []store.Put{put("w/c", "")}}))
	for i, revision := range want {
		b := next(t, ch)
		if b.Revision != revision || len(b.Changes) != 2 {
			t.Fatalf("batch %d is at %d with %d changes, want 2 at %d", i, b.Revision, len(b.Changes), revision)
		}
		if i < n && string(b.Changes[0].Value) != fmt.Sprint(i) {
			t.Fatalf("batch %d carries %q", i, b.Changes[0].Value)
		}
		if i == n {
			deleted := 0
			for _, c := range b.Changes {
				if c.Deleted && c.Key == "w/a" && len(c.Value) == 0 {
					deleted++
				}
			}
			if deleted != 1 {
				t.Fatalf("the deletion reads %+v", b.Changes)
			}
		}
	}
}

func watchCatchesUp(t *testing.T, s store.Store) {
	first := commit(t, s, store.Tx{Puts: []store.Put{put("w/1", "")}})
	commit(t, s, store.Tx{Puts: []store.Put{put("w/2", "")}})
	ch := s.Watch(t.Context(), "w/", first)
	for _, key := range []string{"w/1", "w/2"} {
		if b := next(t, ch); b.Changes[0].Key != key {
			t.Fatalf("got %+v, want %s", b, key)
		}
	}
}

func watchPrefix(t *testing.T, s store.Store) {
	first := commit(t, s, store.Tx{Puts: []store.Put{put("p/1", ""), put("q/1", "")}})
	commit(t, s, store.Tx{Puts: []store.Put{put("q/2", "")}})
	commit(t, s, store.Tx{Puts: []store.Put{put("p/2", "")}})
	ch := s.Watch(t.Context(), "p/", first)
	if b := next(t, ch); len(b.Changes) != 1 || b.Changes[0].Key != "p/1" {
		t.Fatalf("got %+v", b)
	}
	if b := next(t, ch); b.Changes[0].Key != "p/2" {
		t.Fatalf("got %+v", b)
	}
	all := s.Watch(t.Context(), "", first)
	if b := next(t, all); len(b.Changes) != 2 {
		t.Fatalf("got %+v", b)
	}
}

func watchEnds(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	ch := s.Watch(ctx, "w/", 1)
	cancel()
	for {
		select {
		case _, ok := <-ch:
			if !ok {
				return
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the watch goes on")
		}
	}
}

func expires(t *testing.T, s store.Store) {
	first := commit(t, s, store.Tx{Puts: []store.Put{{Key: "e/short", Value: []byte("x"), TTL: 1}, {Key: "e/long", Value: []byte("x"), TTL: 3600}}})
	ch := s.Watch(t.Context(), "e/", first+1)
	b := next(t, ch)
	if len(b.Changes) != 1 || !b.Changes[0].Deleted || b.Changes[0].Key != "e/short" {
		t.Fatalf("got %+v, want the end of e/short", b)
	}
	if _, err := s.Get(t.Context(), "e/long"); err != nil {
		t.Fatal(err)
	}
}

func large(t *testing.T, s store.Store) {
	var tx store.Tx
	value := make([]byte, 16<<10)
	for i := range 100 {
		tx.Puts = append(tx.Puts, store.Put{Key: fmt.Sprintf("big/%03d", i), Value: value})
		tx.Checks = append(tx.Checks, store.Check{Key: fmt.Sprintf("big/%03d", i)})
	}
	commit(t, s, tx)
	records, _, err := s.List(t.Context(), "big/")
	if err != nil || len(records) != 100 || len(records[99].Value) != len(value) {
		t.Fatalf("%d records, %v", len(records), err)
	}
}

func cancelled(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Get(ctx, "x"); err == nil || errors.Is(err, store.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	if _, err := s.Commit(ctx, store.Tx{Puts: []store.Put{put("x", "1")}}); err == nil {
		t.Error("a cancelled commit reports success")
	}
}
