// Package store keeps typed records in etcd: embedded (one member, data in the state directory) or, by its endpoints,
// elsewhere. It is the only package that imports etcd.
//
// A record is JSON under a key. Every change is a transaction: checks on revisions, then puts and deletes, all or
// nothing. Watches deliver every change in order.
package store

import (
	"context"
	"errors"
)

var (
	ErrNotFound = errors.New("no such record")
	// ErrConflict says that a check of a transaction failed: somebody changed the record meanwhile.
	ErrConflict = errors.New("record was changed meanwhile")
	// ErrUnavailable says that the store does not answer, or takes no writes (its disk is full).
	ErrUnavailable = errors.New("store does not answer")
)

// Store is a transactional, watchable key-value store.
type Store interface {
	// Get reads one record.
	Get(ctx context.Context, key string) (Record, error)
	// List reads all records below a prefix, in the order of their keys, at one revision, which it returns.
	List(ctx context.Context, prefix string) ([]Record, int64, error)
	// Commit applies a transaction and returns its revision. ErrConflict where a check failed: then nothing was changed.
	Commit(ctx context.Context, tx Tx) (int64, error)
	// Watch delivers the changes below a prefix from a revision on. The channel is closed when ctx ends or the watch
	// breaks (compaction, store gone); then list again.
	Watch(ctx context.Context, prefix string, from int64) <-chan Batch
}

// Record is a value with its revisions. Revision is that of the last change of this record.
type Record struct {
	Key      string
	Value    []byte
	Revision int64
}

// Tx is a transaction.
type Tx struct {
	Checks  []Check
	Puts    []Put
	Deletes []string
	// Frees says that the transaction ends something or gives space back: it may use the space that is kept free for such.
	// Transactions without puts always may.
	Frees bool
	// Reports says that the transaction tells what is: it may use a part of that space.
	Reports bool
}

// size is about what the transaction takes in the log, in bytes.
func (tx Tx) size() (n int64) {
	for _, p := range tx.Puts {
		n += int64(len(p.Key) + len(p.Value))
	}
	for _, key := range tx.Deletes {
		n += int64(len(key))
	}
	return n
}

// Check demands that a record is at a revision; zero: that there is none.
type Check struct {
	Key      string
	Revision int64
}

// Put writes a record. TTL, in seconds, lets it expire; zero is never.
type Put struct {
	Key   string
	Value []byte
	TTL   int64
}

// Batch is the changes of one revision.
type Batch struct {
	Revision int64
	Changes  []Event
}

// Event is one change. A deletion has no value.
type Event struct {
	Record
	Deleted bool
}
