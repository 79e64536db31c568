package linux

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/croftproject/croft/internal/hostnet"
)

// Names in a network's namespace, which is ours alone.
const (
	bridgeDevice = "br0"
	uplinkDevice = "uplink"
	networkTable = "croft"

	networkFile = "n-" // begins a network's file in the directory of namespaces
	serverFile  = "s-"
)

var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// token is n characters (5 bits each) that stand for the parts.
func token(n int, parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return encoding.EncodeToString(sum[:])[:n]
}

// portDevice is the name of a port's end in the network's namespace. A port's id does not fit in a device name.
func portDevice(portID string) string { return "p" + token(13, "port", portID) }

func isPortDevice(name string) bool { return len(name) == 14 && name[0] == 'p' }

// legDevice is the name of a network's leg in the host's namespace.
func legDevice(prefix, networkID string) string { return prefix + "-" + token(8, "leg", networkID) }

// The devices that an uplink's traffic waits in, of each direction: in one bucket all that leaves by the uplink, in the
// other all that came by it and goes to a network.
func outBucket(prefix string) string { return prefix + "-out" }
func inBucket(prefix string) string  { return prefix + "-in" }

// hostTable is the name of the daemon's table in the host's namespace.
func hostTable(prefix string) string { return "croft-" + prefix }

// bridgeMAC is the router's address on a network's bridge: the same whatever ports come and go (a bridge without an
// address of its own takes the lowest of its ports'), and after the network was made anew.
func bridgeMAC(networkID string) string {
	sum := sha256.Sum256([]byte("bridge\x00" + networkID))
	return net.HardwareAddr{0x02, sum[0], sum[1], sum[2], sum[3], sum[4]}.String()
}

func (h *Host) networkPath(id string) string { return filepath.Join(h.dir, networkFile+id) }
func (h *Host) serverPath(id string) string  { return filepath.Join(h.dir, serverFile+id) }

var (
	validDevice = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,14}$`)
	validLabel  = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$`)
)

// validate says what is wrong with a network's description.
func validate(n hostnet.Network) error {
	if !validID.MatchString(n.ID) {
		return fmt.Errorf("id %q is not valid", n.ID)
	}
	if n.MTU < 576 || n.MTU > 65535 {
		return fmt.Errorf("MTU %d is not in 576 to 65535", n.MTU)
	}
	for i, s := range n.Subnets {
		if !s.Prefix.IsValid() || s.Prefix != s.Prefix.Masked() {
			return fmt.Errorf("subnet %s is not a prefix without host bits", s.Prefix)
		}
		if !s.Prefix.Contains(s.Gateway) {
			return fmt.Errorf("gateway %s is not in subnet %s", s.Gateway, s.Prefix)
		}
		for _, t := range n.Subnets[:i] {
			if t.Prefix.Overlaps(s.Prefix) {
				return fmt.Errorf("subnets %s and %s overlap", t.Prefix, s.Prefix)
			}
		}
	}
	for _, r := range n.Records {
		if !validLabel.MatchString(r.Name) || !r.Addr.IsValid() {
			return fmt.Errorf("record %q %s is not a label and an address", r.Name, r.Addr)
		}
	}
	return validatePorts(n)
}

func validatePorts(n hostnet.Network) error {
	ids, macs, guests, addrs := map[string]bool{}, map[string]bool{}, map[string]bool{}, map[netip.Addr]bool{}
	for _, s := range n.Subnets {
		addrs[s.Gateway] = true
	}
	twice := func(m map[string]bool, k string) bool { was := m[k]; m[k] = true; return was }
	for _, p := range n.Ports {
		var err error
		switch {
		case p.ID == "" || twice(ids, p.ID):
			err = errors.New("its id is empty or given twice")
		case len(p.MAC) != 6 || p.MAC[0]&1 != 0:
			err = fmt.Errorf("MAC %s is not a unicast Ethernet address", p.MAC)
		case twice(macs, p.MAC.String()):
			err = fmt.Errorf("MAC %s is given twice", p.MAC)
		case p.Kind == hostnet.Namespace && (!validID.MatchString(p.Server) || !validDevice.MatchString(p.Guest) || p.Guest == "lo"):
			err = fmt.Errorf("server %q or device name %q is not valid", p.Server, p.Guest)
		case p.Kind == hostnet.Namespace && twice(guests, p.Server+"/"+p.Guest):
			err = fmt.Errorf("server %s has %s twice", p.Server, p.Guest)
		case p.Kind != hostnet.Namespace && p.Kind != hostnet.Tap:
			err = fmt.Errorf("kind %d is unknown", p.Kind)
		case p.Name != "" && !validLabel.MatchString(p.Name):
			err = fmt.Errorf("name %q is not a host name's label", p.Name)
		}
		for _, a := range p.Addrs {
			if err == nil && (!a.IsValid() || addrs[a.Addr()]) {
				err = fmt.Errorf("address %s is not valid or given twice", a)
			}
			addrs[a.Addr()] = true
		}
		if err != nil {
			return fmt.Errorf("port %s: %w", p.ID, err)
		}
	}
	return nil
}

// clone copies a description, so that a caller may change theirs.
func clone(n hostnet.Network) hostnet.Network {
	n.Subnets, n.Forwarders, n.Records = slices.Clone(n.Subnets), slices.Clone(n.Forwarders), slices.Clone(n.Records)
	n.Ports = slices.Clone(n.Ports)
	for i := range n.Ports {
		n.Ports[i].MAC, n.Ports[i].Addrs = slices.Clone(n.Ports[i].MAC), slices.Clone(n.Ports[i].Addrs)
	}
	return n
}

func samePort(a, b hostnet.Port) bool {
	return a.ID == b.ID && a.Kind == b.Kind && a.Guest == b.Guest && a.Server == b.Server &&
		slices.Equal(a.MAC, b.MAC) && slices.Equal(a.Addrs, b.Addrs)
}
