package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/croftproject/croft/internal/agent"
	"github.com/croftproject/croft/internal/cgroup"
	"github.com/croftproject/croft/internal/hostnet"
	"github.com/croftproject/croft/internal/hostnet/linux"
	"github.com/croftproject/croft/internal/image"
	"github.com/croftproject/croft/internal/keeper"
	"github.com/croftproject/croft/internal/mounts"
	"golang.org/x/sys/unix"
)

// ErrServersRun says that a host still has running servers.
var ErrServersRun = errors.New("servers run on this host: stop them first (croft server stop), then try again")

// Clean takes away what a daemon made on the host besides its state: networks, the keeper, control groups, the run
// directory. The next daemon of the state directory makes them again. It refuses while a daemon or a server runs, and
// can be called again.
func Clean(ctx context.Context, o Options) error {
	if err := o.complete(); err != nil {
		return err
	}
	if _, err := os.Stat(o.StateDir); errors.Is(err, os.ErrNotExist) {
		return nil // no daemon ever ran
	}
	d := &Daemon{o: o, group: groupOf(o.StateDir)}
	defer d.close()
	if err := d.takeLock(); err != nil {
		return err
	}
	if err := d.endKeeper(ctx); err != nil {
		return err
	}
	if err := removeGroups(ctx, d.group); err != nil {
		return err
	}
	if err := d.removeNetworks(ctx); err != nil {
		return err
	}
	// Volumes that are open are closed: their loop devices go with the mounts.
	at, err := mounts.Below(o.StateDir)
	if err != nil {
		return err
	}
	for _, m := range at {
		if err := unix.Unmount(m, unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	return mounts.RemoveAll(o.RunDir)
}

// endKeeper ends the keeper where one serves.
func (d *Daemon) endKeeper(ctx context.Context) error {
	dir := filepath.Join(d.o.RunDir, "keeper")
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	k, err := keeper.Connect(ctx, dir, keeper.Options{Executable: d.o.Executable, CgroupPath: d.group + "-keeper"})
	if err != nil {
		return err
	}
	err = k.Shutdown(ctx)
	if errors.Is(err, keeper.ErrRunning) {
		err = ErrServersRun
	}
	return errors.Join(err, k.Close())
}

// removeGroups removes the control groups. Only servers' processes are left alone, and refused. A keeper that was told to
// end may not have got to it, and a daemon that was killed left its trial guests and sandboxes: those are ended.
func removeGroups(ctx context.Context, group string) error {
	servers, err := cgroup.New(group)
	if err != nil {
		return err
	}
	names, err := servers.List()
	if err != nil {
		return err
	}
	for _, name := range names {
		if name == agent.ProbeGroup || strings.HasPrefix(name, image.GroupPrefix) {
			if err := servers.Kill(ctx, name); err != nil {
				return err
			}
		}
	}
	if err := servers.Remove(ctx, ""); errors.Is(err, cgroup.ErrBusy) {
		return fmt.Errorf("%w (%w)", ErrServersRun, err)
	} else if err != nil {
		return err
	}
	keepers, err := cgroup.New(group + "-keeper")
	if err != nil {
		return err
	}
	if err := keepers.Kill(ctx, ""); err != nil {
		return err
	}
	return keepers.Remove(ctx, "")
}

func (d *Daemon) removeNetworks(ctx context.Context) error {
	net, err := linux.New(linux.Options{
		RunDir: d.o.RunDir, NetNS: d.o.NetNS, Prefix: prefix(d.o.StateDir), Uplink: d.o.Uplink, Logger: d.o.Logger,
	})
	if err != nil {
		return err
	}
	d.net = net // closed with the daemon
	if err := net.SetShares(ctx, hostnet.Shares{}); err != nil {
		return err
	}
	networks, err := net.List(ctx)
	if err != nil {
		return err
	}
	for _, id := range networks {
		if err := net.Remove(ctx, id); err != nil {
			return err
		}
	}
	return nil
}
