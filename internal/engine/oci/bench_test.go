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

// BenchmarkLaunch launches guests; BenchmarkBareRunc is what the runtime alone takes for the least it can be asked for.
func BenchmarkLaunch(b *testing.B) {
	w := newWorld(b)
	m := w.machine(b, "bench")
	e := w.engine(b)
	var launch, release time.Duration
	for b.Loop() {
		start := time.Now()
		g, err := e.Launch(b.Context(), m)
		if err != nil {
			b.Fatal(err)
		}
		launch += time.Since(start)
		start = time.Now()
		if err := g.Stop(b.Context(), engine.Kill); err != nil {
			b.Fatal(err)
		}
		<-g.Done()
		if err := g.Release(b.Context()); err != nil {
			b.Fatal(err)
		}
		release += time.Since(start)
	}
	b.ReportMetric(launch.Seconds()*1e3/float64(b.N), "launch-ms")
	b.ReportMetric(release.Seconds()*1e3/float64(b.N), "kill+release-ms")
}

func BenchmarkBareRunc(b *testing.B) {
	w := newWorld(b)
	m := w.machine(b, "bare")
	dir := filepath.Join(w.dir, "bundle")
	if err := os.Mkdir(dir, 0o711); err != nil {
		b.Fatal(err)
	}
	if out, err := exec.Command("runc", "spec", "--bundle", dir).CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
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
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		cmd := exec.Command("runc", "--root", filepath.Join(w.dir, "rt"), "run", "--bundle", dir, "bare")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
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
