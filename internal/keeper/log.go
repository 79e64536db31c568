package keeper

import (
	"os"

	"golang.org/x/sys/unix"
)

// defaultLogLimit bounds a log whose limit was not said, in bytes.
const defaultLogLimit = 4 << 20

// StderrLimit is the greatest size of a file for standard error, in bytes.
const StderrLimit = 64 << 10

// rollingLog is a file of bounded size: what would not fit moves to path+".1", and that of before is dropped.
// It is not safe for concurrent use.
type rollingLog struct {
	path  string
	limit int64
	file  *os.File
	size  int64
}

func openLog(path string, limit int64) (*rollingLog, error) {
	if limit <= 0 {
		limit = defaultLogLimit
	}
	l := &rollingLog{path: path, limit: limit}
	return l, l.open()
}

func (l *rollingLog) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	l.file, l.size = f, info.Size()
	return nil
}

// Write appends p. What can't be written (a full disk) is lost; the next write tries again.
func (l *rollingLog) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		if l.file == nil {
			if err := l.open(); err != nil {
				return written, err
			}
		}
		if l.size > 0 && l.size+int64(len(p)) > l.limit {
			if err := l.rotate(); err != nil {
				return written, err
			}
		}
		n, err := l.file.Write(p[:min(int64(len(p)), l.limit)])
		l.size += int64(n)
		written += n
		if err != nil {
			return written, err
		}
		p = p[n:]
	}
	return written, nil
}

func (l *rollingLog) rotate() error {
	if err := os.Rename(l.path, l.path+".1"); err != nil && !os.IsNotExist(err) {
		return err
	}
	l.file.Close()
	l.file = nil
	return l.open()
}

func (l *rollingLog) Close() {
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
}
