package daemon

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/store"
)

// measured is a store whose answers are counted and timed.
type measured struct {
	store.Store
	took *prometheus.HistogramVec
}

func measure(s store.Store) measured {
	return measured{s, prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "croft_store_request_duration_seconds", Help: "Time that requests to the store took, by operation and outcome.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
	}, []string{"operation", "outcome"})}
}

func (m measured) Get(ctx context.Context, key string) (r store.Record, err error) {
	defer m.observe("get", time.Now(), &err)
	return m.Store.Get(ctx, key)
}

func (m measured) List(ctx context.Context, prefix string) (r []store.Record, revision int64, err error) {
	defer m.observe("list", time.Now(), &err)
	return m.Store.List(ctx, prefix)
}

func (m measured) Commit(ctx context.Context, tx store.Tx) (revision int64, err error) {
	defer m.observe("commit", time.Now(), &err)
	return m.Store.Commit(ctx, tx)
}

func (m measured) observe(operation string, began time.Time, err *error) {
	m.took.WithLabelValues(operation, outcome(*err)).Observe(time.Since(began).Seconds())
}

// outcome of a request to the store. A record that is not there is an answer too.
func outcome(err error) string {
	switch {
	case err == nil, errors.Is(err, store.ErrNotFound):
		return "done"
	case errors.Is(err, store.ErrConflict):
		return "conflict"
	case errors.Is(err, store.ErrUnavailable):
		return "unavailable"
	case errors.Is(err, context.Canceled):
		return "cancelled"
	}
	return "failed"
}

// room is a prometheus.Collector of what the host has, may promise and has promised.
type room struct {
	host func() (api.HostStatus, error)
	pool func() (free api.Bytes, err error)
}

// amounts of resources, each in its unit.
var amounts = []struct {
	name, unit string
	of         func(api.Resources) float64
}{
	{"cpu_cores", "CPU, in CPUs,", func(r api.Resources) float64 { return float64(r.CPU) / float64(api.CPU1) }},
	{"memory_bytes", "Memory", func(r api.Resources) float64 { return float64(r.Memory) }},
	{"disk_bytes", "Disk", func(r api.Resources) float64 { return float64(r.Disk) }},
}

// parts of the host that are counted.
var parts = []struct {
	name, help string
	of         func(api.HostStatus) api.Resources
}{
	{"capacity", "that the host has.", func(s api.HostStatus) api.Resources { return s.Capacity }},
	{"allocatable", "that may be promised to servers.", func(s api.HostStatus) api.Resources { return s.Allocatable }},
	{"allocated", "that is promised to servers.", func(s api.HostStatus) api.Resources { return s.Allocated }},
}

var roomDescs = func() (all [][]*prometheus.Desc) {
	for _, p := range parts {
		var row []*prometheus.Desc
		for _, a := range amounts {
			row = append(row, prometheus.NewDesc("croft_host_"+p.name+"_"+a.name, a.unit+" "+p.help, nil, nil))
		}
		all = append(all, row)
	}
	return all
}()

var freeDesc = prometheus.NewDesc("croft_pool_free_bytes", "Space that is free in the pool.", nil, nil)

// Describe and Collect make it a prometheus.Collector. What can't be read now is left out.
func (r room) Describe(ch chan<- *prometheus.Desc) {
	for _, row := range roomDescs {
		for _, d := range row {
			ch <- d
		}
	}
	ch <- freeDesc
}

func (r room) Collect(ch chan<- prometheus.Metric) {
	if st, err := r.host(); err == nil {
		for i, p := range parts {
			for j, a := range amounts {
				ch <- prometheus.MustNewConstMetric(roomDescs[i][j], prometheus.GaugeValue, a.of(p.of(st)))
			}
		}
	}
	if free, err := r.pool(); err == nil {
		ch <- prometheus.MustNewConstMetric(freeDesc, prometheus.GaugeValue, float64(free))
	}
}
