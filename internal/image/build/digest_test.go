package build

import (
	"os"
	"path/filepath"
	"testing"
)

// What is copied from the host's modules is part of the image, and so of its digest.
func TestDebianDigestNamesModules(t *testing.T) {
	for _, path := range []string{gptCode, biosLoader, systemdBoot} {
		if err := need(path, "that has it"); err != nil {
			t.Skip(err)
		}
	}
	tree, modules := t.TempDir(), t.TempDir()
	kernel := filepath.Join(tree, "vmlinuz")
	for path, text := range map[string]string{filepath.Join(tree, "var/lib/dpkg/status"): "Package: base", kernel: "kernel"} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]string{}
	digest := func(what, dir string) string {
		t.Helper()
		d, err := debianDigest(tree, kernel, dir)
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[d]; ok {
			t.Errorf("%s has the digest of %s", what, other)
		}
		seen[d] = what
		return d
	}
	digest("no modules", filepath.Join(modules, "missing"))
	for _, version := range []string{"6.1.76", "6.1.140"} {
		if err := os.Mkdir(filepath.Join(modules, version), 0o755); err != nil {
			t.Fatal(err)
		}
		made := digest(version, modules)
		if err := copyModules(tree, modules); err != nil {
			t.Fatal(err)
		}
		if again, err := debianDigest(tree, kernel, modules); err != nil || again != made {
			t.Errorf("the same has another digest: %v", err)
		}
	}
	if entries, err := os.ReadDir(filepath.Join(tree, "usr/lib/modules")); err != nil || len(entries) != 2 {
		t.Errorf("copied: %v, %v", entries, err)
	}
}
