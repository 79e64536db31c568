package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/croftproject/croft/api"
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

func TestOrdinaryMemory(t *testing.T) {
	for name, tc := range map[string]struct {
		meminfo string
		want    api.Bytes
	}{
		"huge pages":    {"MemTotal:       8192 kB\nHugePages_Total:       1\nHugetlb:            2048 kB\n", 6144 * api.KiB},
		"an old kernel": {"MemTotal:       8192 kB\nMemFree:        1024 kB\n", 8192 * api.KiB},
		"no total":      {"MemFree:        1024 kB\n", 0},
		"no number":     {"MemTotal:       many kB\n", 0},
	} {
		if got, err := ordinaryMemory([]byte(tc.meminfo)); got != tc.want || (err == nil) != (tc.want > 0) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, tc.want)
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
	// A file that a loss of power left empty is no name.
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got, err := hostName(path, "", "gamma"); got != "gamma" || err != nil {
			t.Errorf("%q, %v; want gamma", got, err)
		}
	}
}

func TestHolds(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"volumes/.templates", "servers"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := holds(dir); got != "" || err != nil {
		t.Errorf("%q, %v; want nothing", got, err)
	}
	if err := os.Mkdir(filepath.Join(dir, "servers", "01x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := holds(dir); got != "1 directories in "+dir+"/servers" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}
