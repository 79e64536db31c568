package oci_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/croftproject/croft/internal/engine"
)

// BenchmarkLaunch launches guests, turn by turn with a bare run of the runtime for the least that it can be asked for.
func BenchmarkLaunch(b *testing.B) {
	w := newWorld(b)
	m := w.machine(b, "bench")
	bare := bareRun(b, w)
	e := w.engine(b)
	var alone, launch, end, release time.Duration
	timed := func(sum *time.Duration, f func() error) {
		start := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		*sum += time.Since(start)
	}
	for b.Loop() {
		timed(&alone, bare)
		var g engine.Guest
		timed(&launch, func() (err error) {
			g, err = e.Launch(b.Context(), m)
			return err
		})
		timed(&end, func() error {
			defer func() { <-g.Done() }()
			return g.Stop(b.Context(), engine.Kill)
		})
		timed(&release, func() error { return g.Release(b.Context()) })
	}
	for unit, sum := range map[string]time.Duration{"bare-ms": alone, "launch-ms": launch, "kill-ms": end, "release-ms": release} {
		b.ReportMetric(sum.Seconds()*1e3/float64(b.N), unit)
	}
	b.ReportMetric(launch.Seconds()/alone.Seconds(), "launch/bare")
}

// bareRun runs /bin/true with the runtime's own default configuration.
func bareRun(b *testing.B, w *world) func() error {
	m := w.machine(b, "bare")
	dir := filepath.Join(w.dir, "bundle")
	if err := os.Mkdir(dir, 0o711); err != nil {
		b.Fatal(err)
	}
	if out, err := exec.Command("runc", "spec", "--bundle", dir).CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	config := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(config)
	if err != nil {
		b.Fatal(err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		b.Fatal(err)
	}
	spec.Root.Path = m.Root.Path
	spec.Process.Terminal = false
	spec.Process.Args = []string{"/bin/true"}
	spec.Linux.CgroupsPath = "/" + m.Cgroup + "/guest"
	if data, err = json.Marshal(spec); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(config, data, 0o600); err != nil {
		b.Fatal(err)
	}
	return func() error {
		return exec.Command("runc", "--root", filepath.Join(w.dir, "rt"), "run", "--bundle", dir, "bare").Run()
	}
}

func BenchmarkExec(b *testing.B) {
	w := newWorld(b)
	m := w.machine(b, "bench")
	g, err := w.engine(b).Launch(b.Context(), m)
	if err != nil {
		b.Fatal(err)
	}
	x := g.(engine.Execer)
	for b.Loop() {
		if code, err := x.Exec(context.Background(), engine.Process{Args: []string{"/bin/true"}}); err != nil || code != 0 {
			b.Fatal(code, err)
		}
	}
}
