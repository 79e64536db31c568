package linux

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/hostnet"
)

func linkByName(s *site, name string) (link, error) {
	l, err := s.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return link{}, nil
	}
	if err != nil {
		return link{}, fmt.Errorf("look at %s: %w", name, err)
	}
	return toLink(l), nil
}

func toLink(l netlink.Link) link {
	at := l.Attrs()
	out := link{Kind: l.Type(), Index: at.Index, Peer: at.ParentIndex, PeerNS: at.NetNsID, Master: at.MasterIndex,
		MTU: at.MTU, MAC: at.HardwareAddr.String(), Up: at.RawFlags&unix.IFF_UP != 0}
	if b, ok := l.(*netlink.Bridge); ok {
		out.Snoop = b.MulticastSnooping == nil || *b.MulticastSnooping
		out.Groups = b.GroupFwdMask == nil || *b.GroupFwdMask != groupForward
	}
	return out
}

// addressesOf reads the addresses of a namespace, by interface index.
func addressesOf(s *site) (map[int][]netip.Prefix, error) {
	list, err := dump(func() ([]netlink.Addr, error) { return s.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := map[int][]netip.Prefix{}
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			bits, _ := a.Mask.Size()
			out[a.LinkIndex] = append(out[a.LinkIndex], netip.PrefixFrom(ip.Unmap(), bits))
		}
	}
	return out, nil
}

// defaultsVia reads the next hops of a device's default routes.
func defaultsVia(s *site, index int, families ...int) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, family := range families {
		list, err := dump(func() ([]netlink.Route, error) {
			return s.RouteListFiltered(family, &netlink.Route{LinkIndex: index}, netlink.RT_FILTER_OIF)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range list {
			if ip, ok := netip.AddrFromSlice(r.Gw); ok && isDefault(r) {
				out = append(out, ip.Unmap())
			}
		}
	}
	return out, nil
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0 && strings.Trim(r.Dst.IP.String(), "0.:") == ""
}

func sameSubnets(a, b []hostnet.Subnet) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
