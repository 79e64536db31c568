package dir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
)

// quotaDriver keeps the size of a directory tree by the project quota of the file system that it is on.
type quotaDriver interface {
	// assign gives an empty directory, and what is made in it later, to a project.
	assign(dir string, project uint32) error
	// limit says how much the project's files may take; 0 takes the limit away.
	limit(project uint32, size api.Bytes) error
	// used tells what they take.
	used(project uint32) (api.Bytes, error)
}

// firstProject begins the ids that the pool chooses from; below are those that people give out by hand.
const firstProject = 1 << 20

// freeProject finds a project id that no volume of the pool, and no file of the file system, uses.
func (p *Pool) freeProject() (uint32, error) {
	for range 1000 {
		project := firstProject + randomUint32()%(1<<30)
		used, err := p.quota.used(project)
		if err != nil {
			return 0, err
		}
		if used == 0 {
			return project, nil
		}
	}
	return 0, errors.New("no free project id found")
}

// projectQuota speaks quotactl_fd(2) (Linux 5.14), the generic form that ext4, xfs and f2fs understand.
type projectQuota struct{ dir *os.File }

// fsxattr is struct fsxattr of <linux/fs.h>.
type fsxattr struct {
	xflags, extsize, nextents, project, cowextsize uint32
	_                                              [8]byte
}

// dqblk is struct if_dqblk of <linux/quota.h>.
type dqblk struct {
	hardBlocks, softBlocks, space  uint64
	hardInodes, softInodes, inodes uint64
	blockTime, inodeTime           uint64
	valid                          uint32
	_                              uint32
}

const (
	fsSetXattr     = 0x401c5820 // FS_IOC_FSSETXATTR
	fsGetXattr     = 0x801c581f // FS_IOC_FSGETXATTR
	projectInherit = 0x00000200 // FS_XFLAG_PROJINHERIT
	getQuota       = 0x800007   // Q_GETQUOTA
	setQuota       = 0x800008   // Q_SETQUOTA
	projectType    = 2          // PRJQUOTA
	validLimits    = 1 | 4      // QIF_BLIMITS | QIF_ILIMITS
	quotaBlock     = 1024       // QIF_DQBLKSIZE: unit of the limits
	// inodeRatio is how many bytes of its size a tree has for each inode, as a file system made by mke2fs has: files
	// without content take nothing of a quota of blocks, and would use up the inodes of every other volume.
	inodeRatio = 16 * api.KiB
)

func (q projectQuota) assign(path string, project uint32) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	var attr fsxattr
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), fsGetXattr, uintptr(unsafe.Pointer(&attr))); errno != 0 {
		return fmt.Errorf("read project of %s: %w", path, errno)
	}
	attr.xflags |= projectInherit
	attr.project = project
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), fsSetXattr, uintptr(unsafe.Pointer(&attr))); errno != 0 {
		return fmt.Errorf("set project of %s: %w", path, errno)
	}
	return nil
}

func (q projectQuota) limit(project uint32, size api.Bytes) error {
	block := limits(size)
	if err := q.control(setQuota, project, &block); err != nil {
		return fmt.Errorf("set quota of project %d: %w", project, err)
	}
	return nil
}

// limits of a tree of this size.
func limits(size api.Bytes) dqblk {
	return dqblk{
		hardBlocks: uint64(size+quotaBlock-1) / quotaBlock, hardInodes: uint64(size+inodeRatio-1) / uint64(inodeRatio), valid: validLimits,
	}
}

func (q projectQuota) used(project uint32) (api.Bytes, error) {
	var block dqblk
	err := q.control(getQuota, project, &block)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil // XFS knows nothing of a project before its first use
	}
	if err != nil {
		return 0, fmt.Errorf("read quota of project %d: %w", project, err)
	}
	return api.Bytes(block.space), nil
}

func (q projectQuota) control(command int, project uint32, block *dqblk) error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, q.dir.Fd(), uintptr(command<<8|projectType), uintptr(project),
		uintptr(unsafe.Pointer(block)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// probeQuota finds out whether project quota works below dir, by exceeding one. The error is why it doesn't.
func probeQuota(dir string) (quotaDriver, error) {
	handle, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	q := projectQuota{dir: handle}
	if err := q.probe(dir); err != nil {
		handle.Close()
		return nil, err
	}
	return q, nil
}

func (q projectQuota) probe(dir string) error {
	const size = 128 * api.KiB
	trial, err := os.MkdirTemp(dir, makingPrefix+"quota-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(trial)
	project := firstProject + randomUint32()%(1<<30)
	if err := q.assign(trial, project); err != nil {
		return err
	}
	if err := q.limit(project, size); err != nil {
		return err
	}
	defer func() { _ = q.limit(project, 0) }()
	err = os.WriteFile(filepath.Join(trial, "trial"), make([]byte, 4*size), 0o600)
	if errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.ENOSPC) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.New("a project's files could exceed its quota")
}
