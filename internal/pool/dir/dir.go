// Package dir keeps volumes in a directory of the host's file system.
//
// Every volume is a directory of its own, named by its id:
//
//	<id>/volume.json   what the volume is; written last when it is made, so that a volume is there whole or not at all
//	<id>/disk.raw      a File in format raw        } the owner's own
//	<id>/disk.qcow2    a File in format qcow2      }
//	<id>/data          a Tree's upper layer, as the guest changes it
//	<id>/data.ext4     the file system on data, where the pool's own can't enforce a size
//	<id>/loop          number of the loop device that data.ext4 was attached to last
//	<id>/lower         where the base is mounted while the overlay is put together
//	<id>/root          the Tree: an overlay of data over the base
//
// A volume's directory belongs to root, and only the owner's group passes through it: the owner writes to the disk or the
// tree, never beside it. Directories whose names begin with a dot are the pool's own: templates, and volumes being made or removed, which are
// swept at start.
package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/pool"
)

// Options of a pool.
type Options struct {
	Dir    string // directory that the volumes live below; made where it is missing
	Logger *slog.Logger
}

// Pool is a pool.Pool in a directory.
type Pool struct {
	dir       string
	log       *slog.Logger
	quota     quotaDriver // nil: sizes of trees are enforced by a file system of their own
	locks     locks
	templates sync.Mutex
}

var _ pool.Pool = (*Pool)(nil)

const (
	makingPrefix   = ".making-"
	deletingPrefix = ".deleting-"
	templatesName  = ".templates"
)

// New readies the pool at o.Dir and sweeps away what was interrupted.
func New(o Options) (*Pool, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("pool directory: %w", err)
	}
	// Guests' shifted root users pass through this directory to their own volume, and see nothing else in it.
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make pool: %w", err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make pool: %w", err)
	}
	p := &Pool{dir: dir, log: o.Logger, locks: locks{held: map[string]*lock{}}}
	if err := p.sweep(); err != nil {
		return nil, err
	}
	p.quota, err = probeQuota(dir)
	if err != nil {
		p.log.Info("no project quota; trees get a file system of their own", "pool", dir, "reason", err)
	}
	return p, nil
}

// sweep removes volumes that were being made or removed when an earlier daemon ended.
func (p *Pool) sweep() error {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return fmt.Errorf("read pool: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), makingPrefix) && !strings.HasPrefix(e.Name(), deletingPrefix) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(p.dir, e.Name())); err != nil {
			return fmt.Errorf("sweep pool: %w", err)
		}
	}
	return nil
}

// Info implements pool.Pool.
func (p *Pool) Info(context.Context) (pool.Info, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(p.dir, &st); err != nil {
		return pool.Info{}, fmt.Errorf("pool %s: %w", p.dir, err)
	}
	taken, err := p.taken()
	if err != nil {
		return pool.Info{}, err
	}
	free := api.Bytes(int64(st.Bavail) * st.Bsize)
	info := pool.Info{
		Driver:   "dir",
		Capacity: min(free+taken, api.Bytes(int64(st.Blocks)*st.Bsize)),
		Free:     free,
		Enforced: "loop",
	}
	if p.quota != nil {
		info.Enforced = "project-quota"
	}
	info.Major, info.Minor = wholeDisk(p.dir)
	return info, nil
}

// wholeDisk finds the disk below a directory; 0:0 where it has none of its own (btrfs, overlay, network). I/O limits
// count on whole disks, so a partition stands for its disk.
func wholeDisk(path string) (major, minor int64) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || unix.Major(st.Dev) == 0 {
		return 0, 0
	}
	node := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	if _, err := os.Stat(node + "/partition"); err == nil {
		if text, err := os.ReadFile(node + "/../dev"); err == nil {
			if n, _ := fmt.Sscanf(string(text), "%d:%d", &major, &minor); n == 2 {
				return major, minor
			}
		}
	}
	return int64(unix.Major(st.Dev)), int64(unix.Minor(st.Dev))
}

// Create implements pool.Pool.
func (p *Pool) Create(ctx context.Context, s pool.Spec) error {
	if err := checkSpec(s); err != nil {
		return fmt.Errorf("create volume %q: %w", s.ID, err)
	}
	defer p.locks.lock(s.ID)()
	if _, err := p.read(s.ID); err == nil {
		return nil
	} else if !errors.Is(err, pool.ErrNotFound) {
		return err
	}
	making := filepath.Join(p.dir, makingPrefix+s.ID)
	err := p.make(ctx, making, s)
	if err == nil {
		// What is in the way is no volume: it has no record.
		if err = p.clear(s.ID); err == nil {
			err = os.Rename(making, p.path(s.ID))
		}
		if err == nil {
			err = syncPath(p.dir)
		}
	}
	if err != nil {
		_ = os.RemoveAll(making)
		return fmt.Errorf("create volume %s: %w", s.ID, full(err))
	}
	return nil
}

// make builds the volume's directory at dir, its record last.
func (p *Pool) make(ctx context.Context, dir string, s pool.Spec) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	err := admit(dir, s.Owner)
	if err != nil {
		return err
	}
	r := record{Spec: s}
	switch s.Kind {
	case pool.Tree:
		err = p.makeTree(ctx, dir, &r)
	case pool.File:
		err = makeFile(ctx, dir, &r)
	}
	if err != nil {
		return err
	}
	return r.write(dir)
}

// admit lets the owner of a volume, by its group, and nobody else but root pass through the volume's directory to what
// is in it: a Tree's root, or the disk. The owner can change nothing there, so that the pool finds its own files.
func admit(dir string, owner uint32) error {
	// O_NOFOLLOW and the file descriptor: what is changed is the directory that was opened.
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(fd)
	if err := unix.Fchown(fd, 0, int(owner)); err != nil {
		return fmt.Errorf("give %s to group %d: %w", dir, owner, err)
	}
	if err := unix.Fchmod(fd, 0o710); err != nil {
		return fmt.Errorf("change mode of %s: %w", dir, err)
	}
	return nil
}

// Open implements pool.Pool.
func (p *Pool) Open(ctx context.Context, s pool.Spec) (pool.Opened, error) {
	if err := checkID(s.ID); err != nil {
		return pool.Opened{}, err
	}
	defer p.locks.lock(s.ID)()
	r, err := p.read(s.ID)
	if err != nil {
		return pool.Opened{}, fmt.Errorf("open volume %s: %w", s.ID, err)
	}
	owner := r.Owner
	if r.Kind == pool.File {
		owner = s.Owner // a disk may be opened by another one than it was made for
	}
	if err := admit(p.path(s.ID), owner); err != nil {
		return pool.Opened{}, fmt.Errorf("open volume %s: %w", s.ID, err)
	}
	var opened pool.Opened
	if r.Kind == pool.Tree {
		opened, err = p.openTree(ctx, r)
	} else {
		opened, err = p.openFile(r, s.Owner)
	}
	if err != nil {
		return pool.Opened{}, fmt.Errorf("open volume %s: %w", s.ID, full(err))
	}
	return opened, nil
}

// Close implements pool.Pool.
func (p *Pool) Close(_ context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	defer p.locks.lock(id)()
	if err := p.closeTree(id); err != nil {
		return fmt.Errorf("close volume %s: %w", id, err)
	}
	return nil
}

// Grow implements pool.Pool.
func (p *Pool) Grow(ctx context.Context, id string, size api.Bytes) error {
	if err := checkID(id); err != nil {
		return err
	}
	defer p.locks.lock(id)()
	r, err := p.read(id)
	if err != nil {
		return fmt.Errorf("grow volume %s: %w", id, err)
	}
	switch {
	case size == r.Size:
		return nil
	case size < r.Size:
		return fmt.Errorf("grow volume %s: from %v to %v would shrink it", id, r.Size, size)
	}
	if r.Kind == pool.Tree {
		err = p.growTree(ctx, r, size)
	} else {
		err = p.growFile(ctx, r, size)
	}
	if err != nil {
		return fmt.Errorf("grow volume %s: %w", id, full(err))
	}
	r.Size = size
	return r.write(p.path(id))
}

// Delete implements pool.Pool.
func (p *Pool) Delete(_ context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	defer p.locks.lock(id)()
	if err := os.RemoveAll(filepath.Join(p.dir, makingPrefix+id)); err != nil {
		return fmt.Errorf("delete volume %s: %w", id, err)
	}
	if err := p.clear(id); err != nil {
		return fmt.Errorf("delete volume %s: %w", id, err)
	}
	return nil
}

// clear unmounts and removes whatever is at the volume's place.
func (p *Pool) clear(id string) error {
	if _, err := os.Lstat(p.path(id)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	r, err := p.read(id)
	if err := p.closeTree(id); err != nil {
		return err
	}
	if err == nil && p.quota != nil && r.Project != 0 {
		if err := p.quota.limit(r.Project, 0); err != nil {
			p.log.Warn("quota of a deleted volume is left behind", "volume", id, "error", err)
		}
	}
	deleting := filepath.Join(p.dir, deletingPrefix+id)
	if err := os.RemoveAll(deleting); err != nil {
		return err
	}
	if err := os.Rename(p.path(id), deleting); err != nil {
		return err
	}
	return os.RemoveAll(deleting)
}

// List implements pool.Pool.
func (p *Pool) List(context.Context) ([]string, error) {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return nil, fmt.Errorf("list pool: %w", err)
	}
	ids := []string{}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && e.IsDir() {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

func (p *Pool) path(id string, parts ...string) string {
	return filepath.Join(append([]string{p.dir, id}, parts...)...)
}

// full tells a full file system by the contract's error.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", pool.ErrFull, err)
	}
	return err
}
