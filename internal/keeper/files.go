package keeper

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/cgroup"
	"github.com/croftproject/croft/internal/place"
)

// openFile opens what a process inherits.
func openFile(f File) (*os.File, error) {
	if f.Tree != "" {
		return place.OpenTree(f.Path, f.Tree != WriteTree)
	}
	if f.Tap == "" {
		// os.OpenFile would leave what can be polled non-blocking, which the process would inherit.
		fd, err := unix.Open(f.Path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: f.Path, Err: err}
		}
		return os.NewFile(uintptr(fd), f.Path), nil
	}
	if f.NetNS == "" {
		return openTap(f.Tap, f.VnetHdr)
	}
	namespace, err := os.Open(f.NetNS)
	if err != nil {
		return nil, fmt.Errorf("open tap %s: %w", f.Tap, err)
	}
	defer namespace.Close()
	var tap *os.File
	cgroup.OnThread(func() {
		if err = unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("enter %s: %w", f.NetNS, err)
			return
		}
		tap, err = openTap(f.Tap, f.VnetHdr)
	})
	return tap, err
}

// openPipe makes a pipe of which a process gets w. That is open for reading too (fifo(7)): the pipe has a reader for as
// long as the process lives, so that it goes on writing when the keeper is killed, and a next keeper takes the pipe from
// it (takePipe). w blocks, unlike that of os.Pipe, since few programs expect a standard output that does not; flags
// change that.
func openPipe(flags int) (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	defer unix.Close(fds[1])
	both, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fds[1]), unix.O_RDWR|unix.O_CLOEXEC|flags, 0)
	if err == nil {
		if err = unix.SetNonblock(fds[0], true); err != nil {
			unix.Close(both)
		}
	}
	if err != nil {
		unix.Close(fds[0])
		return nil, nil, fmt.Errorf("open pipe: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "output"), os.NewFile(uintptr(both), "output"), nil
}

// takePipe opens for reading the pipe that a process has as fd (pidfd_getfd(2)).
func takePipe(pidfd *os.File, fd int) (*os.File, error) {
	theirs, err := unix.PidfdGetfd(int(rawFD(pidfd)), fd, 0)
	if err != nil {
		return nil, fmt.Errorf("take pipe: %w", err)
	}
	defer unix.Close(theirs)
	var st unix.Stat_t
	if err := unix.Fstat(theirs, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil, errors.New("take pipe: the process has put something else in its place")
	}
	// Opened anew: what the process has is open for writing too, and its modes are the process' own.
	own, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", theirs), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("take pipe: %w", err)
	}
	return os.NewFile(uintptr(own), "output"), nil
}

// openTap attaches to a tap device of the calling thread's network namespace (TUNSETIFF,
// Documentation/networking/tuntap.rst). The device must exist: one that it made would vanish with the process.
func openTap(name string, vnetHdr bool) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	ifreq, err := unix.NewIfreq(name)
	if err == nil {
		flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if vnetHdr {
			flags |= unix.IFF_VNET_HDR
		}
		if err = exists(name); err == nil {
			ifreq.SetUint16(flags)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifreq)
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("attach to tap %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// exists checks that the calling thread's network namespace has a device (SIOCGIFINDEX, netdevice(7)).
func exists(name string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifreq, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifreq)
}
