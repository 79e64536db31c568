package keeper

import (
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

// openPipe makes a pipe of which a process gets the writing end. That blocks, unlike that of os.Pipe: few programs
// expect a standard output that does not.
func openPipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "output"), os.NewFile(uintptr(fds[1]), "output"), nil
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
