package control

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/state"
	"github.com/croftproject/croft/internal/store"
)

// kept is a machine that keeps its id in a variable.
func kept(id *string) Machine {
	m := machine
	m.ID = *id
	m.Keep = func(given string) error { *id = given; return nil }
	return m
}

func TestHostKeepsItsID(t *testing.T) {
	c := start(t, openStore(t), &fakeImages{})
	id := ""
	first, err := c.RegisterHost(t.Context(), kept(&id))
	if err != nil || first != id || id == "" {
		t.Fatalf("%q, kept %q, %v", first, id, err)
	}
	if again, err := c.RegisterHost(t.Context(), kept(&id)); again != id || err != nil {
		t.Errorf("%q, %v; want %q", again, err, id)
	}
	// Another machine of the same name, before and after its first start.
	for _, other := range []string{"", "01hzzzzzzzzzzzzzzzzzzzzzzz"} {
		before := other
		if _, err := c.RegisterHost(t.Context(), kept(&other)); err == nil || !strings.Contains(err.Error(), "another machine") || other != before {
			t.Errorf("%q: %v", other, err)
		}
	}
	// A store of its own that knew the host before it kept an id.
	m, old := kept(new(string)), ""
	m.Keep, m.Own = func(given string) error { old = given; return nil }, true
	if again, err := c.RegisterHost(t.Context(), m); again != id || old != id || err != nil {
		t.Errorf("%q, kept %q, %v; want %q", again, old, err, id)
	}
	m = kept(&id)
	m.Name = "h2"
	if _, err := c.RegisterHost(t.Context(), m); err == nil || !strings.Contains(err.Error(), `"h1"`) {
		t.Errorf("a host took another name: %v", err)
	}
	full := errors.New("disk full")
	m.ID, m.Keep = "", func(string) error { return full }
	if _, err := c.RegisterHost(t.Context(), m); !errors.Is(err, full) || len(c.ix.hosts) != 1 {
		t.Errorf("a host without a kept id was made: %v", err)
	}
}

// nearlyFull takes no more than what frees space, once it is full.
type nearlyFull struct {
	store.Store
	full atomic.Bool
}

func (s *nearlyFull) Commit(ctx context.Context, tx store.Tx) (int64, error) {
	if s.full.Load() && !tx.Frees && len(tx.Puts) > 0 {
		return 0, store.ErrUnavailable
	}
	return s.Store.Commit(ctx, tx)
}

// On a disk that is nearly full everything can be ended, and the daemon can start.
func TestNearlyFullStore(t *testing.T) {
	w := newWorld(t)
	s := w.server("web")
	w.phase(s, api.PhaseRunning)
	disk := &nearlyFull{Store: w.store}
	w.Control = start(t, disk, w.images)
	w.register(machine)
	disk.full.Store(true)
	_, err := w.create("more")
	problem(t, err, api.CodeUnavailable)
	bigger := machine
	bigger.Capacity.Disk *= 2
	w.register(bigger)
	_, err = w.Power(t.Context(), root, DefaultTenant, "web", api.PowerStop, false)
	w.must(err)
	w.remove("web")
	_, err = w.Networks().Delete(t.Context(), root, DefaultTenant, "corp", httpapi.DeleteOptions{})
	w.must(err)
	_, err = w.Images().Delete(t.Context(), root, DefaultTenant, "micro", httpapi.DeleteOptions{})
	w.must(err)
	w.sound()
}

func TestOrphanStatus(t *testing.T) {
	w := newWorld(t)
	s := w.server("web")
	w.phase(s, api.PhaseRunning)
	w.write(state.ServerStatus+"gone", state.Status{})
	differences, err := w.Verify(t.Context())
	if err != nil || len(differences) != 1 || !strings.Contains(differences[0], "server-status/gone") {
		t.Errorf("%v, %v", differences, err)
	}
	w.Control = start(t, w.store, w.images)
	w.sound()
	if len(w.ix.statuses) != 1 {
		t.Errorf("%v", w.ix.statuses)
	}
}

// A store that comes up empty knows neither the host nor its images: nothing goes.
func TestEmptyStoreDestroysNothing(t *testing.T) {
	images := &fakeImages{}
	images.keep("precious", "tree")
	c := start(t, openStore(t), images)
	id := "01hzzzzzzzzzzzzzzzzzzzzzzz"
	m := kept(&id)
	m.Holds = "2 directories in servers"
	if _, err := c.RegisterHost(t.Context(), m); err == nil || !strings.Contains(err.Error(), "host-id") || !strings.Contains(err.Error(), m.Holds) {
		t.Fatalf("%v", err)
	}
	if len(c.ix.hosts) != 0 {
		t.Error("a host was made")
	}
	m.Holds = ""
	for range 2 {
		if got, err := c.RegisterHost(t.Context(), m); got != id || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
		if len(images.have) != 1 {
			t.Fatal("content was removed")
		}
	}
	h, err := c.Hosts().Get(t.Context(), root, "", "h1")
	if err != nil || h.ID != id || c.ix.keys[state.HostLedger+id] == 0 {
		t.Errorf("%+v, %v", h, err)
	}
	if list, err := c.Images().List(t.Context(), root, DefaultTenant, httpapi.ListOptions{}); err != nil || list.Total != 0 {
		t.Errorf("%+v, %v", list, err)
	}
}
