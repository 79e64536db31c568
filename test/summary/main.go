// Summary reads the output of `go test -json` and prints what a person wants to see of it: a line for each package, the
// output of what failed, the reasons of what was skipped, and how many tests passed, failed and were skipped.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

type event struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Output      string
	Elapsed     float64
	FailedBuild string
}

type test struct{ pkg, name string }

func main() {
	output := map[test][]string{}
	var passed, failed int
	var skipped []string
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var e event
		if json.Unmarshal(in.Bytes(), &e) != nil {
			fmt.Println(in.Text())
			continue
		}
		key := test{e.Package, e.Test}
		switch e.Action {
		case "build-output":
			fmt.Print(e.Output)
		case "output":
			output[key] = append(output[key], e.Output)
		case "pass":
			if e.Test != "" {
				passed++
			} else {
				fmt.Printf("ok    %-70s %6.1f s\n", short(e.Package), e.Elapsed)
			}
			delete(output, key)
		case "skip":
			if e.Test != "" {
				skipped = append(skipped, fmt.Sprintf("skip  %s %s: %s", short(e.Package), e.Test, reason(output[key])))
			}
			delete(output, key)
		case "fail":
			fmt.Print(strings.Join(output[key], ""))
			if e.Test != "" {
				failed++
			} else {
				fmt.Printf("FAIL  %-70s %6.1f s\n", short(e.Package), e.Elapsed)
				if e.FailedBuild != "" {
					failed++
				}
			}
		}
	}
	for _, s := range skipped {
		fmt.Println(s)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", passed, failed, len(skipped))
	if in.Err() != nil || failed > 0 {
		os.Exit(1)
	}
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
