// Command docgen writes the reference of the API and of the commands from what the program itself is made of: struct
// tags, routes and flags.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

//go:generate go run . ../..

func main() {
	root := "."
	if len(os.Args) > 1 {
		root = os.Args[1]
	}
	if err := run(root); err != nil {
		fmt.Fprintln(os.Stderr, "docgen:", err)
		os.Exit(1)
	}
}

// pages are the files that are generated, below the module's root.
func pages(root string) (map[string][]byte, error) {
	api, err := apiPage(filepath.Join(root, "api"))
	if err != nil {
		return nil, err
	}
	return map[string][]byte{"docs/reference/api.md": api, "docs/reference/cli.md": cliPage()}, nil
}

func run(root string) error {
	all, err := pages(root)
	if err != nil {
		return err
	}
	for name, content := range all {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
