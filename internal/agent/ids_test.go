package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/croftproject/croft/api"
)

// serverDir makes the directory of a server.
func serverDir(t *testing.T, daemon, id string) string {
	t.Helper()
	dir := filepath.Join(daemon, "servers", id)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

func take(t *testing.T, r ranges, id, dir string) uint32 {
	t.Helper()
	base, err := r.take(id, dir)
	if err != nil {
		t.Fatal(err)
	}
	return base
}

// Daemons whose servers have the same ids, so that all want the same range: that of a server that is gone.
func TestConcurrentDaemonsShareNoIDs(t *testing.T) {
	r := ranges{dir: t.TempDir()}
	dead := t.TempDir()
	for i := range 100 {
		id := fmt.Sprint("server", i)
		take(t, r, id, serverDir(t, dead, id))
	}
	if err := os.RemoveAll(dead); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	owner := map[uint32]string{}
	var all sync.WaitGroup
	daemons := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	for i := range 100 {
		id := fmt.Sprint("server", i)
		for _, daemon := range daemons {
			dir := serverDir(t, daemon, id)
			all.Go(func() {
				base, err := r.take(id, dir)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				if owner[base] != "" || base%idRange != 0 || base < firstBase || base >= lastBase {
					t.Errorf("%s got %d, which %q has", dir, base, owner[base])
				}
				owner[base] = dir
			})
		}
	}
	all.Wait()
}

func TestRangesOfTheGoneAreTaken(t *testing.T) {
	r := ranges{dir: filepath.Join(t.TempDir(), "ids")}
	dead, live := t.TempDir(), t.TempDir()
	base := take(t, r, "s", serverDir(t, dead, "s"))
	other := take(t, r, "s", serverDir(t, live, "s"))
	if other == base {
		t.Fatalf("both have %d", base)
	}
	if again := take(t, r, "s", serverDir(t, live, "s")); again != other {
		t.Errorf("asked again, it got %d, and had %d", again, other)
	}
	if err := os.RemoveAll(dead); err != nil {
		t.Fatal(err)
	}
	third := serverDir(t, t.TempDir(), "s")
	if got := take(t, r, "s", third); got != base {
		t.Errorf("the range of a daemon that is gone was passed over: got %d, want %d", got, base)
	}
	if err := r.free(base, filepath.Join(live, "servers", "s")); err != nil {
		t.Fatal(err)
	}
	if err := r.keep(base, serverDir(t, live, "t")); !errors.Is(err, errTaken) {
		t.Errorf("a range was taken from who has it: %v", err)
	}
	for range 2 {
		if err := r.free(base, third); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.keep(base, serverDir(t, live, "t")); err != nil {
		t.Errorf("keep what was given back: %v", err)
	}
}

func TestRangesOfOthersArePassedOver(t *testing.T) {
	work := t.TempDir()
	subIDs := filepath.Join(work, "subuid")
	r := ranges{dir: filepath.Join(work, "ids"), subIDs: []string{filepath.Join(work, "none"), subIDs}}
	dir := serverDir(t, work, "s")
	base := take(t, r, "s", dir)
	if err := r.free(base, dir); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		lines string
		moved bool
	}{
		{"", false},
		{"# all of them\nroot:1:x\nroot\n", false},
		{fmt.Sprintf("root:%d:1\n", base+idRange-1), true},
		{fmt.Sprintf("root:%d:1\n", base+idRange), false},
		{fmt.Sprintf("a:1:1\nroot:%d:2", base-1), true},
		{fmt.Sprintf("root:%d:1\n", base-1), false},
		{"root:100000:1000000000\n", base < 1000100000},
	} {
		if err := os.WriteFile(subIDs, []byte(c.lines), 0o600); err != nil {
			t.Fatal(err)
		}
		got := take(t, r, "s", dir)
		if (got != base) != c.moved {
			t.Errorf("with %q: got %d, and %d without", c.lines, got, base)
		}
		if err := r.free(got, dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(subIDs, []byte("root:0:4294967295\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := r.take("s", dir); err == nil {
		t.Errorf("got %d, where all was handed to others", got)
	}
}

// Servers that have the same ids, from before daemons knew of each other, run on with them.
func TestAgentsShareNoIDs(t *testing.T) {
	a, b := newHost(t), newHost(t)
	b.ids = a.ids
	_, stopA := a.agent()
	_, stopB := b.agent()
	a.server("twin", nil)
	b.server("twin", nil)
	a.phase("twin", api.PhaseRunning)
	b.phase("twin", api.PhaseRunning)
	base := a.remembers("twin").IDBase
	l := b.remembers("twin")
	if l.IDBase == base {
		t.Fatalf("both have %d", base)
	}
	stopA()
	stopB()

	l.IDBase = base
	if err := errors.Join(l.save(filepath.Join(b.dir, "servers", "twin")), os.RemoveAll(a.ids)); err != nil {
		t.Fatal(err)
	}
	a.agent()
	b.agent()
	if got := b.phase("twin", api.PhaseRunning); got.Restarts != 0 {
		t.Errorf("it was restarted: %+v", got)
	}
	b.server("twin", deleted)
	b.gone("twin")
	if !same(ranges{dir: a.ids}.link(base), filepath.Join(a.dir, "servers", "twin")) {
		t.Error("the other's range was given back")
	}
	a.server("twin", deleted)
	a.gone("twin")
	a.clean()
	b.clean()
}

// remembers is what the host remembers of a server.
func (h *host) remembers(id string) *local {
	h.t.Helper()
	l, err := loadLocal(filepath.Join(h.dir, "servers", id), id)
	if err != nil || l == nil {
		h.t.Fatalf("nothing is remembered of %s: %v", id, err)
	}
	return l
}
