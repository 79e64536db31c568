package agent

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/state"
	"github.com/croftproject/croft/internal/store"
)

// ProbeEngines asks every engine what it can do on this host, all at the same time.
func ProbeEngines(ctx context.Context, engines []engine.Engine) []api.EngineStatus {
	out := make([]api.EngineStatus, len(engines))
	each(len(engines), func(i int) {
		t, r := engines[i].Traits(), engines[i].Probe(ctx)
		out[i] = api.EngineStatus{
			Name: t.Name, Model: t.Model, Available: r.Available, Reason: r.Reason, Version: r.Version,
			Accelerator: r.Accelerator, Abilities: r.Abilities, Grants: r.Grants, Withheld: r.Withheld,
		}
	})
	return out
}

// ReportHost writes the host's own status.
func (a *Agent) ReportHost(ctx context.Context, st api.HostStatus) error {
	a.mu.Lock()
	a.accel = map[string]string{}
	for _, e := range st.Engines {
		a.accel[e.Name] = e.Accelerator
	}
	for id := range a.desired { // their statuses tell the accelerator
		defer a.loop.Wake(id)
	}
	a.mu.Unlock()
	st.Seen = a.Now()
	value, err := json.Marshal(st)
	if err != nil {
		return err
	}
	_, err = a.Store.Commit(ctx, store.Tx{Reports: true, Puts: []store.Put{{Key: state.HostStatus + a.HostID, Value: value}}})
	return err
}

// Guest is the running guest of a server, with what it was launched as; nil where there is none.
func (a *Agent) Guest(id string) (engine.Guest, *engine.Machine) {
	a.mu.Lock()
	m := a.machines[id]
	a.mu.Unlock()
	if m == nil {
		return nil, nil
	}
	g, b := m.guestOf()
	if g == nil {
		return nil, nil
	}
	select {
	case <-g.Done():
		return nil, nil
	default:
		return g, b
	}
}

// Usage reads what the servers of this host use now, from their control groups and ports.
func (a *Agent) Usage(ctx context.Context) map[string]api.Usage {
	a.mu.Lock()
	servers := maps.Clone(a.desired)
	a.mu.Unlock()
	a.usage.Lock()
	defer a.usage.Unlock()
	out := map[string]api.Usage{}
	for _, id := range slices.Sorted(maps.Keys(servers)) {
		if g, _ := a.Guest(id); g == nil {
			continue
		}
		rec := servers[id]
		u, err := a.Cgroups.Usage(id)
		if err != nil {
			continue // it ended meanwhile
		}
		usage := api.Usage{
			Server: rec.Meta.Name, Tenant: rec.Meta.Tenant, CPUTime: api.Duration(u.CPUTime), Memory: u.Memory,
			PIDs: u.PIDs, Read: u.Read, Written: u.Written, CPU: a.rates.since(id, u.CPUTime, a.Now()),
		}
		for _, p := range rec.Ports {
			if c, err := a.Net.Counters(ctx, p.NetworkID, p.ID); err == nil {
				usage.RxBytes += api.Bytes(c.RxBytes)
				usage.TxBytes += api.Bytes(c.TxBytes)
			}
		}
		out[id] = usage
	}
	a.rates.keep(out)
	return out
}

// rates turns CPU times into the CPU used since they were asked for before.
type rates struct{ by map[string]sample }

type sample struct {
	used time.Duration
	at   time.Time
	rate api.MilliCPU
}

// leastSpan is the shortest span that a rate is taken over; asked more often, the last one is given.
const leastSpan = 200 * time.Millisecond

func (r *rates) since(id string, used time.Duration, now time.Time) api.MilliCPU {
	before, known := r.by[id]
	span := now.Sub(before.at)
	switch {
	case !known || used < before.used:
		r.by[id] = sample{used: used, at: now}
	case span < leastSpan:
		return before.rate
	default:
		rate := api.MilliCPU(float64(used-before.used) / float64(span) * 1000)
		r.by[id] = sample{used: used, at: now, rate: rate}
		return rate
	}
	return 0
}

// keep forgets servers that are not in out.
func (r *rates) keep(out map[string]api.Usage) {
	for id := range r.by {
		if _, ok := out[id]; !ok {
			delete(r.by, id)
		}
	}
}
