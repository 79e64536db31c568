// Package pool is the contract of storage for volumes: the root disks of servers, made from images.
// Every implementation passes pool/pooltest.
package pool

import (
	"context"
	"errors"

	"github.com/croftproject/croft/api"
)

var (
	ErrNotFound = errors.New("no such volume")
	// ErrFull says that the pool's file system has no room.
	ErrFull = errors.New("pool is full")
	// ErrBusy says that the volume can't be changed while a guest uses it.
	ErrBusy = errors.New("volume is in use")
)

// Pool keeps volumes. A volume is named by the id of the server that it is the root of.
type Pool interface {
	// Info tells capacity, and how sizes are enforced.
	Info(ctx context.Context) (Info, error)
	// Create makes a volume as Spec says; one that exists already is left as it is. A create that was interrupted is
	// finished, or begun anew, by the next one. On error nothing is left.
	Create(ctx context.Context, s Spec) error
	// Open readies a volume for a guest, and tells where it is: a tree is mounted, with the owner's ids shifted; a file
	// is made the user's own. It is idempotent.
	Open(ctx context.Context, s Spec) (Opened, error)
	// Close undoes Open: the tree is unmounted. It is idempotent.
	Close(ctx context.Context, id string) error
	// Grow makes a closed or open volume larger. Shrinking is an error, and so is growing an open volume where the host
	// can't (ErrBusy, with the reason).
	Grow(ctx context.Context, id string, size api.Bytes) error
	// Delete closes a volume and removes it. It is idempotent.
	Delete(ctx context.Context, id string) error
	// List names the volumes there are.
	List(ctx context.Context) ([]string, error)
}

// Kind of volume.
type Kind int

const (
	Tree Kind = iota // a directory tree: an overlay over the image's tree
	File             // a disk: a file, raw or qcow2
)

// Spec of a volume.
type Spec struct {
	ID   string
	Kind Kind
	Size api.Bytes
	// Base is the image's content: a directory (Tree), or a file (File). It is never written to. Empty: an empty volume.
	Base string
	// Format is the volume's format, of a File: "raw" (copied sparsely, or reflinked), or "qcow2" (Base is its backing).
	Format     string
	BaseFormat string // format of Base: "raw" or "qcow2"
	// Owner is the user and group that opens a File, or that a Tree's root is shifted to.
	Owner  uint32
	Size32 uint32 // how many ids, for Tree: 65536
}

// Opened tells where a volume is.
type Opened struct {
	Path   string
	Format string
}

// Info of a pool.
type Info struct {
	Driver string
	// Capacity is what volumes can have: what is Free, and what they take. What else is on the file system is not theirs.
	Capacity api.Bytes
	Free     api.Bytes
	// Enforced tells how the size of a Tree is kept: "project-quota", or "loop" (a file system of its own).
	Enforced string
	// Device is the block device below the pool, for I/O limits; zero where there is none.
	Major, Minor int64
}
