// Package reconcile runs a function for each of many keys: when the key is woken, when its timer fires, one run per key
// at a time, with back-off after an error. The function takes no other input: it reads what is wanted and what is there
// by itself, so a run too many does no harm and a wake too many costs little.
package reconcile

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// Func brings one key closer to what is wanted. It is run again after Again (zero: not until woken), or after a back-off
// where it returned an error.
type Func func(ctx context.Context, key string) (again time.Duration, err error)

// Back-off after errors: doubling from the first to the last.
const (
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = time.Minute
)

// Loop runs a Func for its keys.
type Loop struct {
	run     Func
	onError func(key string, err error)
	slots   chan struct{}

	mu      sync.Mutex
	ctx     context.Context // nil before Run and after its end
	keys    map[string]*key
	running sync.WaitGroup
}

type key struct {
	busy   bool // a run is under way or waits for a slot
	woken  bool // run once more when it ends
	errors int
	timer  *time.Timer
}

// New makes a loop of which at most workers runs are under way at a time. onError hears each run's error.
func New(run Func, workers int, onError func(key string, err error)) *Loop {
	return &Loop{run: run, onError: onError, slots: make(chan struct{}, workers), keys: map[string]*key{}}
}

// Run lets the loop work until ctx ends, and returns when the last run has ended. Keys woken before are run first.
func (l *Loop) Run(ctx context.Context) {
	l.mu.Lock()
	l.ctx = ctx
	for name, k := range l.keys {
		if k.woken {
			k.woken = false
			l.start(name, k)
		}
	}
	l.mu.Unlock()
	<-ctx.Done()
	l.mu.Lock()
	l.ctx = nil
	for _, k := range l.keys {
		if k.timer != nil {
			k.timer.Stop()
		}
	}
	l.mu.Unlock()
	l.running.Wait()
}

// Wake has the key run soon; at once where it is idle.
func (l *Loop) Wake(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.keys[name]
	if k == nil {
		k = &key{}
		l.keys[name] = k
	}
	if k.busy || l.ctx == nil {
		k.woken = true
		return
	}
	l.start(name, k)
}

// Forget drops what is remembered of an idle key: its timer and its count of errors.
func (l *Loop) Forget(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k := l.keys[name]; k != nil && !k.busy {
		if k.timer != nil {
			k.timer.Stop()
		}
		delete(l.keys, name)
	}
}

// start begins a run; l.mu is held.
func (l *Loop) start(name string, k *key) {
	k.busy = true
	if k.timer != nil {
		k.timer.Stop()
		k.timer = nil
	}
	ctx := l.ctx
	l.running.Add(1)
	go func() {
		defer l.running.Done()
		select {
		case l.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		again, err := l.guarded(ctx, name)
		<-l.slots
		if err != nil && ctx.Err() == nil {
			l.onError(name, err)
		}
		l.end(name, k, again, err)
	}()
}

// guarded turns a panic of one key's run into its error, so that the others go on.
func (l *Loop) guarded(ctx context.Context, name string) (again time.Duration, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return l.run(ctx, name)
}

func (l *Loop) end(name string, k *key, again time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k.busy = false
	switch {
	case l.ctx == nil:
		return
	case err != nil:
		again = firstBackoff << min(k.errors, 12)
		again = min(again, lastBackoff)
		k.errors++
	default:
		k.errors = 0
	}
	switch {
	case k.woken:
		k.woken = false
		l.start(name, k)
	case again > 0:
		k.timer = time.AfterFunc(again, func() { l.Wake(name) })
	default:
		if k.errors == 0 {
			delete(l.keys, name)
		}
	}
}
