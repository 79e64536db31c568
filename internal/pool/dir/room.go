package dir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
)

// contents are the files of a volume's directory that grow as the guest writes.
var contents = []string{"disk.raw", "disk.qcow2", "data.ext4"}

// taken is what volumes, those being made included, take of the file system. Blocks that they share count for each.
func (p *Pool) taken() (api.Bytes, error) {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return 0, fmt.Errorf("read pool: %w", err)
	}
	var sum api.Bytes
	for _, e := range entries {
		if e.Name() == templatesName {
			continue
		}
		for _, name := range contents {
			var st unix.Stat_t
			err := unix.Lstat(p.path(e.Name(), name), &st)
			if err == nil {
				sum += api.Bytes(st.Blocks * 512)
			} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
				return 0, fmt.Errorf("size of volume %s: %w", e.Name(), err)
			}
		}
		if p.quota == nil {
			continue
		}
		if r, err := p.read(e.Name()); err == nil && r.Project != 0 { // others have no quota
			used, err := p.quota.used(r.Project)
			if err != nil {
				return 0, err
			}
			sum += used
		}
	}
	return sum, nil
}
