package store

import (
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// spare is the space that the database has beyond its end, in bytes: what bbolt grows by at a time.
const spare = 16 << 20

// reserve keeps the blocks of the embedded member's database its own. bbolt makes a file longer without giving it blocks
// (ftruncate(2)), and etcd ends the process when it can't write to one: a disk that something else fills must find them
// taken.
type reserve struct {
	path string

	mu   sync.Mutex
	size int64 // of the file, when its blocks were taken last
}

func newReserve(dir string) *reserve {
	return &reserve{path: filepath.Join(dir, "member", "snap", "db")}
}

// take takes the blocks of the file, where it has grown. It does what can be done: a file system that can't, or has no
// space left, is left to the check of what is free.
func (r *reserve) take() {
	r.mu.Lock()
	defer r.mu.Unlock()
	info, err := os.Stat(r.path)
	if err != nil || info.Size() == r.size {
		return
	}
	file, err := os.OpenFile(r.path, os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer file.Close()
	if unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, info.Size()+spare) == nil {
		r.size = info.Size()
	}
}
