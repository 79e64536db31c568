package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// The pages in the tree are those that the code makes.
func TestPagesAreFresh(t *testing.T) {
	root := filepath.Join("..", "..")
	all, err := pages(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range all {
		got, err := os.ReadFile(filepath.Join(root, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is stale (%v): run go generate ./internal/docgen", name, err)
		}
	}
}

func TestSplitDefault(t *testing.T) {
	for doc, want := range map[string][2]string{
		"":                                  {"", ""},
		"A name.":                           {"A name.", ""},
		"A share. Default: count.":          {"A share.", "count"},
		"Default: a /24 of 10.0.0.0/8.":     {"", "a /24 of 10.0.0.0/8"},
		"A. Default: b, or c. From 1 to 2.": {"A. From 1 to 2.", "b, or c"},
	} {
		if rest, def := splitDefault(doc); rest != want[0] || def != want[1] {
			t.Errorf("%q: %q, %q; want %q", doc, rest, def, want)
		}
	}
}
