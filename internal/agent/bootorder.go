package agent

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/state"
)

// orderWait is how long the servers of one order hold up those of the next, while they start.
const orderWait = time.Minute

// bootOrder lets the servers that start after a host reboot start in their order: the next order begins when every server
// of the one before is up, has failed, or has taken too long.
type bootOrder struct {
	wake func(id string)

	mu    sync.Mutex
	order map[string]int
	due   []int // orders, ascending; due[0] is starting
	until time.Time
}

func newBootOrder(wake func(id string)) *bootOrder {
	return &bootOrder{wake: wake, order: map[string]int{}}
}

// add puts a server in the queue; before the loop runs.
func (b *bootOrder) add(id string, order int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.order[id] = order
	b.arrange()
}

// arrange rebuilds due; b.mu is held.
func (b *bootOrder) arrange() {
	set := map[int]bool{}
	for _, o := range b.order {
		set[o] = true
	}
	b.due = b.due[:0]
	for o := range set {
		b.due = append(b.due, o)
	}
	sort.Ints(b.due)
}

// wait tells how long a server has to wait at most before it starts; zero: it may start.
func (b *bootOrder) wait(id string, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	o, queued := b.order[id]
	if !queued || len(b.due) == 0 || o <= b.due[0] {
		if queued && b.until.IsZero() {
			b.until = now.Add(orderWait)
		}
		return 0
	}
	if b.until.IsZero() {
		b.until = now.Add(orderWait)
	}
	if left := b.until.Sub(now); left > 0 {
		return left
	}
	// The order before has had its time.
	for other, order := range b.order {
		if order == b.due[0] {
			delete(b.order, other)
		}
	}
	b.next()
	if len(b.due) == 0 || o <= b.due[0] {
		return 0
	}
	return orderWait
}

// queued tells whether servers of a later order may be waiting for this one.
func (b *bootOrder) queued(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, queued := b.order[id]
	return queued
}

// done says that a server is up, or will not be.
func (b *bootOrder) done(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, queued := b.order[id]; !queued {
		return
	}
	first := b.due[0]
	delete(b.order, id)
	b.arrange()
	if len(b.due) > 0 && b.due[0] > first {
		b.next()
	}
}

// next lets the following order begin; b.mu is held.
func (b *bootOrder) next() {
	b.arrange()
	b.until = time.Time{}
	if len(b.due) == 0 {
		return
	}
	for id, o := range b.order {
		if o == b.due[0] {
			b.wake(id)
		}
	}
}

// bootFile holds the boot of the host that the daemon saw last.
const bootFile = "boot-id"

// afterReboot decides about the servers that have no guest, when the host was rebooted since a daemon ran here: what
// their autostart says to that. It is done before any server is looked at; where it fails, before that server is.
func (a *Agent) afterReboot(ctx context.Context) {
	last, err := os.ReadFile(filepath.Join(a.StateDir, bootFile))
	if err == nil && string(last) != a.BootID {
		a.mu.Lock()
		records := maps.Clone(a.desired)
		for id := range records {
			a.undecided[id] = true
		}
		a.mu.Unlock()
		for _, id := range slices.Sorted(maps.Keys(records)) {
			m, err := a.machineOf(id)
			if err == nil {
				err = a.decideAutostart(ctx, m, records[id])
			}
			if err != nil {
				a.Logger.Error("take note of a host reboot; it is tried again", "server", id, "error", err)
			}
		}
	}
	a.keepBoot()
}

// keepBoot remembers that the reboot of the host was taken note of, once it was for every server.
func (a *Agent) keepBoot() {
	a.mu.Lock()
	left := len(a.undecided)
	a.mu.Unlock()
	if left > 0 {
		return
	}
	if err := os.WriteFile(filepath.Join(a.StateDir, bootFile), []byte(a.BootID), 0o600); err != nil {
		a.Logger.Error("keep which boot of the host this is", "error", err)
	}
}

// decideAutostart carries out what the autostart of a server says to the reboot of the host, unless that is done. Until it
// is, nothing else is done to the server.
func (a *Agent) decideAutostart(ctx context.Context, m *machine, rec *state.Server) error {
	a.mu.Lock()
	undecided := a.undecided[m.id]
	a.mu.Unlock()
	if !undecided {
		return nil
	}
	recorded := rec != nil && rec.Intent.Delete.IsZero()
	if recorded && m.state() == guestNone && m.unknown == nil && m.remembered().Rebooted != a.BootID {
		if err := a.autostart(ctx, m, rec); err != nil {
			return err
		}
		if err := m.update(func(l *local) { l.Rebooted = a.BootID }); err != nil {
			return err
		}
	}
	a.mu.Lock()
	delete(a.undecided, m.id)
	a.mu.Unlock()
	a.keepBoot()
	return nil
}

// autostart carries out what a server's autostart says to a reboot of the host.
func (a *Agent) autostart(ctx context.Context, m *machine, rec *state.Server) error {
	policy := rec.Spec.Autostart.Policy
	err := m.update(func(l *local) {
		if l.Handle != nil { // it ran when the host went down
			l.Exit = &api.Exit{Code: -1, Reason: exitLost, Time: a.Now()}
		}
		l.lift()
		l.BootID, l.Handle, l.Held = "", nil, policy == api.AutostartNever
	})
	if err != nil || policy == api.AutostartNever {
		return err
	}
	if rec.Spec.State == api.StateStopped {
		if policy != api.AutostartAlways {
			return nil
		}
		if err := a.Control.Started(ctx, m.id); err != nil {
			return err
		}
		started := *rec // as the record will say; the watch brings it
		started.Spec.State = api.StateRunning
		a.mu.Lock()
		a.desired[m.id] = &started
		a.mu.Unlock()
	}
	a.boot.add(m.id, rec.Spec.Autostart.Order)
	return nil
}
