package control

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/state"
	"github.com/croftproject/croft/internal/store"
)

func names(t testing.TB, r httpapi.Raw) []string {
	t.Helper()
	var out []string
	for _, item := range r.Items {
		var o struct {
			Name string `json:"name"`
		}
		if err := json.Unmarshal(item, &o); err != nil {
			t.Fatal(err)
		}
		out = append(out, o.Name)
	}
	return out
}

// fill writes servers as if they had been created: admission is not what is measured here.
func fill(t testing.TB, w *world, n int) {
	var revision int64
	for i := 0; i < n; i += 100 {
		var tx store.Tx
		for j := i; j < min(i+100, n); j++ {
			id := w.ids.next()
			spec := small()
			fillIn(&spec, 0)
			rec := &state.Server{
				Meta: api.Meta{Name: fmt.Sprintf("s%04d", j), Tenant: DefaultTenant, ID: id, Labels: map[string]string{"odd": fmt.Sprint(j % 2)}},
				Spec: spec, Host: "h1", HostID: w.hostID, Engine: "runc",
			}
			tx.Puts = append(tx.Puts, store.Encode(state.Servers+id, rec),
				store.Encode(state.ServerStatus+id, state.Status{ServerStatus: api.ServerStatus{Phase: api.PhaseRunning}}))
		}
		var err error
		revision, err = w.store.Commit(t.Context(), tx)
		w.must(err)
	}
	w.must(w.ix.wait(t.Context(), revision))
}

func TestPaging(t *testing.T) {
	w := newWorld(t)
	fill(t, w, 95)
	var seen []string
	o := httpapi.ListOptions{Limit: 10}
	for page := 0; ; page++ {
		r, err := w.Servers().List(t.Context(), root, DefaultTenant, o)
		w.must(err)
		if want := 95 + page; r.Total != want {
			t.Errorf("page %d: %d in all, want %d", page, r.Total, want)
		}
		seen = append(seen, names(t, r)...)
		if o.Cursor = r.Next; r.Next == "" {
			break
		}
		// Something comes before the cursor, and the cursor's own server goes and is renamed: nothing else moves.
		w.server(fmt.Sprintf("a%d", page))
	}
	seen = slices.DeleteFunc(seen, func(name string) bool { return name[0] == 'a' })
	if len(seen) != 95 || !slices.IsSorted(seen) || len(slices.Compact(slices.Clone(seen))) != 95 {
		t.Errorf("%d servers: %v", len(seen), seen)
	}
	for name, tc := range map[string]struct {
		o     httpapi.ListOptions
		total int
	}{
		"label":  {httpapi.ListOptions{Labels: map[string]string{"odd": "1"}}, 47},
		"name":   {httpapi.ListOptions{Filter: map[string]string{"name": "s0001"}}, 1},
		"prefix": {httpapi.ListOptions{Filter: map[string]string{"name": "s000*"}}, 10},
		"phase":  {httpapi.ListOptions{Filter: map[string]string{"phase": "running"}}, 95},
		"model":  {httpapi.ListOptions{Filter: map[string]string{"model": "full"}}, 0},
		"all":    {httpapi.ListOptions{AllTenants: true, Labels: map[string]string{"odd": "0"}}, 48},
	} {
		if r, err := w.Servers().List(t.Context(), root, DefaultTenant, tc.o); err != nil || r.Total != tc.total || len(r.Items) != min(100, tc.total) {
			t.Errorf("%s: %d of %d, %v; want %d", name, len(r.Items), r.Total, err, tc.total)
		}
	}
	for _, bad := range []httpapi.ListOptions{
		{Limit: -1}, {Limit: 1001}, {Cursor: "%%%"}, {Filter: map[string]string{"color": "red"}},
	} {
		_, err := w.Servers().List(t.Context(), root, DefaultTenant, bad)
		problem(t, err, api.CodeInvalid)
	}
	_, err := w.Servers().List(t.Context(), httpapi.Caller{Tenant: DefaultTenant}, DefaultTenant, httpapi.ListOptions{AllTenants: true})
	problem(t, err, api.CodeForbidden)
	_, err = w.Servers().List(t.Context(), httpapi.Caller{Tenant: DefaultTenant}, DefaultTenant, httpapi.ListOptions{})
	w.must(err)
}

type serverChange = api.Change[api.Server]

func nextChange(t *testing.T, ch <-chan []byte) serverChange {
	t.Helper()
	select {
	case data, ok := <-ch:
		if !ok {
			t.Fatal("the watch ended")
		}
		var c serverChange
		if err := json.Unmarshal(data, &c); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		return c
	case <-time.After(20 * time.Second):
		t.Fatal("the watch delivers nothing")
	}
	panic("unreachable")
}

func TestWatch(t *testing.T) {
	w := newWorld(t)
	a := w.server("a")
	ctx, cancel := context.WithCancel(t.Context())
	ch, err := w.Servers().Watch(ctx, root, DefaultTenant, httpapi.ListOptions{}, 0)
	w.must(err)
	if c := nextChange(t, ch); c.Type != api.ChangePut || c.Object.Name != "a" {
		t.Fatalf("%+v", c)
	}
	running, err := w.Servers().Watch(ctx, root, DefaultTenant, httpapi.ListOptions{Filter: map[string]string{"phase": "running"}}, 0)
	w.must(err)
	w.phase(a, api.PhaseRunning)
	if c := nextChange(t, ch); c.Object.Status.Phase != api.PhaseRunning || c.Object.Revision != a.Revision || c.Revision <= a.Revision {
		t.Fatalf("%+v", c)
	}
	if c := nextChange(t, running); c.Type != api.ChangePut {
		t.Fatalf("%+v", c)
	}
	w.phase(a, api.PhaseStopped)
	last := nextChange(t, ch)
	if c := nextChange(t, running); c.Type != api.ChangeDelete { // it no longer matches
		t.Fatalf("%+v", c)
	}
	w.remove("a")
	for _, want := range []api.ChangeType{api.ChangePut, api.ChangeDelete} {
		if c := nextChange(t, ch); c.Type != want || c.Object.Name != "a" {
			t.Fatalf("%+v, want %s", c, want)
		}
	}
	cancel()
	for range ch { // ends
	}
	// From a revision on: what came after it.
	ch, err = w.Servers().Watch(t.Context(), root, DefaultTenant, httpapi.ListOptions{}, last.Revision)
	w.must(err)
	for _, want := range []api.ChangeType{api.ChangePut, api.ChangeDelete} {
		if c := nextChange(t, ch); c.Type != want || c.Revision <= last.Revision {
			t.Fatalf("%+v, want %s", c, want)
		}
	}
	// What was before this control plane is not remembered.
	other := start(t, w.store, w.images)
	_, err = other.Servers().Watch(t.Context(), root, DefaultTenant, httpapi.ListOptions{}, 1)
	problem(t, err, api.CodeExpired)
	// Watches end with the control plane.
	ch, err = other.Servers().Watch(t.Context(), root, DefaultTenant, httpapi.ListOptions{}, 0)
	w.must(err)
	other.Close()
	for range ch { // ends
	}
}

// Only the end of a snapshot can be resumed after.
func TestSnapshotResumes(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"a", "b", "c"} {
		w.server(name)
	}
	ch, err := w.Servers().Watch(t.Context(), root, DefaultTenant, httpapi.ListOptions{}, 0)
	w.must(err)
	last := int64(0)
	for _, end := range []bool{false, false, true} {
		c := nextChange(t, ch)
		if last = c.Revision; (last > 0) != end {
			t.Errorf("%s is at revision %d", c.Object.Name, last)
		}
	}
	_, err = w.Servers().Watch(t.Context(), root, DefaultTenant, httpapi.ListOptions{}, last)
	w.must(err)
	_, err = w.Servers().Watch(t.Context(), root, DefaultTenant, httpapi.ListOptions{}, last+1000)
	problem(t, err, api.CodeExpired)
}

// A watch that broke between two changes of one transaction is told both again.
func TestBatchResumes(t *testing.T) {
	w := newWorld(t)
	w.server("before")
	all, odd := httpapi.ListOptions{}, httpapi.ListOptions{Labels: map[string]string{"odd": "1"}}
	watch := func(o httpapi.ListOptions, from int64) <-chan []byte {
		ch, err := w.Servers().Watch(t.Context(), root, DefaultTenant, o, from)
		w.must(err)
		return ch
	}
	from := w.ix.revision
	live := map[string]<-chan []byte{"all": watch(all, from), "odd": watch(odd, from)}
	fill(t, w, 4) // one transaction
	after := w.ix.revision
	for name, tc := range map[string]struct {
		o    httpapi.ListOptions
		want []string
	}{
		"all": {all, []string{"s0000", "s0001", "s0002", "s0003"}},
		"odd": {odd, []string{"s0001", "s0003"}},
	} {
		for _, ch := range []<-chan []byte{live[name], watch(tc.o, from)} {
			resume, cut := from, watch(tc.o, from)
			if c := nextChange(t, cut); c.Revision > 0 {
				resume = c.Revision
			}
			var rest []string
			for again := watch(tc.o, resume); len(rest) < len(tc.want); {
				rest = append(rest, nextChange(t, again).Object.Name)
			}
			var got []string
			for i := range tc.want {
				c := nextChange(t, ch)
				if got = append(got, c.Object.Name); (c.Revision == after) != (i == len(tc.want)-1) {
					t.Errorf("%s: change %d is at revision %d", name, i, c.Revision)
				}
			}
			slices.Sort(got)
			slices.Sort(rest)
			if !slices.Equal(got, tc.want) || !slices.Equal(rest, tc.want) {
				t.Errorf("%s: %v, resumed %v; want %v", name, got, rest, tc.want)
			}
		}
	}
}

// A watcher that does not read is closed, and does not hold up anybody.
func TestSlowWatcher(t *testing.T) {
	w := newWorld(t)
	ch, err := w.Servers().Watch(t.Context(), root, DefaultTenant, httpapi.ListOptions{}, 0)
	w.must(err)
	fill(t, w, backlog+200)
	n := 0
	for range ch {
		n++
	}
	if n > backlog+1 {
		t.Errorf("%d changes were kept for a watcher that does not read", n)
	}
}

// An index that missed changes, because its watch broke, makes up for them.
func TestRelist(t *testing.T) {
	w := newWorld(t)
	w.server("stays")
	gone := w.server("goes")
	ix := newIndex(w.o.Logger)
	records, revision, err := w.store.List(t.Context(), "")
	w.must(err)
	ix.apply(store.Batch{Revision: revision, Changes: ix.missing(records)})
	w.must(w.Gone(t.Context(), gone.ID))
	w.server("comes")
	records, revision, err = w.store.List(t.Context(), "")
	w.must(err)
	ix.apply(store.Batch{Revision: revision, Changes: ix.missing(records)})
	r, err := ix.list(selection{kind: kindServer}, httpapi.ListOptions{})
	w.must(err)
	if got := names(t, r); !slices.Equal(got, []string{"comes", "stays"}) {
		t.Errorf("%v", got)
	}
	if len(ix.keys) != len(w.ix.keys) {
		t.Errorf("%d keys, and %d in the other index", len(ix.keys), len(w.ix.keys))
	}
}

func TestPrune(t *testing.T) {
	w := newWorld(t)
	_, err := w.Tenants().Create(t.Context(), root, "", httpapi.Create[api.TenantSpec]{Name: "quiet"})
	w.must(err)
	_, err = w.Networks().Create(t.Context(), root, "quiet", httpapi.Create[api.NetworkSpec]{Name: "lan"})
	w.must(err)
	for i := range 20 {
		w.server(fmt.Sprintf("s%d", i))
	}
	w.must(w.pruneOnce(t.Context(), 5, 0))
	// A tenant with many events evicts nobody else's.
	if r, err := w.Events().List(t.Context(), root, "quiet", httpapi.ListOptions{}); err != nil || !slices.Equal(names(t, r), []string{"lan"}) {
		t.Errorf("of another tenant: %v, %v", names(t, r), err)
	}
	if r, err := w.Events().List(t.Context(), root, "", httpapi.ListOptions{AllTenants: true}); err != nil || r.Total != 5+1+3 {
		t.Errorf("%d events in all, %v: %v", r.Total, err, names(t, r)) // of the host and two tenants, too
	}
	r, err := w.Events().List(t.Context(), root, DefaultTenant, httpapi.ListOptions{})
	w.must(err)
	if got := names(t, r); !slices.Equal(got, []string{"s19", "s18", "s17", "s16", "s15"}) {
		t.Errorf("%v", got)
	}
	if jobs, _ := w.Jobs().List(t.Context(), root, DefaultTenant, httpapi.ListOptions{}); jobs.Total != 0 {
		t.Errorf("%d jobs are left", jobs.Total)
	}
}

func BenchmarkList1000(b *testing.B) {
	w := newWorld(b)
	fill(b, w, 1000)
	for b.Loop() {
		r, err := w.Servers().List(b.Context(), root, DefaultTenant, httpapi.ListOptions{Limit: 1000})
		if err != nil || len(r.Items) != 1000 {
			b.Fatal(len(r.Items), err)
		}
	}
}

func BenchmarkListFiltered(b *testing.B) {
	w := newWorld(b)
	fill(b, w, 1000)
	for b.Loop() {
		_, err := w.Servers().List(b.Context(), root, DefaultTenant, httpapi.ListOptions{Limit: 1000, Filter: map[string]string{"phase": "running"}})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCreate(b *testing.B) {
	w := newWorld(b)
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprintf("s%d", i)
		s, err := w.create(name)
		w.must(err)
		w.must(w.Gone(b.Context(), s.ID))
	}
}
