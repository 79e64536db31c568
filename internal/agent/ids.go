package agent

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Ranges of host ids are 65536 ids each, well above those of the host's own users (login.defs(5), SUB_UID_MIN).
const (
	idRange   = 65536
	firstBase = 16 * idRange
	lastBase  = 28000 * idRange // below 2^31, and below the ids of the sandbox of images
)

// ranges tells whose each id range is, for all daemons of the machine: dir holds a link for each that is taken, named by
// its first id, to the directory of the server that has it. It lasts as volumes do, whose files belong to the ids: a reboot
// frees none. A link that leads nowhere is of a server that is gone, and claims nothing.
type ranges struct {
	dir    string
	subIDs []string // files of subuid(5) and subgid(5): ranges that the host handed to others
}

// take picks the id range of the server whose directory is given: where its id hashes to, or the next free one. A server
// that has that one already keeps it.
func (r ranges) take(id, dir string) (uint32, error) {
	others, err := r.others()
	if err != nil {
		return 0, err
	}
	unlock, err := r.lock()
	if err != nil {
		return 0, err
	}
	defer unlock()
	h := fnv.New32a()
	h.Write([]byte(id))
	const slots = (lastBase - firstBase) / idRange
	for i := range uint32(slots) {
		base := firstBase + (h.Sum32()%slots+i)%slots*idRange
		if others.meet(base) {
			continue
		}
		if err := r.claim(base, dir); !errors.Is(err, errTaken) {
			return base, err
		}
	}
	return 0, fmt.Errorf("no range of %d ids is free from %d to %d: see %s and %s", idRange, firstBase, lastBase, r.dir, strings.Join(r.subIDs, ", "))
}

var errTaken = errors.New("it is taken by another server")

// keep claims the range that a server has; errTaken says that another one has it, too.
func (r ranges) keep(base uint32, dir string) error {
	unlock, err := r.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return r.claim(base, dir)
}

// free gives a server's range back. Its directory is still there, so that nobody else has removed the link. It is
// idempotent.
func (r ranges) free(base uint32, dir string) error {
	link := r.link(base)
	if !same(link, dir) {
		return nil
	}
	return os.Remove(link)
}

// claim makes the link of a range. Under the lock: else what another daemon has just put in place of a link that leads
// nowhere could be removed for it.
func (r ranges) claim(base uint32, dir string) error {
	link := r.link(base)
	if _, err := os.Stat(link); errors.Is(err, fs.ErrNotExist) {
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return os.Symlink(dir, link)
	}
	if !same(link, dir) {
		return errTaken
	}
	return nil
}

func (r ranges) link(base uint32) string {
	return filepath.Join(r.dir, strconv.FormatUint(uint64(base), 10))
}

// lock has other daemons wait.
func (r ranges) lock() (unlock func(), err error) {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, err
	}
	d, err := os.Open(r.dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		d.Close()
		return nil, fmt.Errorf("lock %s: %w", r.dir, err)
	}
	return func() { d.Close() }, nil
}

// same tells whether two paths lead to one directory.
func same(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// spans are ids from the first up to, and without, the second.
type spans [][2]uint64

func (s spans) meet(base uint32) bool {
	for _, span := range s {
		if span[0] < uint64(base)+idRange && uint64(base) < span[1] {
			return true
		}
	}
	return false
}

// others are the ids that the host handed to others: lines of "user:first:count". What is no such line hands out nothing.
func (r ranges) others() (spans, error) {
	var out spans
	for _, path := range r.subIDs {
		data, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for line := range strings.Lines(string(data)) {
			fields := strings.Split(strings.TrimSpace(line), ":")
			if len(fields) != 3 {
				continue
			}
			first, err := strconv.ParseUint(fields[1], 10, 32)
			count, err2 := strconv.ParseUint(fields[2], 10, 32)
			if err == nil && err2 == nil {
				out = append(out, [2]uint64{first, first + count})
			}
		}
	}
	return out, nil
}
