package linux

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/hostnet"
)

// world is a host in a namespace, with an uplink to the outside, another namespace.
type world struct {
	t             *testing.T
	dir           string
	host, outside *site
	o             Options
}

const (
	hostAddr    = "198.51.100.2"
	outsideAddr = "198.51.100.1"
)

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	dir, err := os.MkdirTemp("/tmp", "c")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{t: t, dir: dir}
	w.host, w.outside = w.namespace("host"), w.namespace("outside")
	at := netlink.NewLinkAttrs()
	at.Name, at.MTU = "up0", 1400
	must(t, w.host.LinkAdd(&netlink.Veth{LinkAttrs: at, PeerName: "eth0", PeerNamespace: netlink.NsFd(w.outside.fd)}))
	for _, e := range []struct {
		s         *site
		dev, addr string
	}{{w.host, "up0", hostAddr}, {w.outside, "eth0", outsideAddr}} {
		up(t, e.s, "lo")
		up(t, e.s, e.dev)
		must(t, addAddress(e.s, e.dev, netip.PrefixFrom(netip.MustParseAddr(e.addr), 24)))
	}
	must(t, setDefault(w.host, "up0", netip.MustParseAddr(outsideAddr), 0))
	var b [2]byte
	_, err = rand.Read(b[:])
	must(t, err)
	resolv := filepath.Join(dir, "resolv.conf")
	must(t, os.WriteFile(resolv, []byte("nameserver "+outsideAddr+"\n"), 0o600))
	w.o = Options{RunDir: filepath.Join(dir, "run"), NetNS: filepath.Join(dir, "host"), Prefix: "t" + hex.EncodeToString(b[:]),
		ResolvConf: resolv, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
	return w
}

// namespace makes a namespace that ends with the test.
func (w *world) namespace(name string) *site {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	must(w.t, makeNetNS(path))
	s, err := openSite(path)
	must(w.t, err)
	w.t.Cleanup(func() { s.close(); _ = dropNetNS(path) })
	return s
}

// daemon starts what is tested. All of its networks go with the test, and then nothing may be left.
func (w *world) daemon() *Host {
	w.t.Helper()
	h, err := New(w.o)
	must(w.t, err)
	w.t.Cleanup(func() { _ = h.Close() })
	w.t.Cleanup(func() { // before: a later start of the test's may be the one that runs
		h, err := h, error(nil)
		if h.closed {
			if h, err = New(w.o); err != nil {
				return // another of the test's daemons runs and cleans up
			}
			defer func() { _ = h.Close() }()
		}
		ids, err := h.List(context.Background())
		must(w.t, err)
		for _, id := range ids {
			must(w.t, h.Remove(context.Background(), id))
		}
		must(w.t, h.SetShares(context.Background(), hostnet.Shares{}))
		w.clean()
	})
	return h
}

// clean checks that nothing of any network is left.
func (w *world) clean() {
	w.t.Helper()
	for _, d := range []string{"netns", "ports"} {
		entries, _ := os.ReadDir(filepath.Join(w.o.RunDir, d))
		for _, e := range entries {
			w.t.Errorf("left in the run directory: %s/%s", d, e.Name())
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(w.t, err)
	if strings.Contains(string(mounts), w.o.RunDir) {
		w.t.Error("a mount is left below the run directory")
	}
	links, err := w.host.LinkList()
	must(w.t, err)
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, w.o.Prefix) {
			w.t.Errorf("device %s is left", l.Attrs().Name)
		}
	}
	names, err := tableNames(w.host)
	must(w.t, err)
	for _, n := range names {
		if n == hostTable(w.o.Prefix) {
			w.t.Errorf("table %s is left", n)
		}
	}
	if on, err := w.host.sysctls(forwarding("up0")); on || err != nil {
		w.t.Errorf("the uplink still forwards (%v)", err)
	}
}

// describeNet is a description with some ports of both kinds: os servers "a", "b", …, and taps.
func describeNet(id, prefix string, servers, taps int) hostnet.Network {
	p := netip.MustParsePrefix(prefix)
	n := hostnet.Network{ID: id, MTU: 1500, NAT: true, Domain: id + ".test.internal",
		Subnets: []hostnet.Subnet{{Prefix: p, Gateway: p.Addr().Next()}}}
	addr := p.Addr().Next()
	for i := range servers + taps {
		addr = addr.Next()
		name := fmt.Sprintf("s%d", i)
		port := hostnet.Port{ID: id + "-" + name, Guest: "eth0", Name: name, Server: id + "." + name,
			MAC: net.HardwareAddr{2, 0, 0, id[0], byte(i >> 8), byte(i)}, Addrs: []netip.Prefix{netip.PrefixFrom(addr, p.Bits())}}
		if i >= servers {
			port.Kind = hostnet.Tap
		}
		n.Ports = append(n.Ports, port)
		n.Records = append(n.Records, hostnet.Record{Name: name, Addr: addr})
	}
	return n
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func set(t testing.TB, h *Host, n hostnet.Network) {
	t.Helper()
	must(t, h.Set(context.Background(), n))
}

func up(t testing.TB, s *site, dev string) {
	t.Helper()
	l, err := s.LinkByName(dev)
	must(t, err)
	must(t, s.LinkSetUp(l))
}

// guest opens the namespace of a port's guest end.
func (w *world) guest(h *Host, n hostnet.Network, i int) *site {
	w.t.Helper()
	s, err := openSite(h.Attachment(n.ID, n.Ports[i]).NetNS)
	must(w.t, err)
	w.t.Cleanup(s.close)
	return s
}

// listenTCP answers connections with a text, in a namespace.
func listenTCP(t *testing.T, s *site, at, text string) {
	t.Helper()
	to, err := net.ResolveTCPAddr("tcp", at)
	must(t, err)
	// What a port alone means, package net finds out once, in the namespace of the first that asks: one whose loopback is
	// down would leave all others without IPv6.
	if strings.HasPrefix(at, ":") {
		to.IP = net.IPv6zero
	}
	var l net.Listener
	must(t, s.run(func() (err error) { l, err = net.ListenTCP("tcp", to); return err }))
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			_, _ = io.WriteString(c, text+" "+host)
			_ = c.Close()
		}
	}()
}

// fetch connects from a namespace and returns what the other end says.
func fetch(s *site, to string, timeout time.Duration) (string, error) {
	var c net.Conn
	err := s.run(func() (err error) { c, err = net.DialTimeout("tcp", to, timeout); return err })
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	b, err := io.ReadAll(c)
	return string(b), err
}

// ask asks a DNS server from a namespace.
func ask(t *testing.T, s *site, proto, server, name string, kind uint16) *dns.Msg {
	t.Helper()
	var c net.Conn
	must(t, s.run(func() (err error) { c, err = net.Dial(proto, net.JoinHostPort(server, "53")); return err }))
	defer func() { _ = c.Close() }()
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	r, _, err := (&dns.Client{Net: proto, Timeout: 10 * time.Second}).ExchangeWithConn(q, &dns.Conn{Conn: c})
	must(t, err)
	return r
}

// answersOf are a DNS message's answers in short, or its error.
func answersOf(r *dns.Msg) string {
	if r.Rcode != dns.RcodeSuccess {
		return dns.RcodeToString[r.Rcode]
	}
	var b bytes.Buffer
	for _, a := range r.Answer {
		fmt.Fprintf(&b, "%s ", strings.TrimPrefix(a.String(), a.Header().String()))
	}
	return strings.TrimSpace(b.String())
}

func openTap(s *site, dev string, flags uint16) (fd int, err error) {
	err = s.run(func() error {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		req, err := unix.NewIfreq(dev)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | flags)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	})
	return fd, err
}
