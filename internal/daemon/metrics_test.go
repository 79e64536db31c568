package daemon

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/store"
)

func gathered(t *testing.T, c prometheus.Collector) map[string]float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(c)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			if h := m.GetHistogram(); h != nil {
				out[name] = float64(h.GetSampleCount())
			} else {
				out[name] = m.GetGauge().GetValue()
			}
		}
	}
	return out
}

func TestRoomIsMeasured(t *testing.T) {
	st := api.HostStatus{
		Capacity:    api.Resources{CPU: 2000, Memory: 8 * api.GiB, Disk: 100 * api.GiB},
		Allocatable: api.Resources{CPU: 1900}, Allocated: api.Resources{CPU: 250, Memory: api.GiB},
	}
	got := gathered(t, room{
		host: func() (api.HostStatus, error) { return st, nil },
		pool: func() (api.Bytes, error) { return 7, nil },
	})
	for name, want := range map[string]float64{
		"croft_host_capacity_cpu_cores": 2, "croft_host_capacity_disk_bytes": 100 << 30, "croft_host_allocatable_cpu_cores": 1.9,
		"croft_host_allocated_cpu_cores": 0.25, "croft_host_allocated_memory_bytes": 1 << 30, "croft_pool_free_bytes": 7,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	none := gathered(t, room{
		host: func() (api.HostStatus, error) { return st, errors.New("away") },
		pool: func() (api.Bytes, error) { return 0, errors.New("away") },
	})
	if len(none) > 0 {
		t.Errorf("what can't be read is told: %v", none)
	}
}

// refusing is a store that answers each commit with an error.
type refusing struct {
	store.Store
	err error
}

func (r *refusing) Commit(context.Context, store.Tx) (int64, error) { return 0, r.err }

func TestStoreIsMeasured(t *testing.T) {
	r := &refusing{}
	m := measure(r)
	for _, r.err = range []error{nil, fmt.Errorf("x: %w", store.ErrConflict), store.ErrUnavailable, store.ErrUnavailable, errors.New("other")} {
		if _, err := m.Commit(t.Context(), store.Tx{}); !errors.Is(err, r.err) {
			t.Errorf("%v became %v", r.err, err)
		}
	}
	got := gathered(t, m.took)
	const name = "croft_store_request_duration_seconds commit "
	for outcome, want := range map[string]float64{"done": 1, "conflict": 1, "unavailable": 2, "failed": 1} {
		if got[name+outcome] != want {
			t.Errorf("%s: %v, want %v", outcome, got[name+outcome], want)
		}
	}
}
