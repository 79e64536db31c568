package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/idmap"
	"github.com/croftproject/croft/internal/pool"
)

// makeTree makes what an overlay needs, and mounts nothing.
func (p *Pool) makeTree(ctx context.Context, dir string, r *record) error {
	if r.Base != "" {
		if st, err := os.Stat(r.Base); err != nil {
			return err
		} else if !st.IsDir() {
			return fmt.Errorf("base %s is no directory", r.Base)
		}
	}
	for _, name := range []string{"data", "lower", "root"} {
		// Layers are for root, which the overlay reads them as; root shows the overlay's own mode.
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return err
		}
	}
	if p.quota == nil {
		template, err := p.template(ctx, r.Size)
		if err != nil {
			return err
		}
		return clone(ctx, template, filepath.Join(dir, "data.ext4"), 0o600)
	}
	project, err := p.freeProject()
	if err != nil {
		return err
	}
	r.Project = project
	if err := p.quota.assign(filepath.Join(dir, "data"), project); err != nil {
		return err
	}
	return p.quota.limit(project, r.Size)
}

// openTree mounts the volume: its data, then the overlay of it over the base with shifted owners. Each step is skipped
// where an earlier call got that far.
func (p *Pool) openTree(ctx context.Context, r record) (pool.Opened, error) {
	opened := pool.Opened{Path: p.path(r.ID, "root")}
	if mounted, err := isMounted(opened.Path); err != nil || mounted {
		return opened, err
	}
	if err := p.mountData(ctx, r); err != nil {
		return pool.Opened{}, err
	}
	err := p.mountOverlay(r)
	if err != nil {
		return pool.Opened{}, errors.Join(err, p.closeTree(r.ID))
	}
	return opened, nil
}

// mountData mounts the volume's own file system.
func (p *Pool) mountData(ctx context.Context, r record) error {
	if r.Project != 0 {
		return nil
	}
	data := p.path(r.ID, "data")
	if mounted, err := isMounted(data); err != nil || mounted {
		return err
	}
	device, err := p.attach(ctx, r.ID)
	if err != nil {
		return err
	}
	defer device.Close()
	// The image is sparse, so what the guest frees is given back, and zeroing tables that read as zeros would fill it.
	err = unix.Mount(loopPath(device.number), data, "ext4", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOATIME, "discard,noinit_itable")
	if err != nil {
		return fmt.Errorf("mount %s: %w", p.path(r.ID, "data.ext4"), err)
	}
	return os.Chmod(data, 0o700)
}

// attach attaches the volume's file system to a loop device: the one that it still has, or a free one, after letting it
// fill its file. Two devices on one file would each cache it on their own and destroy it.
func (p *Pool) attach(ctx context.Context, id string) (*loopDevice, error) {
	image, note := p.path(id, "data.ext4"), p.path(id, "loop")
	if text, err := os.ReadFile(note); err == nil {
		if number, err := strconv.Atoi(string(text)); err == nil {
			if device := reopenLoop(number, image); device != nil {
				return device, nil
			}
		}
	}
	if err := fit(ctx, image); err != nil {
		return nil, err
	}
	device, err := attachLoop(image)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(note, []byte(strconv.Itoa(device.number)), 0o600); err != nil {
		device.Close()
		return nil, err
	}
	return device, nil
}

// mountOverlay puts the tree together at root.
func (p *Pool) mountOverlay(r record) error {
	data, lower := p.path(r.ID, "data"), p.path(r.ID, "lower")
	upper, work := filepath.Join(data, "upper"), filepath.Join(data, "work")
	if err := makeUpper(upper, work, r); err != nil {
		return err
	}
	// An overlay keeps a private copy of its lower mount, so that lower is needed only here.
	if err := unmount(lower); err != nil {
		return err
	}
	if r.Base != "" {
		err := idmap.Bind(r.Base, lower, r.Owner, r.Size32, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
		if err != nil {
			return err
		}
		defer func() { _ = unmount(lower) }()
	}
	return mountOverlay(lower, upper, work, p.path(r.ID, "root"))
}

// makeUpper makes the layer that takes the guest's changes. Its directory is what the guest sees as "/".
func makeUpper(upper, work string, r record) error {
	mode := os.FileMode(0o755)
	if r.Base != "" {
		st, err := os.Stat(r.Base)
		if err != nil {
			return err
		}
		mode = st.Mode().Perm()
	}
	for _, dir := range []string{upper, work} {
		if err := os.Mkdir(dir, mode); errors.Is(err, fs.ErrExist) {
			continue // the guest may have changed owner and mode since
		} else if err != nil {
			return err
		}
		if err := os.Chmod(dir, mode); err != nil {
			return err
		}
		if err := os.Chown(dir, int(r.Owner), int(r.Owner)); err != nil {
			return err
		}
	}
	return nil
}

// mountOverlay mounts by fsopen(2), which takes each option apart: no length limit, and no comma to mind.
func mountOverlay(lower, upper, work, target string) error {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	defer unix.Close(fd)
	// In lowerdir a colon parts layers and a backslash quotes (Documentation/filesystems/overlayfs.rst).
	quote := strings.NewReplacer(`\`, `\\`, `:`, `\:`)
	for _, option := range [][2]string{
		{"source", "croft"}, {"lowerdir", quote.Replace(lower)}, {"upperdir", upper}, {"workdir", work},
	} {
		if err := unix.FsconfigSetString(fd, option[0], option[1]); err != nil {
			return fmt.Errorf("mount overlay: %s %s: %w", option[0], option[1], err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return fmt.Errorf("mount overlay of %s over %s: %w", upper, lower, err)
	}
	mount, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	defer unix.Close(mount)
	if err := unix.MoveMount(mount, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount overlay at %s: %w", target, err)
	}
	return nil
}

// closeTree unmounts what openTree mounted, wherever that stopped. For other volumes it does nothing.
func (p *Pool) closeTree(id string) error {
	for _, name := range []string{"root", "lower", "data"} {
		if err := unmount(p.path(id, name)); err != nil {
			return err
		}
	}
	return nil
}

// growTree makes a tree larger, where it is, or what the next open will find.
func (p *Pool) growTree(ctx context.Context, r record, size api.Bytes) error {
	if r.Project != 0 {
		return p.quota.limit(r.Project, size)
	}
	image, data := p.path(r.ID, "data.ext4"), p.path(r.ID, "data")
	mounted, err := isMounted(data)
	if err != nil {
		return err
	}
	if err := os.Truncate(image, int64(size)); err != nil {
		return err
	}
	if !mounted {
		return fit(ctx, image)
	}
	device, err := p.attach(ctx, r.ID)
	if err != nil {
		return err
	}
	defer device.Close()
	if err := device.refresh(); err != nil {
		return err
	}
	return stretch(data, size)
}

// isMounted tells whether something is mounted at a directory of the pool's: the root of a mount says so itself
// (statx(2), STATX_ATTR_MOUNT_ROOT; Linux 5.8).
func isMounted(path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for mount at %s: %w", path, err)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// A guest that has just ended may hold its mounts for a moment: the kernel frees its namespaces behind its back, and
// tells nobody when.
const (
	unmountPatience = 5 * time.Second
	unmountPause    = 5 * time.Millisecond
)

// unmount unmounts whatever is mounted at path. It never detaches lazily: a file system that lives on unseen could be
// mounted a second time.
func unmount(path string) error {
	for deadline := time.Now().Add(unmountPatience); ; {
		mounted, err := isMounted(path)
		if err != nil || !mounted {
			return err
		}
		err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) && time.Now().Before(deadline) {
			time.Sleep(unmountPause)
			continue
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}
