package dir

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// loopDevice is a loop device (loop(4)) that is attached to a file. It detaches itself once nothing uses it any more,
// so that neither a crash nor a reboot leaves one behind.
type loopDevice struct {
	file   *os.File
	number int
}

func loopPath(number int) string { return fmt.Sprintf("/dev/loop%d", number) }

// attachLoop finds a free loop device and attaches it to the file at path.
func attachLoop(path string) (*loopDevice, error) {
	backing, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("attach loop device: %w", err)
	}
	defer control.Close()
	for {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find free loop device: %w", err)
		}
		device, err := configureLoop(number, backing)
		// Another process was faster, or the device was just detached and is being removed.
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENXIO) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("attach %s to %s: %w", loopPath(number), path, err)
		}
		return device, nil
	}
}

func configureLoop(number int, backing *os.File) (*loopDevice, error) {
	file, err := os.OpenFile(loopPath(number), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: 4096}
	// Direct I/O keeps the guest's data from being cached twice, and from being counted as the host's.
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	copy(config.Info.File_name[:len(config.Info.File_name)-1], backing.Name())
	err = unix.IoctlLoopConfigure(int(file.Fd()), &config)
	if errors.Is(err, unix.EINVAL) {
		config.Info.Flags &^= unix.LO_FLAGS_DIRECT_IO
		err = unix.IoctlLoopConfigure(int(file.Fd()), &config)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return &loopDevice{file: file, number: number}, nil
}

// reopenLoop opens a loop device that was attached to path earlier; nil where it is attached to something else by now.
func reopenLoop(number int, path string) *loopDevice {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil
	}
	file, err := os.OpenFile(loopPath(number), os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	info, err := unix.IoctlLoopGetStatus64(int(file.Fd()))
	if err != nil || info.Inode != st.Ino || info.Device != st.Dev {
		file.Close()
		return nil
	}
	return &loopDevice{file: file, number: number}
}

// refresh makes the device as large as its file has become.
func (l *loopDevice) refresh() error {
	if err := unix.IoctlSetInt(int(l.file.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("grow %s: %w", loopPath(l.number), err)
	}
	return nil
}

// Close lets go of the device. It stays attached while it is mounted.
func (l *loopDevice) Close() error { return l.file.Close() }
