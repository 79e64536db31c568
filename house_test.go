// Package croft holds the test of the house: which package may import which.
package croft

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/croftproject/croft/"

type pkg struct {
	ImportPath string
	Standard   bool
	Imports    []string
}

// Pure packages import the standard library, api and each other: no I/O, clocks or goroutines.
var pure = []string{"api", "internal/state", "internal/ledger", "internal/placement"}

// Contracts import pure packages, and each other. keeper is the contract through which engines start processes.
var contracts = []string{"internal/engine", "internal/hostnet", "internal/pool", "internal/image", "internal/store", "internal/cgroup", "internal/keeper"}

// Mechanisms give one thing of the kernel each: they import the standard library and libraries only, and anybody but pure
// packages may use them.
var mechanisms = []string{"internal/idmap", "internal/mounts", "internal/place", "internal/syscallfilter"}

// Implementations import their contract, never a sibling. Only the wiring and tests import them.
var implementations = []string{
	"internal/engine/oci", "internal/engine/qemu", "internal/engine/uml", "internal/engine/fake",
	"internal/hostnet/linux", "internal/hostnet/fake", "internal/pool/dir", "internal/image/local",
}

// wiring may import everything.
var wiring = []string{"internal/daemon", "cmd/croft"}

// pureOnly are what pure packages may not import of the standard library.
var impure = []string{"os", "os/exec", "net/http", "syscall", "io/fs", "log", "log/slog"}

func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Standard,Imports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(p.ImportPath, module)
		all = append(all, p)
	}
}

// below tells whether a package is dir or lies below it.
func below(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

func anyBelow(p string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return below(p, d) })
}

func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		for _, i := range p.Imports {
			own, isOwn := strings.CutPrefix(i, module)
			if why := forbidden(p.ImportPath, i, own, isOwn); why != "" {
				t.Errorf("%s imports %s: %s", p.ImportPath, i, why)
			}
		}
	}
}

func forbidden(from, path, own string, isOwn bool) string {
	test := below(from, "test") || strings.HasSuffix(from, "test")
	switch {
	case slices.Contains(pure, from):
		if isOwn && !slices.Contains(pure, own) {
			return "a pure package imports pure packages only"
		}
		if slices.Contains(impure, path) {
			return "a pure package does no I/O"
		}
		if !isOwn && strings.Contains(path, ".") && strings.Contains(strings.Split(path, "/")[0], ".") {
			return "a pure package imports the standard library only"
		}
	case slices.Contains(contracts, from) && isOwn:
		if !slices.Contains(pure, own) && !slices.Contains(contracts, own) && !slices.Contains(mechanisms, own) {
			return "a contract imports pure packages, mechanisms and contracts only"
		}
	case slices.Contains(mechanisms, from) && isOwn && !slices.Contains(mechanisms, own):
		return "a mechanism imports nothing of the project but mechanisms"
	}
	if strings.HasPrefix(path, "go.etcd.io/") && !below(from, "internal/store") {
		return "only internal/store imports etcd"
	}
	if !isOwn || test || slices.Contains(wiring, from) {
		return ""
	}
	for _, impl := range implementations {
		if below(own, impl) && !below(from, impl) {
			return "an implementation is imported by the wiring and by tests only"
		}
	}
	if own == "internal/daemon" {
		return "only the program imports the wiring"
	}
	if (from == "client" || below(from, "internal/cli")) && own != "api" && own != "client" && !below(own, "internal/cli") && !below(own, "internal/httpapi/frame") {
		return "the command line speaks to the daemon through the client alone"
	}
	return ""
}

// The rules themselves catch what they are for.
func TestRulesForbid(t *testing.T) {
	for _, c := range []struct{ from, to string }{
		{"api", module + "internal/store"},
		{"internal/ledger", "os"},
		{"internal/engine", module + "internal/engine/oci"},
		{"internal/engine/oci", module + "internal/engine/qemu"},
		{"internal/agent", module + "internal/hostnet/linux"},
		{"internal/control", module + "internal/image/local"},
		{"internal/control", "go.etcd.io/etcd/client/v3"},
		{"internal/cli", module + "internal/control"},
	} {
		own, isOwn := strings.CutPrefix(c.to, module)
		if forbidden(c.from, c.to, own, isOwn) == "" {
			t.Errorf("%s may import %s", c.from, c.to)
		}
	}
}
