package control

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/ledger"
	"github.com/croftproject/croft/internal/state"
	"github.com/croftproject/croft/internal/store"
)

// Verify counts every ledger anew from the records of what it is about, as they are in the store, and returns how the two
// differ, a line for each difference. A sound store has none.
func (c *Control) Verify(ctx context.Context) ([]string, error) {
	records, revision, err := c.o.Store.List(ctx, "")
	if err != nil {
		return nil, unavailable(err)
	}
	fresh := newIndex(c.o.Logger)
	batch := store.Batch{Revision: revision}
	names := map[string]string{}
	for _, r := range records {
		batch.Changes = append(batch.Changes, store.Event{Record: r})
		if strings.HasPrefix(r.Key, state.Names) {
			var id string
			if err := json.Unmarshal(r.Value, &id); err != nil {
				return []string{fmt.Sprintf("%s: %v", r.Key, err)}, nil
			}
			names[r.Key] = id
		}
	}
	fresh.apply(batch)
	out := append(checkLedgers(fresh), checkHeld(fresh, names)...)
	for _, id := range fresh.orphans() {
		out = append(out, fmt.Sprintf("%s%s is the status of a server that is gone", state.ServerStatus, id))
	}
	return out, nil
}

// orphans are the ids of server statuses without a server.
func (ix *index) orphans() []string {
	var out []string
	for id := range ix.statuses {
		if _, ok := ix.servers[id]; !ok {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// sweep removes server statuses without a server: a report that came in after the server went.
func (c *Control) sweep(ctx context.Context) error {
	for {
		var more bool
		_, err := c.write(ctx, func(d *draft) error {
			found := d.ix.orphans()
			more = len(found) > pruneStep
			for _, id := range found[:min(pruneStep, len(found))] {
				d.absent(state.Servers + id)
				d.remove(state.ServerStatus + id)
			}
			return nil
		})
		if err != nil || !more {
			return err
		}
	}
}

// counted are the ledgers, counted from the records.
type counted struct {
	hosts    map[string]ledger.Host
	tenants  map[string]ledger.Tenant
	networks map[string]ledger.Network
	images   map[string]state.ImageUse
	uplinks  map[string]ledger.Uplink
	problems []string
}

func checkLedgers(ix *index) []string {
	n := &counted{
		hosts: map[string]ledger.Host{}, tenants: map[string]ledger.Tenant{},
		networks: map[string]ledger.Network{}, images: map[string]state.ImageUse{},
		uplinks: map[string]ledger.Uplink{},
	}
	for _, id := range slices.Sorted(maps.Keys(ix.servers)) {
		n.server(ix, ix.servers[id].v)
	}
	for _, r := range ix.networks {
		n.charge(ix, r.v.Meta.Tenant, usageOfNetwork(&r.v.Spec))
	}
	for _, r := range ix.images {
		n.charge(ix, r.v.Meta.Tenant, ledger.Usage{Images: 1})
	}
	for _, r := range ix.tenants {
		if e := ix.tables[kindTenant].named("", r.v.Spec.Parent); e != nil {
			l := n.tenants[e.meta.ID]
			l.Tenants++
			n.tenants[e.meta.ID] = l
		}
	}
	for key, u := range n.uplinks {
		host, _, _ := strings.Cut(key, "/")
		l := n.hosts[host]
		l.Bandwidth += u.Need()
		n.hosts[host] = l
	}
	out := n.problems
	out = append(out, differ("uplink", ix.uplinkLedgers, n.uplinks)...)
	out = append(out, differ("host", ix.hostLedgers, n.hosts)...)
	out = append(out, differ("tenant", ix.tenantLedgers, n.tenants)...)
	out = append(out, differ("network", ix.networkLedgers, n.networks)...)
	return append(out, differ("image", ix.imageLedgers, n.images)...)
}

// unlimited is a host on which everything has room.
var unlimited = ledger.Room{
	Capacity:   api.Resources{CPU: 1 << 60, Memory: 1 << 62, HugePages: 1 << 62, Disk: 1 << 62},
	Overcommit: api.Overcommit{CPU: 100, Memory: 100, Disk: 100},
}

func (n *counted) server(ix *index, s *state.Server) {
	room := unlimited
	room.CPUs = s.CPUs
	next, _, short := n.hosts[s.HostID].Change(room, ledger.Ask{}, ask(s))
	if len(short) > 0 {
		n.problems = append(n.problems, fmt.Sprintf("server %s: two servers have the same CPUs: %v", s.Meta.ID, s.CPUs))
	}
	n.hosts[s.HostID] = next
	n.charge(ix, s.Meta.Tenant, usage(s))
	for _, p := range s.Ports {
		r, ok := ix.networks[p.NetworkID]
		if !ok {
			n.problems = append(n.problems, fmt.Sprintf("server %s is in network %s, which is gone", s.Meta.ID, p.NetworkID))
			continue
		}
		next, _, err := n.networks[p.NetworkID].Take(r.v.Spec.Subnets[0], p.Address)
		if err != nil {
			n.problems = append(n.problems, fmt.Sprintf("server %s: address %v", s.Meta.ID, err))
			continue
		}
		n.networks[p.NetworkID] = next
		if e := ix.tables[kindTenant].named("", s.Meta.Tenant); e != nil {
			at, of := s.HostID+"/"+e.meta.ID, ix.tenants[e.meta.ID].v.Spec.Bandwidth
			n.uplinks[at] = n.uplinks[at].Attach(ledger.Commitment{
				Network: p.NetworkID, OfTenant: of.Committed, TenantPeak: of.Peak, OfNetwork: r.v.Spec.Bandwidth.Committed,
			})
		}
	}
	for _, id := range []string{s.ImageID, s.CDROMID} {
		if id != "" {
			n.images[id] = state.ImageUse{Users: n.images[id].Users + 1}
		}
	}
}

func (n *counted) charge(ix *index, tenant string, u ledger.Usage) {
	line, err := ix.lineage(tenant)
	if err != nil {
		n.problems = append(n.problems, fmt.Sprintf("tenant %s owns something and is gone", tenant))
	}
	for _, t := range line {
		id := t.v.Meta.ID
		n.tenants[id], _ = n.tenants[id].Change(tenant, api.Quota{}, ledger.Usage{}, u)
	}
}

func differ[T any](what string, have map[string]rec[T], want map[string]T) []string {
	ids := map[string]bool{}
	for id := range have {
		ids[id] = true
	}
	for id := range want {
		ids[id] = true
	}
	var out []string
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		if h := or(have[id]); !reflect.DeepEqual(h, want[id]) {
			out = append(out, fmt.Sprintf("ledger of %s %s says %+v, and its records say %+v", what, id, h, want[id]))
		}
	}
	return out
}

// checkHeld checks that every resource holds its name, and that no name is held by nothing.
func checkHeld(ix *index, names map[string]string) []string {
	var out []string
	held := map[string]bool{}
	for _, k := range []kind{kindServer, kindNetwork, kindImage, kindTenant, kindHost} {
		for id, e := range ix.tables[k].byID {
			key := state.NameKey(string(k), e.meta.Tenant, e.meta.Name)
			held[key] = true
			if names[key] != id {
				out = append(out, fmt.Sprintf("%s is held by %q, not by %s", key, names[key], id))
			}
		}
	}
	for key, id := range names {
		if !held[key] {
			out = append(out, fmt.Sprintf("%s is held by %q, which is gone", key, id))
		}
	}
	slices.Sort(out)
	return out
}
