package dir

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/pool"
)

const recordName = "volume.json"

// record is what volume.json holds: the spec that the volume was made from, with its present size.
type record struct {
	pool.Spec
	Project uint32 `json:",omitempty"` // project id that the tree's quota counts on; 0 for none
}

// write puts the record into a volume's directory, whole or not at all, even where the host loses power.
func (r record) write(dir string) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	temporary := filepath.Join(dir, recordName+".new")
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary, filepath.Join(dir, recordName)); err != nil {
		return err
	}
	return syncPath(dir)
}

// syncPath has a file's content, or a directory's names, reach the disk.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// read finds a volume's record; pool.ErrNotFound where there is no volume. An empty record, or one of zeros, is what a
// loss of power leaves of a file that never reached the disk: its volume was in the making, and no guest has used it.
func (p *Pool) read(id string) (record, error) {
	text, err := os.ReadFile(p.path(id, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, fmt.Errorf("%w: %s", pool.ErrNotFound, id)
	}
	if err != nil {
		return record{}, err
	}
	if len(bytes.Trim(text, "\x00")) == 0 {
		return record{}, fmt.Errorf("%w: the record of %s is empty", pool.ErrNotFound, id)
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil {
		return record{}, fmt.Errorf("read %s of volume %s: %w", recordName, id, err)
	}
	return r, nil
}

// smallestTree leaves room for the file system's own structures and journal.
const smallestTree = 16 * api.MiB

func checkSpec(s pool.Spec) error {
	if err := checkID(s.ID); err != nil {
		return err
	}
	if s.Size < 0 {
		return fmt.Errorf("size %d is negative", s.Size)
	}
	switch s.Kind {
	case pool.Tree:
		if s.Size < smallestTree {
			return fmt.Errorf("size %v is too small for a tree: at least %v", s.Size, smallestTree)
		}
		if s.Size32 == 0 {
			return errors.New("a tree needs an id range")
		}
	case pool.File:
		if s.Format != "raw" && s.Format != "qcow2" {
			return fmt.Errorf("unknown format %q: raw or qcow2", s.Format)
		}
		if s.Base != "" && s.BaseFormat != "raw" && s.BaseFormat != "qcow2" {
			return fmt.Errorf("unknown base format %q: raw or qcow2", s.BaseFormat)
		}
		if s.Base == "" && s.Size == 0 {
			return errors.New("an empty volume needs a size")
		}
	default:
		return fmt.Errorf("unknown kind %d", s.Kind)
	}
	return nil
}

// checkID keeps ids from being paths, or names of the pool's own.
func checkID(id string) error {
	if id == "" || id[0] == '.' || len(id) > 128 || strings.ContainsAny(id, "/\x00") {
		return fmt.Errorf("%q is no volume id", id)
	}
	return nil
}

// locks holds one lock for each volume that someone works on.
type locks struct {
	mu   sync.Mutex
	held map[string]*lock
}

type lock struct {
	sync.Mutex
	users int
}

// lock waits for the volume's turn and returns what ends it.
func (l *locks) lock(id string) (unlock func()) {
	l.mu.Lock()
	one := l.held[id]
	if one == nil {
		one = &lock{}
		l.held[id] = one
	}
	one.users++
	l.mu.Unlock()
	one.Lock()
	return func() {
		one.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(l.held, id)
		}
	}
}
