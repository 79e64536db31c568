package e2e

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
	"github.com/croftproject/croft/test/world"
)

// testCrowd asks for 200 servers at once where there is room for some: exactly those are admitted, all of them run, and
// their deletion frees everything.
func testCrowd(t *testing.T, w *world.World) {
	before, err := w.Hosts().Get(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	spec := small(api.ModelOS, "runc")
	spec.Memory.Limit = 24 * api.MiB
	spec.CPU.Entitlement = 100
	room := int((before.Status.Allocatable.CPU - before.Status.Allocated.CPU) / spec.CPU.Entitlement)
	var mu sync.Mutex
	var all sync.WaitGroup
	var admitted []string
	for i := range 200 {
		all.Go(func() {
			s, err := w.Servers(world.Tenant).Create(t.Context(), client.Create[api.ServerSpec]{Name: fmt.Sprintf("crowd-%d", i), Spec: spec})
			var p *api.Problem
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				admitted = append(admitted, s.Name)
			case !errors.As(err, &p) || p.Code != api.CodeCapacity || len(p.Short) == 0:
				t.Errorf("create %d: %v", i, err)
			}
		})
	}
	all.Wait()
	if len(admitted) != room {
		t.Errorf("%d servers were admitted, and there was room for %d", len(admitted), room)
	}
	for _, name := range admitted {
		w.Ready(t, name)
	}
	for _, name := range admitted {
		all.Go(func() {
			if err := w.Delete(t.Context(), world.Tenant, name); err != nil {
				t.Errorf("delete %s: %v", name, err)
			}
		})
	}
	all.Wait()
	after, err := w.Hosts().Get(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	if after.Status.Allocated != before.Status.Allocated {
		t.Errorf("promised before %+v, and after all were deleted %+v", before.Status.Allocated, after.Status.Allocated)
	}
	w.NoTrace(t)
}
