// Package memfile keeps a program or a library that this one carries in memory, as a file that can be executed and that
// nobody can change (memfd_create(2)). No directory has to allow that: /run and /tmp are often mounted without it.
package memfile

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// executable is MFD_EXEC, of Linux 6.3 or later: without it the file may not be executed where vm.memfd_noexec says so.
const executable = 0x10

// New makes the file. It is closed in programs that this one executes; /proc/self/fd/N names it until then.
func New(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|executable)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if errors.Is(err, unix.EACCES) {
		return nil, errors.New("the host lets no program be executed from memory: set sysctl vm.memfd_noexec to 1 or 0")
	}
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(content); err != nil {
		return nil, errors.Join(fmt.Errorf("write a file in memory: %w", err), f.Close())
	}
	const seals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return nil, errors.Join(fmt.Errorf("seal a file in memory: %w", err), f.Close())
	}
	return f, nil
}

// Kept is a file that is made when it is asked for first, and kept. Its fields are set before that.
type Kept struct {
	Name    string
	Content func() ([]byte, error)

	mu   sync.Mutex
	file *os.File
}

// File is the file. The caller leaves it open.
func (k *Kept) File() (*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.file != nil {
		return k.file, nil
	}
	content, err := k.Content()
	if err != nil {
		return nil, err
	}
	k.file, err = New(k.Name, content)
	return k.file, err
}
