package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/idmap"
)

// bundle is a machine's directory of this engine, below RunDir. It is flat: what is in it is a file, or an empty
// directory that may be a mount point. So taking it away never has to descend into a mount.
type bundle string

func bundleOf(m *engine.Machine) bundle { return bundle(filepath.Join(m.RunDir, "oci")) }

func (b bundle) file(name string) string { return filepath.Join(string(b), name) }

// remove unmounts and removes all of it. It is idempotent.
func (b bundle) remove() error {
	var err error
	for range 10 { // a runtime that was to start a process in the guest may still write why it did not
		if err = b.empty(); !errors.Is(err, unix.ENOTEMPTY) {
			break
		}
	}
	return err
}

func (b bundle) empty() error {
	entries, err := os.ReadDir(string(b))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := b.file(e.Name())
		for unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.Remove(string(b)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// gather reads the facts of a machine and makes its mounts. The caller removes the bundle where it fails, and calls
// release, which is never nil, once the guest runs.
func gather(m *engine.Machine, groups hierarchies) (host Facts, release func(), err error) {
	release = func() {}
	host.Cgroups = groups.mode()
	root, err := openTree(m.Root.Path)
	if err != nil {
		return host, release, err
	}
	defer root.close()
	if err := root.checkAccounts(); err != nil {
		return host, release, err
	}
	if m.App == nil {
		host.Init, host.PowerOff, err = root.findInit()
	} else {
		host.PowerOff = offApplication
		host.User, err = root.accounts().resolve(m.App.User, m.IDs.Size)
	}
	if err != nil {
		return host, release, err
	}
	b := bundleOf(m)
	if err := host.network(m, &release); err != nil {
		return host, release, err
	}
	if err := host.grants(m, b); err != nil {
		return host, release, err
	}
	host.Files = filesLimit()
	host.Tun = usable("/dev/net/tun")
	host.Fuse = usable("/dev/fuse")
	if m.App != nil {
		host.Hostname = b.file("hostname")
		if err := os.WriteFile(host.Hostname, []byte(m.Host+"\n"), 0o644); err != nil {
			return host, release, fmt.Errorf("write host name: %w", err)
		}
	}
	return host, release, nil
}

// network prepares the network namespace and finds which user namespace the guest is to be in.
func (host *Facts) network(m *engine.Machine, release *func()) error {
	if m.NetNS == "" {
		return nil
	}
	owner, err := ownerOf(m.NetNS)
	if err != nil {
		return err
	}
	*release = func() { owner.Close() }
	host.UserNS = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), owner.Fd())
	return within(m.NetNS, func() error { return openNetwork(m) })
}

// grants opens what is granted and mounts it below the bundle.
func (host *Facts) grants(m *engine.Machine, b bundle) error {
	var shift *idmap.Namespace
	for i, g := range m.Grants {
		target := g.Target
		if target == "" {
			target = g.Source
		}
		bind := Bind{Source: b.file(fmt.Sprintf("grant-%d", i)), Target: target, ReadOnly: g.ReadOnly}
		switch g.Kind {
		case api.GrantDirectory:
			if shift == nil {
				var err error
				if shift, err = idmap.New(m.IDs.Base, m.IDs.Size); err != nil {
					return err
				}
				defer shift.Close()
			}
			if err := grantDirectory(shift, g, bind.Source); err != nil {
				return fmt.Errorf("grant directory %s: %w", g.Source, err)
			}
		case api.GrantDevice:
			device, err := grantDevice(g, bind.Source, m.IDs)
			if err != nil {
				return fmt.Errorf("grant device %s: %w", g.Source, err)
			}
			bind.Device = true
			host.Devices = append(host.Devices, device)
		default:
			continue
		}
		host.Binds = append(host.Binds, bind)
	}
	return nil
}

// filesLimit is this process's own hard limit, which the keeper got from it: in a user namespace, it can't be raised
// (getrlimit(2), CAP_SYS_RESOURCE).
func filesLimit() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return limit.Max
}

// usable tells whether a device node is there for everyone: the guest sees it as nobody's.
func usable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && info.Mode().Perm()&0o006 == 0o006
}
