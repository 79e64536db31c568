// Package croft holds the test of the house: which package may import which.
package croft

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/croftproject/croft"

// room is packages of one kind, and what they may import of the project: packages, or all of a kind. Of a path that ends
// in "/..." those below it are meant, too.
type room struct {
	kind     string
	packages []string
	may      []string
}

// house has every package of the project in one room.
var house = []room{
	// No I/O, clock or goroutine: TestPure.
	{"pure", []string{"api", "internal/httpapi/frame", "internal/ledger", "internal/placement", "internal/state"}, []string{"pure"}},
	// Each gives one thing, of the kernel or of the host's, and knows no contract.
	{"mechanism", []string{"internal/cgroup", "internal/idmap", "internal/memfile", "internal/mounts", "internal/place", "internal/reconcile", "internal/seed", "internal/syscallfilter"}, []string{"pure", "mechanism"}},

	{"contract", []string{"internal/hostnet", "internal/image", "internal/pool", "internal/store"}, []string{"pure"}},
	{"contract", []string{"internal/engine"}, []string{"pure", "internal/keeper"}},
	{"contract", []string{"internal/keeper"}, []string{"pure", "mechanism"}}, // through it engines start processes

	// An implementation imports its contract, and no other implementation.
	{"implementation", []string{"internal/engine/fake"}, []string{"pure", "mechanism", "internal/engine"}},
	{"implementation", []string{"internal/engine/oci"}, []string{"pure", "mechanism", "internal/engine", "internal/keeper"}},
	{"implementation", []string{"internal/engine/qemu/..."}, []string{"pure", "mechanism", "internal/engine", "internal/keeper", "internal/engine/qemu/..."}},
	{"implementation", []string{"internal/engine/uml/..."}, []string{"pure", "mechanism", "internal/engine", "internal/keeper", "internal/engine/uml/..."}},
	{"implementation", []string{"internal/hostnet/fake"}, []string{"pure", "mechanism", "internal/hostnet"}},
	{"implementation", []string{"internal/hostnet/linux"}, []string{"pure", "mechanism", "internal/hostnet"}},
	{"implementation", []string{"internal/image/build", "internal/image/local", "internal/image/sandbox", "internal/image/unpack"}, []string{"pure", "mechanism", "internal/image/..."}},
	{"implementation", []string{"internal/pool/dir"}, []string{"pure", "mechanism", "internal/pool"}},

	{"agent", []string{"internal/agent"}, []string{"pure", "mechanism", "contract"}},
	{"control", []string{"internal/control"}, []string{"pure", "contract", "httpapi"}}, // httpapi says what it asks of control
	{"httpapi", []string{"internal/httpapi"}, []string{"pure", "contract"}},
	{"client", []string{"client"}, []string{"pure"}},
	{"cli", []string{"internal/cli"}, []string{"pure", "client"}},
	{"wiring", []string{"internal/daemon"}, []string{"pure", "mechanism", "contract", "implementation", "agent", "control", "httpapi"}},
	{"program", []string{"cmd/croft"}, []string{"contract", "implementation", "cli", "wiring"}},

	{"suite", []string{"internal/engine/enginetest"}, []string{"pure", "internal/engine"}},
	{"suite", []string{"internal/httpapi/httpapitest"}, []string{"pure", "contract", "httpapi"}},
	{"suite", []string{"internal/pool/pooltest"}, []string{"pure", "internal/pool"}},
	{"suite", []string{"internal/store/storetest"}, []string{"pure", "internal/store"}},
	{"generator", []string{"internal/docgen"}, []string{"pure", "httpapi", "cli", "suite"}},
	// What is tested from outside is tested through the public API alone.
	{"outside", []string{"test/e2e", "test/lab", "test/world"}, []string{"pure", "client", "test/world"}},
	{"harness", []string{"test/bench", "test/faultd", "test/summary"}, []string{"pure", "contract", "implementation", "client", "wiring", "test/world"}},
}

// matches tells whether a package is the one named, or below it.
func matches(p, pattern string) bool {
	dir, below := strings.CutSuffix(pattern, "/...")
	return p == dir || below && strings.HasPrefix(p, dir+"/")
}

// roomOf finds the room of a package.
func roomOf(p string) (room, bool) {
	i := slices.IndexFunc(house, func(r room) bool {
		return slices.ContainsFunc(r.packages, func(pattern string) bool { return matches(p, pattern) })
	})
	if i < 0 {
		return room{}, false
	}
	return house[i], true
}

// forbidden says why a package may not import another, of the project or not.
func forbidden(from, to string) string {
	own, isOwn := strings.CutPrefix(to, module+"/")
	if !isOwn {
		if strings.HasPrefix(to, "go.etcd.io/") && from != "internal/store" {
			return "only internal/store imports etcd"
		}
		return ""
	}
	r, _ := roomOf(from)
	target, _ := roomOf(own)
	for _, may := range r.may {
		if may == target.kind || matches(own, may) {
			return ""
		}
	}
	return fmt.Sprintf("it is of the kind %s, which may import %s", r.kind, strings.Join(r.may, ", "))
}

type pkg struct {
	ImportPath, Dir                             string
	GoFiles, Imports, TestImports, XTestImports []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports,TestImports,XTestImports", "./...").Output()
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
		var below bool
		if p.ImportPath, below = strings.CutPrefix(p.ImportPath, module+"/"); below { // the root holds this test
			all = append(all, p)
		}
	}
}

func TestImports(t *testing.T) {
	all := packages(t)
	for _, p := range all {
		r, ok := roomOf(p.ImportPath)
		if !ok {
			t.Errorf("%s is not in the house", p.ImportPath)
			continue
		}
		tests := slices.Concat(p.TestImports, p.XTestImports)
		imports := p.Imports
		if r.kind == "outside" {
			imports = append(imports, tests...)
		}
		for _, to := range imports {
			if why := forbidden(p.ImportPath, to); why != "" {
				t.Errorf("%s imports %s: %s", p.ImportPath, to, why)
			}
		}
		for _, to := range tests { // they import any package, but no store of their own
			if !strings.HasPrefix(to, module) && forbidden(p.ImportPath, to) != "" {
				t.Errorf("a test of %s imports %s", p.ImportPath, to)
			}
		}
	}
	for _, r := range house {
		for _, pattern := range r.packages {
			if !slices.ContainsFunc(all, func(p pkg) bool { return matches(p.ImportPath, pattern) }) {
				t.Errorf("the house has %s, which is no package", pattern)
			}
		}
	}
}

// pureLibraries are what pure packages may import of the standard library, and nothing from elsewhere.
var pureLibraries = []string{
	"bytes", "cmp", "encoding/json", "errors", "fmt", "iter", "maps", "math", "math/big", "math/bits", "net/netip", "regexp",
	"slices", "sort", "strconv", "strings", "time", "unicode", "unicode/utf8",
}

// impure are what these libraries have of I/O and clocks.
var impure = map[string][]string{
	"fmt":  {"Print", "Printf", "Println", "Scan", "Scanf", "Scanln"},
	"time": {"After", "AfterFunc", "LoadLocation", "Local", "NewTicker", "NewTimer", "Now", "Since", "Sleep", "Tick", "Until"},
}

// impurity is what a file does that a pure package does not.
func impurity(file *ast.File) (found []string) {
	for _, i := range file.Imports {
		path := strings.Trim(i.Path.Value, `"`)
		if !strings.HasPrefix(path, module+"/") && !slices.Contains(pureLibraries, path) {
			found = append(found, "imports "+path)
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			found = append(found, "starts a goroutine")
		case *ast.SelectorExpr:
			if library, ok := n.X.(*ast.Ident); ok && slices.Contains(impure[library.Name], n.Sel.Name) {
				found = append(found, "uses "+library.Name+"."+n.Sel.Name)
			}
		}
		return true
	})
	return found
}

func TestPure(t *testing.T) {
	for _, p := range packages(t) {
		if r, _ := roomOf(p.ImportPath); r.kind != "pure" {
			continue
		}
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, what := range impurity(file) {
				t.Errorf("%s/%s %s, and the package is pure", p.ImportPath, name, what)
			}
		}
	}
}

// The rules themselves catch what they are for.
func TestRulesForbid(t *testing.T) {
	for _, c := range [][2]string{
		{"api", "internal/store"}, {"internal/ledger", "internal/cgroup"}, {"internal/mounts", "internal/engine"},
		{"internal/engine", "internal/engine/oci"}, {"internal/pool", "internal/hostnet"},
		{"internal/engine/oci", "internal/engine/qemu"}, {"internal/engine/qemu/qmp", "internal/engine/uml/mconsole"},
		{"internal/engine/oci", "internal/pool"}, {"internal/pool/dir", "internal/image/sandbox"}, {"internal/image/local", "internal/control"},
		{"internal/agent", "internal/hostnet/linux"}, {"internal/agent", "internal/control"},
		{"internal/control", "internal/image/local"}, {"internal/control", "internal/agent"}, {"internal/control", "internal/cgroup"},
		{"internal/httpapi", "internal/control"}, {"internal/cli", "internal/control"}, {"internal/cli", "internal/engine"},
		{"internal/agent", "internal/daemon"}, {"internal/daemon", "internal/engine/enginetest"}, {"test/e2e", "internal/daemon"},
		{"internal/agent", "internal/engine/none"},
	} {
		if forbidden(c[0], module+"/"+c[1]) == "" {
			t.Errorf("%s may import %s", c[0], c[1])
		}
	}
	if forbidden("internal/control", "go.etcd.io/etcd/client/v3") == "" {
		t.Error("etcd may be imported")
	}
	const clock = `package p
import ("os"; "time"; "golang.org/x/sys/unix")
func f() { go f(); _ = time.Now() }`
	file, err := parser.ParseFile(token.NewFileSet(), "", clock, 0)
	if err != nil {
		t.Fatal(err)
	}
	if found := impurity(file); len(found) != 4 {
		t.Errorf("what is impure there: %q", found)
	}
	if _, ok := roomOf("internal/engine/none"); ok {
		t.Error("a package that nobody listed is in the house")
	}
}
