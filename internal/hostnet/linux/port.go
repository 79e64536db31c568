package linux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
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

func (s dropPorts) do(_ context.Context, a *actor) error {
	if a.n.site != nil {
		devs := make([]string, len(s.Ports))
		for i, p := range s.Ports {
			devs[i] = p.Dev
		}
		if err := removeLinks(a.n.site, devs); err != nil {
			return err
		}
	}
	a.close()
	for _, p := range s.Ports {
		if p.Server == "" {
			continue
		}
		if err := a.h.leave(p.Server); err != nil {
			return err
		}
		if err := os.Remove(filepath.Join(a.h.markDir(a.n.id), p.Dev)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// doomed is the group (ip-link(8)) of devices that are removed together.
const doomed = 0xdead

// removeLinks removes devices of a network's namespace. The kernel waits for all processors each time that it removes
// devices (some 10 ms), so many are removed in one request.
func removeLinks(s *site, devs []string) error {
	if len(devs) == 1 {
		return removeLink(s, devs[0])
	}
	found := false
	for _, dev := range devs {
		l, err := s.LinkByName(dev)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			continue
		}
		if err != nil {
			return err
		}
		if err := s.LinkSetGroup(l, doomed); err != nil {
			return err
		}
		found = true
	}
	if !found {
		return nil
	}
	return s.request(unix.RTM_DELLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC), nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(doomed)))
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
	links, err := dump(s.LinkList)
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
	if err := ctx.Err(); err != nil {
		return err
	}
	var ports dropPorts
	for dev, server := range marks {
		ports.Ports = append(ports.Ports, droppedPort{dev, server})
	}
	if len(marks) > 0 {
		if err := ports.do(ctx, a); err != nil {
			return err
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
