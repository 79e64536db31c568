package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
)

// local is what the host itself remembers of a server, in servers/ID/machine.json: enough to adopt its guest when the
// daemon comes up again, and to clean up when the store knows the server no more.
type local struct {
	ID     string          `json:"id"`
	Engine string          `json:"engine"`
	IDBase uint32          `json:"idBase"`
	BootID string          `json:"bootID,omitempty"` // boot of the host in which the guest was launched
	Handle *engine.Handle  `json:"handle,omitempty"`
	Spec   *api.ServerSpec `json:"spec,omitempty"` // as launched, with what was changed live
	Ports  []localPort     `json:"ports,omitempty"`

	Started   time.Time `json:"started,omitzero"`
	InRow     int       `json:"inRow,omitempty"`     // restarts in a row
	NextStart time.Time `json:"nextStart,omitzero"`  // not to be started before
	Held      bool      `json:"held,omitempty"`      // not to be started until asked
	Failure   string    `json:"failure,omitempty"`   // why it is held, or backed off
	StartSeen int64     `json:"startSeen,omitempty"` // state.Intent.Start taken note of
	Restarted int64     `json:"restarted,omitempty"` // state.Intent.Restart carried out
	Deleting  bool      `json:"deleting,omitempty"`  // its deletion was asked for: finished even if its record is gone
	Torn      bool      `json:"torn,omitempty"`      // nothing but the volume is left of the last run
	Rebooted  string    `json:"rebooted,omitempty"`  // boot of the host for which autostart had its say
	Exit      *api.Exit `json:"exit,omitempty"`
}

// localPort is a port that the host may have made.
type localPort struct {
	Network string `json:"network"`
	ID      string `json:"id"`
}

// lift lets a held or backed-off server start.
func (l *local) lift() {
	l.Held, l.NextStart, l.InRow, l.Failure = false, time.Time{}, 0, ""
}

const localFile = "machine.json"

// save writes the record of a server, whole or not at all.
func (l *local) save(dir string) error {
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, localFile)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("remember server %s: %w", l.ID, err)
	}
	return os.Rename(path+".new", path)
}

// loadLocal reads the record of a server; nil where there is none. A damaged record is as none: its guest is found by id.
func loadLocal(dir, id string) (*local, error) {
	data, err := os.ReadFile(filepath.Join(dir, localFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	l := &local{}
	if err := json.Unmarshal(data, l); err != nil || l.ID != id {
		return nil, nil
	}
	return l, nil
}
