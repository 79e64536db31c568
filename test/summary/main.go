// Summary reads the output of `go test -json` and prints what a person wants to see of it: a line for each package, the
// output of what failed, the reasons of what was skipped, and how many tests passed, failed and were skipped.
//
//	summary -failed       prints, for each package, the pattern of its failed tests instead
//	summary -again FILE   takes the output of a second run of those into account: what passes then was unsteady
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

type event struct {
	Action      string
	Package     string
	Test        string
	Output      string
	Elapsed     float64
	FailedBuild string
}

type test struct{ pkg, name string }

// top is the test that a subtest belongs to.
func (t test) top() test {
	name, _, _ := strings.Cut(t.name, "/")
	return test{t.pkg, name}
}

// run is what a run of `go test` said.
type run struct {
	packages []string // their lines
	output   map[test][]string
	failed   []test // packages that failed have no name
	broken   []string
	passed   map[test]bool
	skipped  []string
}

func main() {
	patterns := flag.Bool("failed", false, "print the pattern of each package's failed tests")
	second := flag.String("again", "", "output of a second run of the failed tests")
	flag.Parse()
	first, err := read(os.Stdin)
	if err == nil && *patterns {
		first.patterns()
		return
	}
	var again *run
	if err == nil && *second != "" {
		var f *os.File
		if f, err = os.Open(*second); err == nil {
			again, err = read(f)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "summary:", err)
		os.Exit(1)
	}
	if !first.print(again) {
		os.Exit(1)
	}
}

func read(from io.Reader) (*run, error) {
	r := &run{output: map[test][]string{}, passed: map[test]bool{}}
	in := bufio.NewScanner(from)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var e event
		if json.Unmarshal(in.Bytes(), &e) != nil {
			fmt.Println(in.Text())
			continue
		}
		r.take(e)
	}
	return r, in.Err()
}

func (r *run) take(e event) {
	key := test{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		fmt.Print(e.Output)
	case "output":
		r.output[key] = append(r.output[key], e.Output)
	case "pass":
		if e.Test != "" {
			r.passed[key] = true
		} else {
			r.packages = append(r.packages, fmt.Sprintf("ok    %-70s %6.1f s", short(e.Package), e.Elapsed))
		}
		delete(r.output, key)
	case "skip":
		if e.Test != "" {
			r.skipped = append(r.skipped, fmt.Sprintf("skip  %s %s: %s", short(e.Package), e.Test, reason(r.output[key])))
		}
		delete(r.output, key)
	case "fail":
		r.failed = append(r.failed, key)
		if e.FailedBuild != "" {
			r.broken = append(r.broken, e.Package)
		}
		if e.Test == "" {
			r.packages = append(r.packages, fmt.Sprintf("FAIL  %-70s %6.1f s", short(e.Package), e.Elapsed))
		}
	}
}

// patterns prints what to run again: nothing of packages that do not compile.
func (r *run) patterns() {
	tops := map[string][]string{}
	for _, f := range r.failed {
		if top := f.top(); f.name != "" && !slices.Contains(tops[f.pkg], top.name) {
			tops[f.pkg] = append(tops[f.pkg], top.name)
		}
	}
	for pkg, names := range tops {
		fmt.Printf("%s ^(%s)$\n", pkg, strings.Join(names, "|"))
	}
}

// print prints the summary, and tells whether all is well.
func (r *run) print(again *run) bool {
	var failed, unsteady int
	dead := map[string]bool{} // packages that failed without a failed test: they do not compile, or died
	for _, f := range r.failed {
		if f.name == "" {
			dead[f.pkg] = true
		}
	}
	for _, f := range r.failed {
		if f.name == "" {
			continue
		}
		delete(dead, f.pkg)
		if again != nil && again.passed[f.top()] && !slices.Contains(again.failed, f.top()) {
			unsteady++
			fmt.Printf("unsteady  %s %s: it failed, and passed when it was run again:\n", short(f.pkg), f.name)
		} else {
			failed++
		}
		fmt.Print(strings.Join(r.output[f], ""))
	}
	for pkg := range dead {
		failed++
		fmt.Print(strings.Join(r.output[test{pkg, ""}], ""))
	}
	for _, line := range append(r.packages, r.skipped...) {
		fmt.Println(line)
	}
	if unsteady > 0 {
		fmt.Printf("%d unsteady\n", unsteady)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", len(r.passed)+unsteady, failed, len(r.skipped))
	return failed == 0
}

func short(pkg string) string { return strings.TrimPrefix(pkg, "github.com/croftproject/croft/") }

// reason is what a test said when it skipped itself.
func reason(lines []string) string {
	for _, l := range lines {
		if t := strings.TrimSpace(l); strings.Contains(t, ".go:") {
			_, said, _ := strings.Cut(t, ": ")
			return said
		}
	}
	return "no reason given"
}
