package linux

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Taken are the prefixes that the host itself has to do with now: those of its addresses (not masked), those that it
// reaches without a router, and its resolvers. Servers in a network of such a prefix could not reach them.
func (h *Host) Taken() ([]netip.Prefix, error) {
	nets, err := addressesOf(h.host)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, n := range nets {
		out = append(out, n...)
	}
	routes, err := dump(func() ([]netlink.Route, error) { return h.host.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if isDefault(r) || r.Gw != nil || len(r.MultiPath) > 0 {
			continue
		}
		if ip, ok := netip.AddrFromSlice(r.Dst.IP.To4()); ok {
			bits, _ := r.Dst.Mask.Size()
			out = append(out, netip.PrefixFrom(ip, bits))
		}
	}
	for _, r := range h.res.ofHost() {
		out = append(out, netip.PrefixFrom(r.Addr(), r.Addr().BitLen()))
	}
	return out, nil
}
