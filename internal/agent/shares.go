package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/hostnet"
	"github.com/croftproject/croft/internal/reconcile"
	"github.com/croftproject/croft/internal/state"
	"github.com/croftproject/croft/internal/store"
)

// shares keeps the host's uplink divided as the profiles of tenants and networks say.
type shares struct {
	nets *networks
	loop *reconcile.Loop

	setting sync.Mutex      // one division at a time; held through it
	applied *hostnet.Shares // last, successfully; nil: not known
	seen    bool            // the loop looks at it again and again

	mu             sync.Mutex
	tenants        map[string]api.Bandwidth // by name
	listed         bool                     // tenants are known
	rate, reserved api.BitRate              // of the uplink
	told           bool                     // they are known
}

// theUplink is the key of the only thing that the loop sees to.
const theUplink = "uplink"

func newShares(n *networks) *shares {
	s := &shares{nets: n, tenants: map[string]api.Bandwidth{}}
	s.loop = reconcile.New(s.see, 1, func(_ string, err error) {
		n.a.Logger.Error("the division of the uplink needs another try", "error", err)
	})
	return s
}

func (s *shares) wake() { s.loop.Wake(theUplink) }

// healing is how often a divided uplink is looked at: somebody may have changed something by hand.
const healing = 5 * time.Second

// see has the uplink divided as it is to be, again and again while it is, whatever was done before.
func (s *shares) see(ctx context.Context, _ string) (time.Duration, error) {
	s.setting.Lock()
	defer s.setting.Unlock()
	s.applied = nil
	if err := s.divide(ctx); err != nil {
		return 0, err
	}
	if s.seen = s.applied != nil && s.applied.Divides(); !s.seen {
		return 0, nil
	}
	return healing, nil
}

// set divides the uplink as it is to be now, unless it was divided so.
func (s *shares) set(ctx context.Context) error {
	s.setting.Lock()
	defer s.setting.Unlock()
	err := s.divide(ctx)
	if s.applied != nil && s.applied.Divides() && !s.seen {
		s.wake()
	}
	return err
}

// divide is set; s.setting is held.
func (s *shares) divide(ctx context.Context) error {
	divider, ok := s.nets.a.Net.(hostnet.Divider)
	if !ok {
		return nil
	}
	want, known := s.wanted()
	if !known { // what the last daemon did holds meanwhile
		return nil
	}
	if s.applied != nil && reflect.DeepEqual(*s.applied, want) {
		return nil
	}
	s.applied = nil
	if err := divider.SetShares(ctx, want); err != nil {
		return err
	}
	s.applied = &want
	return nil
}

// wanted is how the uplink is to be divided: between the networks that have a port here, and a way out. It is not known
// until tenants and uplink are.
func (s *shares) wanted() (out hostnet.Shares, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.listed || !s.told {
		return out, false
	}
	s.nets.mu.Lock()
	defer s.nets.mu.Unlock()
	by := map[string]*hostnet.TenantShare{}
	for id, net := range s.nets.by {
		if net.spec == nil || len(net.ports) == 0 || net.spec.Spec.NAT != nil && !*net.spec.Spec.NAT {
			continue
		}
		tenant := net.spec.Meta.Tenant
		if by[tenant] == nil {
			by[tenant] = &hostnet.TenantShare{ID: tenant, Profile: profile(s.tenants[tenant])}
		}
		by[tenant].Networks = append(by[tenant].Networks, hostnet.NetworkShare{ID: id, Profile: profile(net.spec.Spec.Bandwidth)})
	}
	out = hostnet.Shares{Rate: s.rate, Reserved: s.reserved}
	for _, t := range by {
		slices.SortFunc(t.Networks, func(a, b hostnet.NetworkShare) int { return cmp.Compare(a.ID, b.ID) })
		out.Tenants = append(out.Tenants, *t)
	}
	slices.SortFunc(out.Tenants, func(a, b hostnet.TenantShare) int { return cmp.Compare(a.ID, b.ID) })
	if !out.Divides() { // whatever there is: nothing is done
		return hostnet.Shares{}, true
	}
	return out, true
}

func profile(b api.Bandwidth) hostnet.Profile {
	return hostnet.Profile{Committed: b.Committed, Peak: b.Peak, Burst: b.Burst}
}

// SetUplink says what the host's uplink carries in each direction, and how much of that is kept for the host's own traffic.
func (a *Agent) SetUplink(rate, reserved api.BitRate) {
	s := a.nets.shares
	s.mu.Lock()
	s.rate, s.reserved, s.told = rate, reserved, true
	s.mu.Unlock()
	s.wake()
}

// watchTenants keeps the tenants' profiles.
func (a *Agent) watchTenants(ctx context.Context) {
	s := a.nets.shares
	names := map[string]string{} // by id
	take := func(r store.Record, deleted bool) {
		id := strings.TrimPrefix(r.Key, state.Tenants)
		s.mu.Lock()
		defer s.mu.Unlock()
		if deleted {
			delete(s.tenants, names[id])
			delete(names, id)
			return
		}
		var rec state.Tenant
		if err := json.Unmarshal(r.Value, &rec); err != nil {
			a.Logger.Error("record of a tenant can't be read; its profile is left as it is", "tenant", id, "error", err)
			return
		}
		names[id], s.tenants[rec.Meta.Name] = rec.Meta.Name, rec.Spec.Bandwidth
	}
	follow(ctx, a, state.Tenants, func(all []store.Record) {
		s.mu.Lock()
		clear(s.tenants)
		s.mu.Unlock()
		for _, r := range all {
			take(r, false)
		}
		s.mu.Lock()
		s.listed = true
		s.mu.Unlock()
		s.wake()
	}, func(e store.Event) {
		take(e.Record, e.Deleted)
		s.wake()
	})
}
