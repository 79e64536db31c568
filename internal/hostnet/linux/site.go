package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/google/nftables"
	netlinksocket "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// site is an open network namespace. Its sockets act in the namespace whatever thread uses them.
type site struct {
	*netlink.Handle
	fd   netns.NsHandle
	file unix.Stat_t // identity of the namespace
	nft  *nftables.Conn
	gen  map[int]*nl.SocketHandle
}

func openSite(path string) (*site, error) {
	fd, err := netns.GetFromPath(path)
	if err != nil {
		return nil, err
	}
	s := &site{fd: fd}
	if err := unix.Fstat(int(fd), &s.file); err != nil {
		return nil, errors.Join(err, fd.Close())
	}
	if s.Handle, err = netlink.NewHandleAt(fd, unix.NETLINK_ROUTE); err != nil {
		return nil, errors.Join(err, fd.Close())
	}
	return s, nil
}

// batchRoom is the most bytes that one transaction of nftables takes: it is one datagram.
const batchRoom = 16 << 20

// rules opens the namespace's nftables.
func (s *site) rules() (*nftables.Conn, error) {
	if s.nft == nil {
		room := nftables.WithSockOptions(func(c *netlinksocket.Conn) error { return c.SetWriteBuffer(batchRoom) })
		c, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(int(s.fd)), room)
		if err != nil {
			return nil, err
		}
		s.nft = c
	}
	return s.nft, nil
}

// generation is a number that changes whenever anything about the namespace's nftables does.
func (s *site) generation() (uint32, error) {
	if s.gen == nil {
		sock, err := nl.GetNetlinkSocketAt(s.fd, netns.None(), unix.NETLINK_NETFILTER)
		if err != nil {
			return 0, err
		}
		s.gen = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: sock}}
	}
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	req.Sockets = s.gen
	req.AddData(&nl.Nfgenmsg{})
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return 0, fmt.Errorf("nftables generation: %w", err)
	}
	for _, m := range msgs {
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofNfgenmsg:])
		if err != nil {
			return 0, err
		}
		for _, a := range attrs {
			if a.Attr.Type == unix.NFTA_GEN_ID && len(a.Value) == 4 {
				return binary.BigEndian.Uint32(a.Value), nil
			}
		}
	}
	return 0, errors.New("nftables generation: the kernel told none")
}

// request sends a request of rtnetlink(7) that the library has no words for, and waits for the acknowledgement.
func (s *site) request(kind, flags int, data ...nl.NetlinkRequestData) error {
	sock, err := nl.GetNetlinkSocketAt(s.fd, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer sock.Close()
	req := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: sock}}
	for _, d := range data {
		req.AddData(d)
	}
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// is tells whether a path is this namespace.
func (s *site) is(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Dev == s.file.Dev && st.Ino == s.file.Ino
}

// run calls f on a thread in the namespace. The thread ends with it: no other code ever runs in the namespace.
func (s *site) run(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(s.fd), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// onThread calls f on a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the runtime ends the thread with the goroutine
		done <- f()
	}()
	return <-done
}

func (s *site) close() {
	if s == nil {
		return
	}
	s.Close()
	if s.nft != nil {
		_ = s.nft.CloseLasting()
	}
	for _, g := range s.gen {
		g.Close()
	}
	_ = s.fd.Close()
}

// sysctl writes values below /proc/sys/net of the namespace. Keys that this kernel lacks are passed over.
func (s *site) sysctl(values ...[2]string) error {
	return s.run(func() error {
		for _, v := range values {
			// Read first: a guest of a container may find /proc/sys read-only and everything right already.
			path := filepath.Join("/proc/sys/net", v[0])
			if old, err := os.ReadFile(path); errors.Is(err, os.ErrNotExist) || err == nil && string(old) == v[1]+"\n" {
				continue
			}
			if err := os.WriteFile(path, []byte(v[1]), 0); err != nil {
				return err
			}
		}
		return nil
	})
}

// sysctls tells whether values below /proc/sys/net of the namespace are so. Keys that this kernel lacks are.
func (s *site) sysctls(values ...[2]string) (ok bool, err error) {
	ok = true
	err = s.run(func() error {
		for _, v := range values {
			b, err := os.ReadFile(filepath.Join("/proc/sys/net", v[0]))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			ok = ok && (err != nil || string(b) == v[1]+"\n")
		}
		return nil
	})
	return ok, err
}

// bound tells whether a namespace is bound to a file.
func bound(path string) (bool, error) {
	var fs unix.Statfs_t
	err := unix.Statfs(path, &fs)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return fs.Type == unix.NSFS_MAGIC, nil
}

// makeNetNS makes a network namespace and binds it to a file, unless one is bound there.
func makeNetNS(path string) error {
	if ok, err := bound(path); ok || err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW, 0o444)
	if err != nil {
		return err
	}
	_ = f.Close()
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind network namespace to %s: %w", path, err)
		}
		return nil
	})
}

// dropNetNS unbinds a namespace and removes the file. The namespace ends with its last user.
func dropNetNS(path string) error {
	for {
		ok, err := bound(path)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unbind network namespace %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// lockDir makes sure that one daemon uses a run directory.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "net.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s is in use by another process: %w", dir, err), f.Close())
	}
	return f, nil
}
