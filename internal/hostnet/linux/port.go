package linux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func (s markPort) do(_ context.Context, a *actor) error {
	dir := a.h.markDir(a.n.id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	err := os.Symlink(s.Server, filepath.Join(dir, s.Dev))
	if errors.Is(err, os.ErrExist) {
		return nil // the plan saw it with the same server, or dropped it before
	}
	return err
}

func (s makeVeth) do(_ context.Context, a *actor) error {
	site, err := a.site(inNetwork)
	if err != nil {
		return err
	}
	lock := a.h.server(s.Server)
	lock.Lock()
	defer lock.Unlock()
	if err := makeNetNS(a.h.serverPath(s.Server)); err != nil {
		return err
	}
	guest, err := a.site(place(s.Server))
	if err != nil {
		return err
	}
	if err := removeLink(guest, s.Guest); err != nil { // left of a port that was there before
		return err
	}
	at := netlink.NewLinkAttrs()
	at.Name, at.MTU, at.Flags = s.Dev, s.MTU, net.FlagUp
	v := &netlink.Veth{LinkAttrs: at, PeerName: s.Guest, PeerNamespace: netlink.NsFd(guest.fd), PeerMTU: uint32(s.MTU)}
	if v.PeerHardwareAddr, err = net.ParseMAC(s.MAC); err != nil {
		return err
	}
	return site.LinkAdd(v)
}

// do makes a persistent tap. Who opens it chooses with TUNSETIFF whether frames carry a virtio header (IFF_VNET_HDR),
// each time anew; only the number of queues (one: no IFF_MULTI_QUEUE) is the device's own.
func (s makeTap) do(_ context.Context, a *actor) error {
	site, err := a.site(inNetwork)
	if err != nil {
		return err
	}
	return site.run(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		defer func() { _ = unix.Close(fd) }()
		req, err := unix.NewIfreq(s.Dev)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return fmt.Errorf("make tap %s: %w", s.Dev, err)
		}
		if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
			return fmt.Errorf("keep tap %s: %w", s.Dev, err)
		}
		return nil
	})
}

func (s enslave) do(_ context.Context, a *actor) error {
	site, err := a.site(inNetwork)
	if err != nil {
		return err
	}
	l, err := site.LinkByName(s.Dev)
	if err != nil {
		return err
	}
	br, err := site.LinkByName(bridgeDevice)
	if err != nil {
		return err
	}
	return site.LinkSetMaster(l, br)
}

func (s dropPort) do(_ context.Context, a *actor) error {
	if a.n.site != nil {
		if err := removeLink(a.n.site, s.Dev); err != nil {
			return err
		}
	}
	if s.Server == "" {
		return nil
	}
	if a.server == s.Server {
		a.close()
	}
	if err := a.h.leave(s.Server); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(a.h.markDir(a.n.id), s.Dev)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// leave removes a server's namespace unless there is a port in it, of whatever network.
func (h *Host) leave(server string) error {
	lock := h.server(server)
	lock.Lock()
	defer lock.Unlock()
	path := h.serverPath(server)
	ok, err := bound(path)
	if err != nil {
		return err
	}
	if ok {
		used, err := hasPorts(path)
		if err != nil || used {
			return err
		}
	}
	return dropNetNS(path)
}

func hasPorts(path string) (bool, error) {
	s, err := openSite(path)
	if err != nil {
		return false, err
	}
	defer s.close()
	links, err := s.LinkList()
	if err != nil {
		return false, err
	}
	for _, l := range links {
		if l.Type() == "veth" {
			return true, nil
		}
	}
	return false, nil
}

// remove takes all of a network away. It begins with the ports, so that a removal that was interrupted finds what is
// left by the namespace and the records.
func (a *actor) remove(ctx context.Context) error {
	n := a.n
	n.services.stop()
	n.services = nil
	marks, err := a.h.marks(n.id)
	if err != nil {
		return err
	}
	if _, err := n.open(a.h); err != nil {
		return err
	}
	for dev, server := range marks {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := (dropPort{dev, server}).do(ctx, a); err != nil {
			return fmt.Errorf("port %s: %w", dev, err)
		}
	}
	if err := os.Remove(a.h.markDir(n.id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := removeLink(a.h.host, legDevice(a.h.o.Prefix, n.id)); err != nil {
		return err
	}
	n.forget() // closes what keeps the namespace
	return dropNetNS(a.h.networkPath(n.id))
}
