package store

import (
	"context"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// leases lets records that live equally long share leases, so that writing one grants none: etcd keeps a lease in
// memory and in its log. A lease is granted for the time asked and an eighth more, at most an hour, and given to
// records for that while; so a record lives at least as long as asked, and at most an hour longer.
type leases struct {
	client clientv3.Lease
	mu     sync.Mutex
	byTTL  map[int64]lease
}

type lease struct {
	id    clientv3.LeaseID
	until time.Time // given out until then
}

func (l *leases) get(ctx context.Context, ttl int64) (clientv3.LeaseID, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if have, ok := l.byTTL[ttl]; ok && time.Now().Before(have.until) {
		return have.id, nil
	}
	share := min(ttl/8, 3600)
	begun := time.Now()
	granted, err := l.client.Grant(ctx, ttl+share)
	if err != nil {
		return 0, fmt.Errorf("grant a lease: %w", err)
	}
	if l.byTTL == nil {
		l.byTTL = make(map[int64]lease)
	}
	l.byTTL[ttl] = lease{id: granted.ID, until: begun.Add(time.Duration(share) * time.Second)}
	return granted.ID, nil
}

func (l *leases) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.byTTL = nil
}
