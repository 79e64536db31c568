package store

import (
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	ballastSize  = 2 * walSegment
	ballastPiece = 64 << 10 // what a transaction costs at least
)

// ballast is a file that is only there to be given up. On a full disk each transaction that frees space has a piece cut
// off it, which bounds them: all of them together fit in the segment that the member's log has taken beforehand. A start
// has half of it: the member then takes the blocks of its log anew.
type ballast struct {
	path string

	mu   sync.Mutex
	left int64
}

func newBallast(dir string) *ballast {
	b := &ballast{path: filepath.Join(dir, "ballast")}
	if info, err := os.Stat(b.path); err == nil {
		b.left = info.Size()
	}
	return b
}

// fill makes the file whole again, of the given number of bytes at most.
func (b *ballast) fill(spare int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left >= ballastSize || ballastSize-b.left > spare {
		return
	}
	file, err := os.OpenFile(b.path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer file.Close()
	if unix.Fallocate(int(file.Fd()), 0, 0, ballastSize) == nil {
		b.left = ballastSize
	}
}

// cut gives up what a transaction of a size costs, unless less than keep would be left.
func (b *ballast) cut(size, keep int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	left := b.left - ballastPiece - 4*size
	return left >= keep && b.shrink(left)
}

// halve gives up half of what is left.
func (b *ballast) halve() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shrink(b.left / 2)
}

func (b *ballast) shrink(left int64) bool {
	if os.Truncate(b.path, left) != nil {
		return false
	}
	b.left = left
	return true
}
