package control

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/ledger"
)

// 200 creates at once against room for 100 admit exactly 100, again and again; the refused hear what is short by how
// much; and when all are gone nothing is left promised.
func TestConcurrentCreates(t *testing.T) {
	w := newWorld(t)
	for round := range 10 {
		race(t, w, []*Control{w.Control}, round)
	}
}

// The same with two control planes on one store.
func TestTwoControlPlanes(t *testing.T) {
	w := newWorld(t)
	other := start(t, w.store, w.images)
	for round := range 3 {
		race(t, w, []*Control{w.Control, other}, round)
	}
}

func race(t *testing.T, w *world, planes []*Control, round int) {
	t.Helper()
	const asked, room = 200, 100
	var wg sync.WaitGroup
	var mu sync.Mutex
	var made []*api.Server
	refused := 0
	for i := range asked {
		wg.Go(func() {
			spec := small()
			spec.Ports = []api.Port{{Network: "corp"}}
			s, err := planes[i%len(planes)].Servers().Create(t.Context(), root, DefaultTenant,
				httpapi.Create[api.ServerSpec]{Name: fmt.Sprintf("s%d", i), Spec: spec})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made = append(made, s)
				return
			}
			refused++
			var p *api.Problem
			want := []api.Shortage{{Resource: "memory", Where: "h1", Asked: "256MiB", Free: "0B", Short: "256MiB"}}
			if !errors.As(err, &p) || p.Code != api.CodeCapacity || !cmp.Equal(p.Short, want) {
				t.Errorf("refused with %v, %+v", err, p)
			}
		})
	}
	wg.Wait()
	if len(made) != room || refused != asked-room {
		t.Fatalf("round %d: %d admitted and %d refused; want %d and %d", round, len(made), refused, room, asked-room)
	}
	addresses := map[string]bool{}
	for _, s := range made {
		addresses[s.Status.Ports[0].Address.String()] = true
	}
	if len(addresses) != room {
		t.Fatalf("%d addresses for %d servers", len(addresses), room)
	}
	w.sound()
	for i, s := range made {
		wg.Go(func() {
			plane := planes[i%len(planes)]
			if _, err := plane.Servers().Delete(t.Context(), root, DefaultTenant, s.Name, httpapi.DeleteOptions{Force: true}); err != nil {
				// The other plane's index may not have the server yet.
				if _, err := w.Servers().Delete(t.Context(), root, DefaultTenant, s.Name, httpapi.DeleteOptions{Force: true}); err != nil {
					t.Error(err)
				}
			}
			for range 2 { // it is idempotent
				if err := w.Gone(t.Context(), s.ID); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	w.empty()
	w.sound()
}

// empty demands that nothing is promised any more.
func (w *world) empty() {
	w.t.Helper()
	w.ix.mu.RLock()
	defer w.ix.mu.RUnlock()
	if d := cmp.Diff(ledger.Host{}, or(w.ix.hostLedgers[w.hostID])); d != "" {
		w.t.Errorf("host: %s", d)
	}
	for id, l := range w.ix.networkLedgers {
		if d := cmp.Diff(ledger.Network{}, *l.v); d != "" {
			w.t.Errorf("network %s: %s", id, d)
		}
	}
	for id, l := range w.ix.imageLedgers {
		if l.v.Users != 0 {
			w.t.Errorf("image %s has %d users", id, l.v.Users)
		}
	}
	for id, l := range w.ix.tenantLedgers {
		if l.v.Resources != (api.Resources{}) {
			w.t.Errorf("tenant %s uses %+v", id, l.v.Resources)
		}
	}
	if n := len(w.ix.servers) + len(w.ix.statuses); n != 0 {
		w.t.Errorf("%d records of servers are left", n)
	}
}

// Creates, resizes and deletes of the same few names at the same time leave the ledgers sound, and in the end empty.
func TestStorm(t *testing.T) {
	w := newWorld(t)
	other := start(t, w.store, w.images)
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			plane := []*Control{w.Control, other}[worker%2]
			for i := range 30 {
				name := fmt.Sprintf("s%d", (worker*7+i)%10)
				s, err := plane.Servers().Create(t.Context(), root, DefaultTenant, httpapi.Create[api.ServerSpec]{Name: name, Spec: small()})
				if err != nil {
					if code := api.CodeOf(err); code != api.CodeExists && code != api.CodeCapacity {
						t.Error(err)
					}
					continue
				}
				spec := small()
				spec.CPU.Entitlement = api.MilliCPU(100 + i)
				if _, err := plane.Servers().Update(t.Context(), root, DefaultTenant, name, httpapi.Update[api.ServerSpec]{Spec: spec}); err != nil {
					t.Error(err)
				}
				if _, err := plane.Servers().Delete(t.Context(), root, DefaultTenant, name, httpapi.DeleteOptions{Force: true}); err != nil {
					t.Error(err)
				}
				if err := plane.Gone(t.Context(), s.ID); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	w.must(w.catchUp(t.Context()))
	w.empty()
	w.sound()
}
