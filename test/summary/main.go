// Summary reads the output of `go test -json` and prints what a person wants to see of it: the output of what failed, the
// reasons of what was skipped, and how many tests passed, failed and were skipped.
//
//	summary -progress     prints a line for each package and each test that failed or took long instead, as they end
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
	output  map[test][]string
	failed  []test // packages that failed have no name
	broken  []string
	passed  map[test]bool
	skipped []string
}

func main() {
	live := flag.Bool("progress", false, "print a line for each package, as they end")
	patterns := flag.Bool("failed", false, "print the pattern of each package's failed tests")
	second := flag.String("again", "", "output of a second run of the failed tests")
	flag.Parse()
	if *live {
		if err := read(os.Stdin, progress); err != nil {
			fmt.Fprintln(os.Stderr, "summary:", err)
			os.Exit(1)
		}
		return
	}
	first := newRun()
	err := read(os.Stdin, first.take)
	if err == nil && *patterns {
		first.patterns()
		return
	}
	var again *run
	if err == nil && *second != "" {
		var f *os.File
		if f, err = os.Open(*second); err == nil {
			again = newRun()
			err = read(f, again.take)
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

func newRun() *run { return &run{output: map[test][]string{}, passed: map[test]bool{}} }

// read hands over each event. What is no event, as go's own complaints, goes to the standard error.
func read(from io.Reader, take func(event)) error {
	in := bufio.NewScanner(from)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var e event
		if json.Unmarshal(in.Bytes(), &e) != nil {
			fmt.Fprintln(os.Stderr, in.Text())
			continue
		}
		take(e)
	}
	return in.Err()
}

// long is how many seconds a test takes that is worth a line of its own.
const long = 30

func progress(e event) {
	switch {
	case e.Action != "pass" && e.Action != "fail":
	case e.Test == "":
		fmt.Printf("%-5s %-70s %6.1f s\n", map[string]string{"pass": "ok", "fail": "FAIL"}[e.Action], short(e.Package), e.Elapsed)
	case e.Action == "fail" || e.Elapsed >= long:
		fmt.Printf("  %-5s %-68s %6.1f s\n", e.Action, e.Test, e.Elapsed)
	}
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
	for _, line := range r.skipped {
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
