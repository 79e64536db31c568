package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Options of Open.
type Options struct {
	// Dir is the state directory; the embedded member keeps its data in Dir/store.
	Dir string
	// Endpoints are those of an etcd cluster to use instead of the embedded member.
	Endpoints []string
	TLS       *tls.Config // for Endpoints
	// Prefix is put before every key, so that a cluster can be shared. With Endpoints its default is "croft/".
	Prefix string
	// Logger hears what goes wrong in the member; nil: nobody.
	Logger *slog.Logger
	// Timeout is the most that one call may take. Default: 5s.
	Timeout time.Duration
	// MinFree is the space on the embedded member's disk below which nothing is written any more, in bytes:
	// etcd ends the process when its log can't be written, so it must never come to that. Default: 64 MiB.
	MinFree int64
}

// Etcd is the Store on etcd.
type Etcd struct {
	kv      clientv3.KV
	watcher clientv3.Watcher
	client  *clientv3.Client
	member  *member // nil: elsewhere
	leases  leases
	dir     string
	blocks  *reserve // of the member's database
	ballast *ballast
	minFree int64
	timeout time.Duration
	calls   chan struct{} // under way; see await
}

// maxCalls is how many calls of the store are under way at most.
const maxCalls = 1024

var _ Store = (*Etcd)(nil)

// Open opens the store. The embedded member is ready on return. Close it.
func Open(ctx context.Context, o Options) (*Etcd, error) {
	e := &Etcd{timeout: o.Timeout, minFree: o.MinFree, calls: make(chan struct{}, maxCalls)}
	if e.timeout == 0 {
		e.timeout = 5 * time.Second
	}
	if e.minFree == 0 {
		e.minFree = 64 << 20
	}
	if len(o.Endpoints) > 0 {
		if o.Prefix == "" {
			o.Prefix = "croft/"
		}
		client, err := clientv3.New(clientv3.Config{
			Endpoints: o.Endpoints, TLS: o.TLS, DialTimeout: e.timeout, Logger: zapTo(o.Logger),
			DialKeepAliveTime: 5 * time.Second, DialKeepAliveTimeout: 5 * time.Second,
		})
		if err != nil {
			return nil, fmt.Errorf("connect to the store at %v: %w", o.Endpoints, err)
		}
		e.client = client
	} else {
		e.dir = filepath.Join(o.Dir, "store")
		e.blocks, e.ballast = newReserve(e.dir), newBallast(e.dir)
		if free, err := diskFree(o.Dir); err == nil && free < 2*walSegment {
			e.ballast.halve()
		}
		m, client, err := startMember(ctx, e.dir, o.Logger)
		if err != nil {
			return nil, err
		}
		e.member, e.client = m, client
		if _, err := e.free(); err != nil {
			e.Close()
			return nil, err
		}
	}
	e.kv, e.watcher = e.client.KV, e.client.Watcher
	if o.Prefix != "" {
		e.kv = namespace.NewKV(e.client.KV, o.Prefix)
		e.watcher = namespace.NewWatcher(e.client.Watcher, o.Prefix)
	}
	e.leases.client = e.client.Lease
	if _, err := e.Get(ctx, "ping"); err != nil && !errors.Is(err, ErrNotFound) {
		e.Close()
		return nil, fmt.Errorf("open the store: %w", err)
	}
	return e, nil
}

// Close ends all watches and stops the embedded member.
func (e *Etcd) Close() error {
	err := e.client.Close()
	if e.member != nil {
		e.member.stop()
		err = nil // the in-process client has no connection whose end could fail
	}
	return err
}

func (e *Etcd) Get(ctx context.Context, key string) (Record, error) {
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	r, err := await(ctx, e.calls, func() (*clientv3.GetResponse, error) { return e.kv.Get(ctx, key) })
	if err != nil {
		return Record{}, fmt.Errorf("read %s: %w", key, mapped(err))
	}
	if len(r.Kvs) == 0 {
		return Record{}, fmt.Errorf("read %s: %w", key, ErrNotFound)
	}
	return record(r.Kvs[0]), nil
}

// listPage is how many records one request of a List reads: a page stays below gRPC's limit of a message.
const listPage = 500

func (e *Etcd) List(ctx context.Context, prefix string) ([]Record, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, 4*e.timeout)
	defer cancel()
	var out []Record
	end := rangeEnd(prefix)
	from, revision := prefix, int64(0)
	if from == "" {
		from = "\x00"
	}
	for {
		r, err := await(ctx, e.calls, func() (*clientv3.GetResponse, error) {
			return e.kv.Get(ctx, from, clientv3.WithRange(end), clientv3.WithRev(revision), clientv3.WithLimit(listPage))
		})
		if err != nil {
			return nil, 0, fmt.Errorf("list %s: %w", prefix, mapped(err))
		}
		if revision == 0 {
			revision = r.Header.Revision
		}
		for _, kv := range r.Kvs {
			out = append(out, record(kv))
		}
		if !r.More {
			return out, revision, nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

// rangeEnd is the first key after all that begin with prefix; "\x00" stands for the end of the keys.
func rangeEnd(prefix string) string {
	if prefix == "" {
		return "\x00"
	}
	return clientv3.GetPrefixRangeEnd(prefix)
}

func (e *Etcd) Commit(ctx context.Context, tx Tx) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	revision, err := await(ctx, e.calls, func() (int64, error) {
		if err := e.room(tx); err != nil {
			return 0, err
		}
		revision, err := e.commit(ctx, tx)
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			e.leases.forget() // it ended early: the clock was set, or somebody revoked it
			return e.commit(ctx, tx)
		}
		return revision, err
	})
	if err != nil {
		return 0, mapped(err)
	}
	return revision, nil
}

// await returns what do does, or ctx's error when that ends first: the embedded member takes locks while it writes, so a
// disk that does not answer holds whoever calls it, whatever ctx says.
// calls bounds how many such are under way.
func await[T any](ctx context.Context, calls chan struct{}, do func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	select {
	case calls <- struct{}{}:
	case <-ctx.Done():
		return none, ctx.Err()
	}
	done := make(chan result, 1)
	go func() {
		value, err := do()
		<-calls
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

func (e *Etcd) commit(ctx context.Context, tx Tx) (int64, error) {
	checks := make([]clientv3.Cmp, 0, len(tx.Checks))
	for _, c := range tx.Checks {
		checks = append(checks, clientv3.Compare(clientv3.ModRevision(c.Key), "=", c.Revision))
	}
	ops := make([]clientv3.Op, 0, len(tx.Puts)+len(tx.Deletes))
	for _, p := range tx.Puts {
		var opts []clientv3.OpOption
		if p.TTL > 0 {
			lease, err := e.leases.get(ctx, p.TTL)
			if err != nil {
				return 0, err
			}
			opts = append(opts, clientv3.WithLease(lease))
		}
		ops = append(ops, clientv3.OpPut(p.Key, string(p.Value), opts...))
	}
	for _, key := range tx.Deletes {
		ops = append(ops, clientv3.OpDelete(key))
	}
	if err := ctx.Err(); err != nil { // given up while it waited: the caller was told that nothing was written
		return 0, err
	}
	r, err := e.kv.Txn(ctx).If(checks...).Then(ops...).Commit()
	if err != nil {
		return 0, err
	}
	if !r.Succeeded {
		return 0, ErrConflict
	}
	return r.Header.Revision, nil
}

// diskFree is the space that is left on the disk of dir, in bytes.
func diskFree(dir string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, fmt.Errorf("%w: %s: %v", ErrUnavailable, dir, err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}

// free is the space that is left on the disk below the embedded member. What is kept is taken of it, where that can be.
func (e *Etcd) free() (int64, error) {
	free, err := diskFree(e.dir)
	if err != nil {
		return 0, err
	}
	e.blocks.take()
	e.ballast.fill(free - e.minFree)
	return free, nil
}

// room refuses writes while the disk below the embedded member is nearly full. Those that free space may use a part of
// what is kept, and then the ballast; reports use half of that.
func (e *Etcd) room(tx Tx) error {
	if e.member == nil {
		return nil
	}
	free, err := e.free()
	if err != nil {
		return err
	}
	frees, need := tx.Frees || len(tx.Puts) == 0, e.minFree
	if frees || tx.Reports {
		need /= 4
	}
	switch {
	case free >= need, frees && e.ballast.cut(tx.size(), 0), tx.Reports && e.ballast.cut(tx.size(), ballastSize/2):
		return nil
	}
	return fmt.Errorf("%w: the disk of %s has %d MiB left, and %d MiB are kept free", ErrUnavailable, e.dir, free>>20, need>>20)
}

func (e *Etcd) Watch(ctx context.Context, prefix string, from int64) <-chan Batch {
	opts := []clientv3.OpOption{clientv3.WithRev(from)}
	key := prefix
	if prefix == "" {
		key = "\x00"
	}
	opts = append(opts, clientv3.WithRange(rangeEnd(prefix)))
	out := make(chan Batch, 64)
	// The watch has a context of its own, so that it is taken down in the member whenever this ends.
	inner, cancel := context.WithCancel(ctx)
	responses := e.watcher.Watch(inner, key, opts...)
	go func() {
		defer close(out)
		defer cancel()
		for r := range responses {
			if r.Err() != nil {
				return
			}
			for _, b := range batches(r.Events) {
				select {
				case out <- b:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}

// batches splits a response's events by revision. etcd never splits a revision over responses (fragmenting is off).
func batches(events []*clientv3.Event) []Batch {
	var out []Batch
	for _, ev := range events {
		change := Event{Record: record(ev.Kv), Deleted: ev.Type == clientv3.EventTypeDelete}
		if n := len(out); n == 0 || out[n-1].Revision != change.Revision {
			out = append(out, Batch{Revision: change.Revision})
		}
		last := &out[len(out)-1]
		last.Changes = append(last.Changes, change)
	}
	return out
}

func record(kv *mvccpb.KeyValue) Record {
	return Record{Key: string(kv.Key), Value: kv.Value, Revision: kv.ModRevision}
}

// mapped makes ErrUnavailable of whatever says that the store does not answer or takes no writes.
func mapped(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
		return err
	}
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace), errors.Is(err, context.DeadlineExceeded),
		isServerDown(err):
		return fmt.Errorf("%w: %v", ErrUnavailable, err)
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted:
		return fmt.Errorf("%w: %v", ErrUnavailable, err)
	}
	return err
}
