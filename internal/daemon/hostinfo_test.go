package daemon

import (
	"path/filepath"
	"testing"
)

func TestLabel(t *testing.T) {
	for in, want := range map[string]string{
		"web": "web", "Web.example.net": "web", "my_host": "my-host", "10-0-0-1": "host-10-0-0-1", "": "host", "-x-": "x",
	} {
		if got := label(in); got != want {
			t.Errorf("label(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestHostNameStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "name")
	for i, c := range []struct{ given, hostname, want string }{
		{"", "Alpha.example", "alpha"}, {"", "beta", "alpha"}, {"alpha", "beta", "alpha"},
	} {
		if got, err := hostName(path, c.given, c.hostname); got != c.want || err != nil {
			t.Errorf("%d: %q, %v; want %q", i, got, err, c.want)
		}
	}
	if _, err := hostName(path, "beta", "beta"); err == nil {
		t.Error("another name was taken")
	}
}
