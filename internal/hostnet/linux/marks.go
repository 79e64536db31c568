package linux

import (
	"errors"
	"os"
	"path/filepath"
)

// marks reads which ports of a network are recorded as being in which server's namespace, by device.
func (h *Host) marks(network string) (map[string]string, error) {
	entries, err := os.ReadDir(h.markDir(network))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, e := range entries {
		server, ok, err := h.mark(network, e.Name())
		if err != nil {
			return nil, err
		}
		if ok {
			out[e.Name()] = server
		}
	}
	return out, nil
}

// mark reads the record of one port: a symbolic link, which is there whole or not at all.
func (h *Host) mark(network, dev string) (server string, ok bool, err error) {
	server, err = os.Readlink(filepath.Join(h.markDir(network), dev))
	if errors.Is(err, os.ErrNotExist) {
		return "", false, nil
	}
	return server, err == nil, err
}

func (h *Host) markDir(network string) string { return filepath.Join(h.o.RunDir, "ports", network) }
