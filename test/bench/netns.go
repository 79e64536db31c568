package main

import (
	"errors"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// makeNetNS makes a named network namespace whose loopback is up, and has setup make the rest of it.
func makeNetNS(name string, setup func(h *netlink.Handle) error) error {
	done := make(chan error, 1)
	go func() { // on a thread that ends with it: it is in the new namespace afterwards
		runtime.LockOSThread()
		ns, err := netns.NewNamed(name)
		if err == nil {
			err = ns.Close()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return err
	}
	ns, err := netns.GetFromName(name)
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	return errors.Join(up(h, "lo"), setup(h))
}

func up(h *netlink.Handle, device string) error {
	link, err := h.LinkByName(device)
	if err != nil {
		return err
	}
	return h.LinkSetUp(link)
}

// uplink makes a device that leads nowhere, with the default route through it.
func uplink(h *netlink.Handle) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "up0"
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "out0"}); err != nil {
		return err
	}
	link, err := h.LinkByName("up0")
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr("192.0.2.2/24") // TEST-NET-1 (RFC 5737)
	if err != nil {
		return err
	}
	if err := errors.Join(h.AddrAdd(link, addr), up(h, "up0"), up(h, "out0")); err != nil {
		return err
	}
	router, err := netlink.ParseAddr("192.0.2.1/24")
	if err != nil {
		return err
	}
	return h.RouteAdd(&netlink.Route{Gw: router.IP})
}

// bridge makes a bridge.
func bridge(name string) func(*netlink.Handle) error {
	return func(h *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		return up(h, name)
	}
}
