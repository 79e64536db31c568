package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
)

// vfio is where the host shows its PCI devices, and the nodes of their VFIO groups (Documentation/driver-api/vfio.rst).
type vfio struct{ devices, nodes string }

var hostDevices = vfio{devices: "/sys/bus/pci/devices", nodes: "/dev/vfio"}

// node is the path of a device's group.
func (v vfio) node(address string) (string, error) {
	if strings.Count(address, ":") == 1 {
		address = "0000:" + address
	}
	group, err := os.Readlink(filepath.Join(v.devices, address, "iommu_group"))
	if err != nil {
		return "", fmt.Errorf("device %s: it is in no IOMMU group: %w", address, err)
	}
	return filepath.Join(v.nodes, filepath.Base(group)), nil
}

// give lets a user open a device.
func (v vfio) give(address string, user uint32) error {
	node, err := v.node(address)
	if err != nil {
		return err
	}
	if err := os.Chown(node, int(user), int(user)); err != nil {
		return fmt.Errorf("device %s: is it bound to vfio-pci? %w", address, err)
	}
	return nil
}

// takeBack gives root the granted devices that are still the user's. One that is gone, or another's by now, is left.
func (v vfio) takeBack(grants []api.Grant, user uint32) (err error) {
	for _, g := range grants {
		if g.Kind != api.GrantDevice {
			continue
		}
		node, gone := v.node(g.Source)
		var stat unix.Stat_t
		if gone != nil || unix.Lstat(node, &stat) != nil || stat.Uid != user {
			continue
		}
		if e := os.Lchown(node, 0, 0); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}
