package world

import (
	"net/netip"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// makeNet makes two namespaces joined by a veth: the host's, whose uplink it is, and the outside.
func (w *World) makeNet(t testing.TB) {
	t.Helper()
	name := filepath.Base(w.RunDir)
	host, outside := NewNetNS(t, name), NewNetNS(t, name+"-out")
	w.NetNS = "/run/netns/" + name
	h, err := netlink.NewHandleAt(host)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	o, err := netlink.NewHandleAt(outside)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "out0", PeerNamespace: netlink.NsFd(outside)}
	must(t, h.LinkAdd(veth))
	w.Outside = netip.MustParseAddr("192.0.2.1") // TEST-NET-1 (RFC 5737)
	address(t, o, "out0", "192.0.2.1/24")
	address(t, h, "up0", "192.0.2.2/24")
	must(t, h.RouteAdd(&netlink.Route{Gw: w.Outside.AsSlice()}))
}

// NewNetNS makes a named network namespace with its loopback up, for the time of the test.
func NewNetNS(t testing.TB, name string) netns.NsHandle {
	t.Helper()
	done := make(chan error, 1)
	var ns netns.NsHandle
	go func() { // on a thread that ends with it: it is in the new namespace afterwards
		runtime.LockOSThread()
		var err error
		ns, err = netns.NewNamed(name)
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("make network namespace %s: %v", name, err)
	}
	t.Cleanup(func() {
		ns.Close()
		if err := netns.DeleteNamed(name); err != nil {
			t.Errorf("remove network namespace %s: %v", name, err)
		}
	})
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	must(t, err)
	must(t, h.LinkSetUp(lo))
	return ns
}

func address(t testing.TB, h *netlink.Handle, device, prefix string) {
	t.Helper()
	link, err := h.LinkByName(device)
	must(t, err)
	addr, err := netlink.ParseAddr(prefix)
	must(t, err)
	must(t, h.AddrAdd(link, addr))
	must(t, h.LinkSetUp(link))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
