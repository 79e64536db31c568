package seed

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/croftproject/croft/api"
	"github.com/diskfs/go-diskfs"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

var meta = api.Meta{ID: "01abc", Name: "web"}

func TestRender(t *testing.T) {
	s := Render(meta, &api.Guest{
		SSHKeys: []string{"ssh-ed25519 AAAA a@b"},
		Users:   []api.GuestUser{{Name: "ops", Sudo: true, SSHKeys: []string{"ssh-ed25519 BBBB"}}},
	}, []string{"52:54:00:00:00:01"})
	if !strings.Contains(s.Network, "macaddress: \"52:54:00:00:00:01\"") && !strings.Contains(s.Network, "macaddress: 52:54:00:00:00:01") {
		t.Errorf("network-config:\n%s", s.Network)
	}
	if !strings.HasPrefix(s.UserData, "#cloud-config\n") {
		t.Errorf("user-data begins %q", s.UserData)
	}
	var got struct {
		Hostname string
		Keys     []string `yaml:"ssh_authorized_keys"`
		Users    []any
	}
	if err := yaml.Unmarshal([]byte(s.UserData), &got); err != nil {
		t.Fatal(err)
	}
	if got.Hostname != "web" || len(got.Keys) != 1 || len(got.Users) != 2 || got.Users[0] != "default" {
		t.Errorf("%+v", got)
	}
	if own := Render(meta, &api.Guest{UserData: "#!/bin/sh\ntrue\n", Hostname: "other"}, nil); own.UserData != "#!/bin/sh\ntrue\n" || own.Hostname != "other" {
		t.Errorf("%+v", own)
	}
	if none := Render(meta, nil, nil); none.Hostname != "web" || !strings.Contains(none.MetaData, "instance-id: 01abc") {
		t.Errorf("%+v", none)
	}
}

func TestWriteISO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "seed.iso")
	want := Render(meta, nil, nil)
	for range 2 { // it replaces what is there
		if err := want.WriteISO(path, os.Getuid()); err != nil {
			t.Fatal(err)
		}
	}
	d, err := diskfs.Open(path, diskfs.WithOpenMode(diskfs.ReadOnly))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	fs, err := d.GetFilesystem(0)
	if err != nil {
		t.Fatal(err)
	}
	if l := strings.TrimRight(fs.Label(), " "); l != "cidata" {
		t.Errorf("label %q", l)
	}
	f, err := fs.OpenFile("/meta-data", os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want.MetaData))
	if _, err := f.Read(got); string(got) != want.MetaData {
		t.Errorf("meta-data %q, %v", got, err)
	}
}

func TestWriteTree(t *testing.T) {
	tree, outside := t.TempDir(), t.TempDir()
	s := Render(meta, nil, nil)
	s.Resolv = "nameserver 10.0.0.1\n"
	if err := s.WriteTree(tree, os.Getuid(), true); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"etc/hostname": "web\n", "etc/resolv.conf": s.Resolv, "var/lib/cloud/seed/nocloud/meta-data": s.MetaData,
	} {
		if got, err := os.ReadFile(filepath.Join(tree, name)); string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	// A guest that turned a directory into a link gets nothing written outside its tree.
	if err := os.RemoveAll(filepath.Join(tree, "etc")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(tree, "etc")); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteTree(tree, os.Getuid(), true); err == nil {
		t.Error("a link out of the tree was followed")
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("written outside: %v", left)
	}
}

// A guest can leave anything where a file is expected: what blocks its reader, or has no end.
func TestFilesThatAreNone(t *testing.T) {
	for name, plant := range map[string]func(path string) error{
		"pipe":   func(path string) error { return unix.Mkfifo(path, 0o600) },
		"sparse": func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<40)) },
		"link":   func(path string) error { return os.Symlink("/dev/zero", path) },
	} {
		t.Run(name, func(t *testing.T) {
			tree := t.TempDir()
			path := filepath.Join(tree, "etc/hostname")
			if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o755), plant(path)); err != nil {
				t.Fatal(err)
			}
			if err := Render(meta, nil, nil).WriteTree(tree, os.Getuid(), false); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(path); string(got) != "web\n" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

func TestResolverOfTheGuestsOwnStays(t *testing.T) {
	tree := t.TempDir()
	if err := os.Mkdir(filepath.Join(tree, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(tree, "etc/resolv.conf")
	if err := os.Symlink("../run/resolve/resolv.conf", link); err != nil {
		t.Fatal(err)
	}
	s := Render(meta, nil, nil)
	s.Resolv = "nameserver 10.0.0.1\n"
	if err := s.WriteTree(tree, os.Getuid(), false); err != nil {
		t.Fatal(err)
	}
	if to, err := os.Readlink(link); to != "../run/resolve/resolv.conf" {
		t.Errorf("link is %q, %v", to, err)
	}
}

// A seed holds secrets: nothing that it was made from stays, whether that went well or not.
func TestISOLeavesNothingBehind(t *testing.T) {
	for _, name := range []string{"made", "failed"} {
		t.Run(name, func(t *testing.T) {
			temporary, dir := t.TempDir(), t.TempDir()
			t.Setenv("TMPDIR", temporary)
			path := filepath.Join(dir, "seed.iso")
			if name == "failed" { // no file replaces a directory
				if err := os.Mkdir(path, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if err := Render(meta, nil, nil).WriteISO(path, os.Getuid()); (err != nil) != (name == "failed") {
				t.Errorf("error %v", err)
			}
			for place, count := range map[string]int{temporary: 0, dir: 1} {
				if entries, err := os.ReadDir(place); err != nil || len(entries) != count {
					t.Errorf("%s holds %v, %v", place, entries, err)
				}
			}
		})
	}
}
