package linux

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func (s makeNamespace) do(_ context.Context, a *actor) error {
	return makeNetNS(a.h.networkPath(a.n.id))
}

// groupForward has the bridge treat frames to 01:80:c2:00:00:03 to :0f as all others: with its own way they would pass by the
// guard. The kernel takes no other bits (ip-link(8), group_fwd_mask): STP's go the same way, since that is off, those of
// pause are dropped, and those of LACP come to the guard's chain input.
const groupForward = 0xfff8

func (s makeBridge) do(_ context.Context, a *actor) error {
	site, err := a.site(inNetwork)
	if err != nil {
		return err
	}
	at := netlink.NewLinkAttrs()
	at.Name, at.MTU = bridgeDevice, s.MTU
	if at.HardwareAddr, err = net.ParseMAC(s.MAC); err != nil {
		return err
	}
	// Without STP, which is off unless asked for, a port forwards as soon as it has carrier, whatever the forward delay.
	snoop, groups := false, uint16(groupForward)
	return site.LinkAdd(&netlink.Bridge{LinkAttrs: at, MulticastSnooping: &snoop, GroupFwdMask: &groups})
}

func (s setLink) do(_ context.Context, a *actor) error {
	site, err := a.site(s.In)
	if err != nil {
		return err
	}
	l, err := site.LinkByName(s.Dev)
	if err != nil {
		return err
	}
	if s.MTU != 0 {
		if err := site.LinkSetMTU(l, s.MTU); err != nil {
			return err
		}
	}
	if s.MAC != "" {
		mac, err := net.ParseMAC(s.MAC)
		if err != nil {
			return err
		}
		if err := site.LinkSetHardwareAddr(l, mac); err != nil {
			return err
		}
	}
	if !s.Up {
		return nil
	}
	if s.In == inNetwork && s.Dev == bridgeDevice {
		if err := site.sysctl(withIPv6); err != nil {
			return err
		}
	}
	return site.LinkSetUp(l)
}

func (s delLink) do(_ context.Context, a *actor) error {
	site, err := a.site(s.In)
	if err != nil {
		return err
	}
	return removeLink(site, s.Dev)
}

// removeLink removes a device, and its other end; that it is gone is no error.
func removeLink(s *site, dev string) error {
	l, err := s.LinkByName(dev)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

func (s addAddr) do(_ context.Context, a *actor) error {
	site, err := a.site(s.In)
	if err != nil {
		return err
	}
	return addAddress(site, s.Dev, s.Addr)
}

// addAddress adds an address. IPv6 addresses are given out once, so they are used without duplicate detection.
func addAddress(s *site, dev string, p netip.Prefix) error {
	l, err := s.LinkByName(dev)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if p.Addr().Is4() && p.Bits() < 31 {
		addr.Broadcast = broadcast(p)
	}
	if err := s.AddrAdd(l, addr); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

func (s delAddr) do(_ context.Context, a *actor) error {
	site, err := a.site(s.In)
	if err != nil {
		return err
	}
	l, err := site.LinkByName(s.Dev)
	if err != nil {
		return err
	}
	if err := site.AddrDel(l, &netlink.Addr{IPNet: ipNet(s.Addr)}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return err
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func broadcast(p netip.Prefix) net.IP {
	ip, mask := p.Addr().As4(), net.CIDRMask(p.Bits(), 32)
	for i := range ip {
		ip[i] |= ^mask[i]
	}
	return ip[:]
}
