package linux

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// An uplink that forwards for the daemon's networks makes no router of the host: the outside does not reach what else
// the host is connected to.
func TestHostBecomesNoRouter(t *testing.T) {
	w := newWorld(t)
	inner := w.namespace("inner")
	at := netlink.NewLinkAttrs()
	at.Name = "lan0"
	must(t, w.host.LinkAdd(&netlink.Veth{LinkAttrs: at, PeerName: "eth0", PeerNamespace: netlink.NsFd(inner.fd)}))
	up(t, w.host, "lan0")
	up(t, inner, "eth0")
	must(t, addAddress(w.host, "lan0", netip.MustParsePrefix("192.0.2.1/24")))
	must(t, addAddress(inner, "eth0", netip.MustParsePrefix("192.0.2.2/24")))
	must(t, setDefault(inner, "eth0", netip.MustParseAddr("192.0.2.1"), 0))
	must(t, setDefault(w.outside, "eth0", netip.MustParseAddr(hostAddr), 0))
	must(t, w.host.sysctl(forwarding("lan0"))) // the way back is open: all depends on the uplink
	listenTCP(t, inner, ":80", "inner")
	listenTCP(t, w.outside, ":80", "outside")

	h := w.daemon()
	n := describeNet("alpha", "10.7.0.0/24", 1, 0)
	set(t, h, n)
	if got, err := fetch(w.outside, "192.0.2.2:80", 500*time.Millisecond); err == nil {
		t.Errorf("the outside reaches an inner network: %q", got)
	}
	if got, err := fetch(w.guest(h, n, 0), outsideAddr+":80", 5*time.Second); err != nil || !strings.HasPrefix(got, "outside ") {
		t.Errorf("a guest gets %q, %v", got, err)
	}
	// Answers to what other networks of the host began pass.
	if got, err := fetch(inner, outsideAddr+":80", 5*time.Second); err != nil || !strings.HasPrefix(got, "outside ") {
		t.Errorf("an inner network gets %q, %v", got, err)
	}
	// Once somebody makes the host a router, it is one.
	must(t, w.host.sysctl([2]string{"ipv4/ip_forward", "1"}))
	set(t, h, n)
	if got, err := fetch(w.outside, "192.0.2.2:80", 5*time.Second); err != nil || !strings.HasPrefix(got, "inner ") {
		t.Errorf("through a router: %q, %v", got, err)
	}
	must(t, w.host.sysctl([2]string{"ipv4/ip_forward", "0"}))
}
