package linux

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestTaken(t *testing.T) {
	w := newWorld(t)
	must(t, os.WriteFile(w.o.ResolvConf, []byte("nameserver 10.255.255.53\n"), 0o600))
	must(t, addAddress(w.host, "up0", netip.MustParsePrefix("10.64.3.4/22")))
	l, err := w.host.LinkByName("up0")
	must(t, err)
	for dst, via := range map[string]net.IP{"10.70.0.0/16": nil, "10.80.0.0/16": net.ParseIP(outsideAddr)} {
		_, to, err := net.ParseCIDR(dst)
		must(t, err)
		must(t, w.host.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: to, Gw: via}))
	}
	got, err := w.daemon().Taken()
	must(t, err)
	for prefix, want := range map[string]bool{
		"10.64.3.4/22": true, hostAddr + "/24": true, "10.70.0.0/16": true, "10.255.255.53/32": true,
		"10.80.0.0/16": false, "0.0.0.0/0": false,
	} {
		if slices.Contains(got, netip.MustParsePrefix(prefix)) != want {
			t.Errorf("%s is in %v: want %v", prefix, got, want)
		}
	}
}
