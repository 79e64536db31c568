package qemu

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
)

// A device belongs to its server's user for as long as the server has it.
func TestDeviceComesBack(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("giving files away takes root")
	}
	dir := t.TempDir()
	v := vfio{devices: filepath.Join(dir, "devices"), nodes: filepath.Join(dir, "vfio")}
	node := filepath.Join(v.nodes, "7")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(v.devices, "0000:01:00.0"), 0o755), os.Mkdir(v.nodes, 0o755), os.WriteFile(node, nil, 0o600),
		os.Symlink("../../groups/7", filepath.Join(v.devices, "0000:01:00.0/iommu_group")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	check := func(want uint32) {
		t.Helper()
		var stat unix.Stat_t
		if err := unix.Stat(node, &stat); err != nil || stat.Uid != want || stat.Gid != want {
			t.Errorf("the node is %d's, not %d's: %v", stat.Uid, want, err)
		}
	}
	grants := []api.Grant{{Kind: api.GrantDevice, Source: "01:00.0"}, {Kind: api.GrantDevice, Source: "02:00.0"}}
	if err := v.give("01:00.0", 700000); err != nil {
		t.Fatal(err)
	}
	check(700000)
	if err := v.takeBack(grants, 800000); err != nil {
		t.Error(err)
	}
	check(700000) // another server's by now
	for range 2 {
		if err := v.takeBack(grants, 700000); err != nil {
			t.Error(err)
		}
		check(0)
	}
}
