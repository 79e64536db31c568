package keeper

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// records remember processes in files, so that a new keeper knows those of one that was killed:
// DIR/run/ID.json of a running one, DIR/exits/ID.json of one that has ended. A file is replaced as a whole. It is not
// synced: after a power cut no process runs, whatever the file says.
type records struct{ dir string }

// record is the file of a running process.
type record struct {
	Spec   Spec   `json:"spec"`
	Status Status `json:"status"`
	Boot   string `json:"boot"`
	Start  uint64 `json:"start"` // ticks after boot, see stat
	// ConsoleFD is the descriptor by which the process itself holds its console's other end, or the pipe that it prints to,
	// for a new keeper to take; 0 for none.
	ConsoleFD int `json:"consoleFD,omitempty"`
}

const suffix = ".json"

func openRecords(dir string) (records, error) {
	r := records{dir}
	return r, errors.Join(os.MkdirAll(r.path("run", ""), 0o700), os.MkdirAll(r.path("exits", ""), 0o700))
}

func (r records) path(kind, id string) string {
	if id == "" {
		return filepath.Join(r.dir, kind)
	}
	return filepath.Join(r.dir, kind, url.PathEscape(id)+suffix)
}

func (r records) running(rec record) error { return replace(r.path("run", rec.Spec.ID), rec) }

func (r records) ended(s Status) error {
	if err := replace(r.path("exits", s.ID), s); err != nil {
		return err
	}
	return remove(r.path("run", s.ID))
}

func (r records) forget(id string) error {
	return errors.Join(remove(r.path("run", id)), remove(r.path("exits", id)))
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func replace(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// load calls f with the content of each file of a kind.
func (r records) load(kind string, f func(id string, content []byte)) error {
	entries, err := os.ReadDir(r.path(kind, ""))
	if err != nil {
		return err
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		id, err := url.PathUnescape(name)
		if !ok || err != nil {
			continue // half of a replace
		}
		content, err := os.ReadFile(filepath.Join(r.path(kind, ""), e.Name()))
		if err != nil {
			return err
		}
		f(id, content)
	}
	return nil
}
