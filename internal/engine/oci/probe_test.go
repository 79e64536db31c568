package oci_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine/oci"
)

// TestProbe: what can't work is refused with the reason, and leaves nothing.
func TestProbe(t *testing.T) {
	w := newWorld(t)
	root := filepath.Join(w.dir, "rt")
	script := filepath.Join(w.dir, "crun")
	text := "#!/bin/sh\ncase $1 in --version) echo crun version 1.8.1; exit;; esac\n" +
		"echo 'cgroups in hybrid mode not supported, drop all controllers from cgroupv2' >&2; exit 1\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	closed := filepath.Join(w.dir, "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, runtime, root, reason string }{
		{"missing", "no-such-runtime", root, "executable file not found"},
		{"does nothing", "true", root, "did not run"},
		{"refuses", script, root, "cgroups in hybrid mode not supported"},
		{"closed directory", "runc", filepath.Join(closed, "rt"), "give it mode o+x"},
	} {
		e := oci.New(oci.Options{Runtime: test.runtime, Keeper: w.keeper, Root: test.root, Cgroup: w.cgroup})
		report := e.Probe(limit(t, 20*time.Second))
		if report.Available || !strings.Contains(report.Reason, test.reason) {
			t.Errorf("%s: %+v; want the reason %q", test.name, report, test.reason)
		}
	}
	report := w.engine(t).Probe(limit(t, 20*time.Second))
	if !report.Available || report.Reason != "" || !strings.HasPrefix(report.Version, "runc ") {
		t.Errorf("here: %+v", report)
	}
	entries, _ := os.ReadDir(w.dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "probe-") {
			t.Errorf("%s is left", e.Name())
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), w.dir+"/") {
		t.Errorf("mounts are left, %v", err)
	}
}

// TestLeastMemory: what Validate lets through starts.
func TestLeastMemory(t *testing.T) {
	w := newWorld(t)
	m := w.machine(t, "small")
	m.Spec.Memory.Limit = 24 << 20
	if errs := w.engine(t).Validate(m.Spec); len(errs) > 0 {
		t.Fatal(errs)
	}
	limitMemory(t, m, m.Spec.Memory.Limit)
	g := start(t, w, m)
	if code, said := run(t, g, "true"); code != 0 {
		t.Error(code, said)
	}
	m.Spec.Memory.Limit = 1 << 20
	if errs := w.engine(t).Validate(m.Spec); len(errs) != 1 || errs[0].Code != api.CodeInvalid {
		t.Errorf("1 MiB is let through: %v", errs)
	}
}
