package daemon

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/pprof"
	"sort"
	"strings"
	"time"

	"github.com/prometheus/common/expfmt"

	"github.com/croftproject/croft/internal/state"
)

// bundle writes what helps to find a fault, as a gzipped tar: records without first-boot configuration (it can hold
// secrets), the state of the ledgers, goroutines, metrics, the keeper's view, and the ends of the console logs.
func (d *Daemon) bundle(ctx context.Context, w io.Writer) error {
	zipped := gzip.NewWriter(w)
	out := tar.NewWriter(zipped)
	add := func(name string, data []byte) error {
		err := out.WriteHeader(&tar.Header{Name: "croft-debug/" + name, Mode: 0o600, Size: int64(len(data)), ModTime: time.Now()})
		if err != nil {
			return err
		}
		_, err = out.Write(data)
		return err
	}
	parts := []struct {
		name string
		make func(context.Context) ([]byte, error)
	}{
		{"version.txt", func(context.Context) ([]byte, error) { return []byte(d.o.Version + "\n"), nil }},
		{"host.json", func(context.Context) ([]byte, error) { return json.MarshalIndent(d.facts, "", "  ") }},
		{"records.json", d.records},
		{"ledgers.txt", d.ledgers},
		{"keeper.json", func(ctx context.Context) ([]byte, error) {
			list, err := d.keeper.List(ctx)
			if err != nil {
				return nil, err
			}
			return json.MarshalIndent(list, "", "  ")
		}},
		{"goroutines.txt", func(context.Context) ([]byte, error) { return profile("goroutine") }},
		{"heap.txt", func(context.Context) ([]byte, error) { return profile("heap") }},
		{"metrics.txt", d.metricsText},
	}
	for _, p := range parts {
		data, err := p.make(ctx)
		if err != nil { // what is broken is what the bundle is for
			data = []byte("could not be had: " + err.Error() + "\n")
		}
		if err := add(p.name, data); err != nil {
			return err
		}
	}
	if err := d.consoles(add); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	return zipped.Close()
}

// records are all records of the store, without what can be secret.
func (d *Daemon) records(ctx context.Context) ([]byte, error) {
	list, _, err := d.store.List(ctx, "")
	if err != nil {
		return nil, err
	}
	all := map[string]any{}
	for _, r := range list {
		if strings.HasPrefix(r.Key, state.Idempotency) {
			continue
		}
		var value any
		if err := json.Unmarshal(r.Value, &value); err != nil {
			value = fmt.Sprintf("damaged: %v", err)
		}
		redact(value)
		all[r.Key] = value
	}
	return json.MarshalIndent(all, "", "  ")
}

// redact blanks first-boot configuration and environments.
func redact(v any) {
	switch v := v.(type) {
	case map[string]any:
		for key, inner := range v {
			if key == "guest" || key == "env" {
				v[key] = "(left out)"
				continue
			}
			redact(inner)
		}
	case []any:
		for _, inner := range v {
			redact(inner)
		}
	}
}

func (d *Daemon) ledgers(ctx context.Context) ([]byte, error) {
	faults, err := d.control.Verify(ctx)
	if err != nil {
		return nil, err
	}
	if len(faults) == 0 {
		return []byte("every ledger agrees with the records\n"), nil
	}
	return []byte(strings.Join(faults, "\n") + "\n"), nil
}

func profile(name string) ([]byte, error) {
	var b strings.Builder
	err := pprof.Lookup(name).WriteTo(&b, 1)
	return []byte(b.String()), err
}

func (d *Daemon) metricsText(context.Context) ([]byte, error) {
	families, err := d.metrics.Gather()
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			return nil, err
		}
	}
	return []byte(b.String()), nil
}

// consoleTail is how much of each console log is taken.
const consoleTail = 16 << 10

func (d *Daemon) consoles(add func(string, []byte) error) error {
	logs, err := filepath.Glob(filepath.Join(d.o.StateDir, "servers", "*", "console.log"))
	if err != nil {
		return err
	}
	sort.Strings(logs)
	for _, path := range logs {
		data, err := end(path, consoleTail)
		if err != nil {
			continue // its server was deleted meanwhile
		}
		if err := add("consoles/"+filepath.Base(filepath.Dir(path))+".log", data); err != nil {
			return err
		}
	}
	return nil
}

// end reads at most the last n bytes of a file.
func end(path string, n int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > n {
		if _, err := f.Seek(-n, io.SeekEnd); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(io.LimitReader(f, n))
}
