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
