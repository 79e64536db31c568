package qemu

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// watcher tells when a file is made (inotify(7)), so that waiting for QEMU's socket costs no time.
type watcher struct {
	inotify *os.File
	made    chan struct{} // closed once it was made
}

// watch begins to watch for a file in a directory that exists.
func watch(path string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	w := &watcher{inotify: os.NewFile(uintptr(fd), "inotify"), made: make(chan struct{})}
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_CREATE); err != nil {
		w.close()
		return nil, fmt.Errorf("watch %s: %w", filepath.Dir(path), err)
	}
	go w.read(filepath.Base(path))
	return w, nil
}

func (w *watcher) close() { _ = w.inotify.Close() }

// read ends when the file is made, or the watcher closed.
func (w *watcher) read(name string) {
	buffer := make([]byte, 4096)
	for {
		n, err := w.inotify.Read(buffer)
		if err != nil {
			return
		}
		for rest := buffer[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			event := (*unix.InotifyEvent)(unsafe.Pointer(&rest[0]))
			end := unix.SizeofInotifyEvent + int(event.Len)
			if string(bytes.TrimRight(rest[unix.SizeofInotifyEvent:end], "\x00")) == name {
				close(w.made)
				return
			}
			rest = rest[end:]
		}
	}
}
