package linux

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
)

// routing makes a network's namespace a router between its subnets and its way out. Only the bridge speaks IPv6 there:
// a link-local address and its routes on every port would make all of them slower to look at. Bridged frames stay out of
// the router's rules where br_netfilter is loaded.
var routing = [][2]string{
	{"ipv4/ip_forward", "1"},
	{"ipv6/conf/all/forwarding", "1"},
	{"ipv6/conf/default/accept_ra", "0"},
	{"ipv6/conf/default/disable_ipv6", "1"},
	{"bridge/bridge-nf-call-iptables", "0"},
	{"bridge/bridge-nf-call-ip6tables", "0"},
	{"bridge/bridge-nf-call-arptables", "0"},
}

func forwarding(dev string) [2]string { return [2]string{"ipv4/conf/" + dev + "/forwarding", "1"} }

// withIPv6 undoes the namespace's default for the bridge. A kernel without IPv6 lacks the key.
var withIPv6 = [2]string{"ipv6/conf/" + bridgeDevice + "/disable_ipv6", "0"}

func noIPv6(dev string) [2]string { return [2]string{"ipv6/conf/" + dev + "/disable_ipv6", "1"} }

func (s setForwarding) do(_ context.Context, a *actor) error {
	site, err := a.site(s.In)
	if err != nil {
		return err
	}
	switch {
	case s.In == inNetwork:
		return site.sysctl(routing...)
	case strings.HasPrefix(s.Dev, a.h.o.Prefix+"-"):
		return site.sysctl(forwarding(s.Dev), noIPv6(s.Dev))
	}
	a.h.uplink.Lock()
	defer a.h.uplink.Unlock()
	if err := a.h.keepForwarding(s.Dev); err != nil {
		return err
	}
	return site.sysctl(forwarding(s.Dev))
}

func (s makeLeg) do(_ context.Context, a *actor) error {
	network, err := a.site(inNetwork)
	if err != nil {
		return err
	}
	a.h.divider.mu.Lock() // before that of the uplink, always
	defer a.h.divider.mu.Unlock()
	a.h.uplink.Lock()
	defer a.h.uplink.Unlock()
	pair, err := a.h.freePair(a.n.id)
	if err != nil {
		return err
	}
	at := netlink.NewLinkAttrs()
	at.Name, at.MTU = s.Dev, s.MTU
	err = a.h.host.LinkAdd(&netlink.Veth{LinkAttrs: at, PeerName: uplinkDevice, PeerNamespace: netlink.NsFd(network.fd)})
	if err != nil {
		return err
	}
	// Before it is up, so that it never has an IPv6 address.
	if err := a.h.host.sysctl(noIPv6(s.Dev), forwarding(s.Dev)); err != nil {
		return err
	}
	if err := a.h.divideLeg(s.Dev); err != nil {
		return err
	}
	near, far := pair, netip.PrefixFrom(pair.Addr().Next(), 31)
	for _, end := range []struct {
		s    *site
		dev  string
		addr netip.Prefix
	}{{a.h.host, s.Dev, near}, {network, uplinkDevice, far}} {
		if err := addAddress(end.s, end.dev, end.addr); err != nil {
			return err
		}
		l, err := end.s.LinkByName(end.dev)
		if err != nil {
			return err
		}
		if err := end.s.LinkSetUp(l); err != nil {
			return err
		}
	}
	return setDefault(network, uplinkDevice, near.Addr(), 0)
}

// freePair finds addresses for a leg. The caller holds the lock of the uplink until they are in use.
func (h *Host) freePair(network string) (netip.Prefix, error) {
	nets, err := addressesOf(h.host)
	if err != nil {
		return netip.Prefix{}, err
	}
	var taken []netip.Prefix
	for _, n := range nets {
		taken = append(taken, n...)
	}
	routes, err := dump(func() ([]netlink.Route, error) { return h.host.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, r := range routes {
		if r.Dst == nil || isDefault(r) {
			continue
		}
		if ip, ok := netip.AddrFromSlice(r.Dst.IP.To4()); ok {
			bits, _ := r.Dst.Mask.Size()
			taken = append(taken, netip.PrefixFrom(ip, bits))
		}
	}
	seed := fnv.New32a()
	_, _ = io.WriteString(seed, h.o.Prefix+"/"+network)
	p, ok := freeTransit(h.o.Transit, seed.Sum32(), taken)
	if !ok {
		return p, fmt.Errorf("no free /31 in the transit range %s: the host has addresses or routes in all of it", h.o.Transit)
	}
	return p, nil
}

func (s setRoute) do(_ context.Context, a *actor) error {
	site, err := a.site(s.In)
	if err != nil {
		return err
	}
	return setDefault(site, s.Dev, s.Via, s.Metric)
}

// setDefault sets a default route. One of the same metric is replaced.
func setDefault(s *site, dev string, via netip.Addr, metric int) error {
	l, err := s.LinkByName(dev)
	if err != nil {
		return err
	}
	zero := &net.IPNet{IP: make(net.IP, via.BitLen()/8), Mask: net.CIDRMask(0, via.BitLen())}
	return s.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: zero, Gw: via.AsSlice(), Priority: metric})
}

type uplink struct {
	name string
	mtu  int
}

// ErrNoDevice says that there is no network device of a name.
var ErrNoDevice = errors.New("there is no such network device")

// SetUplink names the device that traffic leaves through from the next Set of each network on; empty: that of Options.
// One that is not there is refused, and the last goes on. It tells whether networks have to be Set for it.
func (h *Host) SetUplink(dev string) (changed bool, err error) {
	if dev == "" {
		dev = h.o.Uplink
	} else if l, err := linkByName(h.host, dev); err != nil {
		return false, err
	} else if l.Kind == "" {
		return false, fmt.Errorf("uplink %s: %w", dev, ErrNoDevice)
	}
	h.uplink.Lock()
	defer h.uplink.Unlock()
	changed, h.via = h.via != dev, dev
	return changed, nil
}

// Uplink implements hostnet.Uplinker.
func (h *Host) Uplink() (string, error) {
	h.uplink.Lock()
	defer h.uplink.Unlock()
	up, err := h.uplinkOf()
	return up.name, err
}

// Rate is what a device that is or was the uplink carries in each direction, as it tells; zero: it does not. Without a
// carrier it tells none: then what it told last counts.
func (h *Host) Rate(dev string) (api.BitRate, error) {
	rate, err := h.host.speed(dev)
	if err != nil {
		return 0, err
	}
	h.uplink.Lock()
	defer h.uplink.Unlock()
	if rate > 0 {
		h.speeds[dev] = rate
	}
	return h.speeds[dev], nil
}

// speed is what a device says that it carries, in each direction; zero where it does not.
func (s *site) speed(dev string) (rate api.BitRate, err error) {
	err = s.run(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		// struct ethtool_cmd of linux/ethtool.h: the two halves of the speed, in Mbit/s, are at 12 and at 28.
		settings := [44]byte{}
		binary.NativeEndian.PutUint32(settings[:], unix.ETHTOOL_GSET)
		request := struct {
			name [unix.IFNAMSIZ]byte
			data *[44]byte
			_    [16]byte
		}{data: &settings}
		copy(request.name[:unix.IFNAMSIZ-1], dev)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
			return nil // a device of a kind that has no speed
		}
		mbits := uint32(binary.NativeEndian.Uint16(settings[12:])) | uint32(binary.NativeEndian.Uint16(settings[28:]))<<16
		if mbits != 1<<32-1 && mbits != 1<<16-1 { // SPEED_UNKNOWN
			rate = api.BitRate(mbits) * 1e6
		}
		return nil
	})
	return rate, err
}

// uplinkOf finds the device that traffic leaves the host through; none is no error. The caller holds the lock of the uplink.
func (h *Host) uplinkOf() (uplink, error) {
	if h.via != "" {
		l, err := linkByName(h.host, h.via)
		if err != nil || l.Kind == "" {
			return uplink{}, err
		}
		return uplink{h.via, l.MTU}, nil
	}
	routes, err := dump(func() ([]netlink.Route, error) {
		return h.host.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, netlink.RT_FILTER_DST)
	})
	if err != nil {
		return uplink{}, fmt.Errorf("find the default route: %w", err)
	}
	slices.SortStableFunc(routes, func(a, b netlink.Route) int { return a.Priority - b.Priority })
	for _, r := range routes {
		index := r.LinkIndex
		if index == 0 && len(r.MultiPath) > 0 {
			index = r.MultiPath[0].LinkIndex
		}
		l, err := h.host.LinkByIndex(index)
		if err == nil && l.Attrs().Name != "lo" {
			return uplink{l.Attrs().Name, l.Attrs().MTU}, nil
		}
	}
	return uplink{}, nil
}

// keepForwarding records that an uplink did not forward before it had to, for removeShared. One that was the uplink before
// forwards no more.
func (h *Host) keepForwarding(dev string) error {
	if err := h.restoreForwarding(dev); err != nil {
		return err
	}
	if on, err := h.host.sysctls(forwarding(dev)); on || err != nil {
		return err
	}
	b, err := json.Marshal(forwardingRecord{Device: dev})
	if err != nil {
		return err
	}
	return os.WriteFile(h.forwardingFile(), b, 0o600)
}

// forwardsForUs tells whether an uplink forwards for the daemon's networks alone. Where all of the host forwards by now,
// somebody else has made it a router.
func (h *Host) forwardsForUs(dev string) (bool, error) {
	b, err := os.ReadFile(h.forwardingFile())
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var rec forwardingRecord
	if json.Unmarshal(b, &rec) != nil || rec.Device != dev {
		return false, nil
	}
	router, err := h.host.sysctls([2]string{"ipv4/ip_forward", "1"})
	return !router, err
}

type forwardingRecord struct {
	Device string `json:"device"`
}

func (h *Host) forwardingFile() string { return filepath.Join(h.o.RunDir, "uplink.json") }

// removeShared takes away what networks share in the host's namespace, once there is none. An uplink that forwards for
// another daemon's networks goes on.
func (h *Host) removeShared() error {
	left, err := h.List(context.Background())
	if err != nil || len(left) > 0 {
		return err
	}
	h.shared.Lock()
	defer h.shared.Unlock()
	if left, err = h.List(context.Background()); err != nil || len(left) > 0 {
		return err
	}
	h.uplink.Lock()
	defer h.uplink.Unlock()
	names, err := tableNames(h.host)
	if err != nil {
		return err
	}
	if slices.Contains(names, hostTable(h.o.Prefix)) {
		c, err := h.host.rules()
		if err != nil {
			return err
		}
		if err := (table{Name: hostTable(h.o.Prefix)}).remove(c); err != nil {
			return err
		}
	}
	return h.restoreForwarding("")
}

// restoreForwarding undoes that a device forwards for the daemon's networks, unless it is the one that they go on to use.
// One that forwards for another daemon's networks goes on.
func (h *Host) restoreForwarding(used string) error {
	b, err := os.ReadFile(h.forwardingFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var rec forwardingRecord
	if err := json.Unmarshal(b, &rec); err == nil && rec.Device != "" {
		if rec.Device == used {
			return nil
		}
		names, err := tableNames(h.host)
		if err != nil {
			return err
		}
		others := slices.ContainsFunc(names, func(n string) bool {
			return strings.HasPrefix(n, hostTable("")) && n != hostTable(h.o.Prefix)
		})
		if !others {
			off := forwarding(rec.Device)
			off[1] = "0"
			if err := h.host.sysctl(off); err != nil {
				return err
			}
		}
	}
	return os.Remove(h.forwardingFile())
}
