package linux

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/hostnet"
)

const mbit api.BitRate = 1e6

// flows are greedy TCP flows between servers of networks and the outside, and what has arrived of each.
type flows struct {
	t   *testing.T
	got []*atomic.Int64
}

// out has a server send as much as it can.
func (f *flows) out(w *world, from *site, port int) {
	f.t.Helper()
	addr := net.JoinHostPort(outsideAddr, strconv.Itoa(port))
	var l net.Listener
	must(f.t, w.outside.run(func() (err error) { l, err = net.Listen("tcp4", addr); return err }))
	f.t.Cleanup(func() { _ = l.Close() })
	var c net.Conn
	must(f.t, from.run(func() (err error) { c, err = net.Dial("tcp4", addr); return err }))
	s, err := l.Accept()
	must(f.t, err)
	f.pump(c, s)
}

// in has a server fetch as much as it can.
func (f *flows) in(w *world, to *site, port int) {
	f.t.Helper()
	addr := net.JoinHostPort(outsideAddr, strconv.Itoa(port))
	var l net.Listener
	must(f.t, w.outside.run(func() (err error) { l, err = net.Listen("tcp4", addr); return err }))
	f.t.Cleanup(func() { _ = l.Close() })
	var c net.Conn
	must(f.t, to.run(func() (err error) { c, err = net.Dial("tcp4", addr); return err }))
	s, err := l.Accept()
	must(f.t, err)
	f.pump(s, c)
}

func (f *flows) pump(from, to net.Conn) {
	n := &atomic.Int64{}
	f.got = append(f.got, n)
	f.t.Cleanup(func() { _, _ = from.Close(), to.Close() })
	go func() {
		b := make([]byte, 64<<10)
		for {
			if _, err := from.Write(b); err != nil {
				return
			}
		}
	}()
	go func() { _, _ = io.Copy(counter{n}, to) }()
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}

// rates measures what arrives of each flow, in Mbit/s on the wire, once what was on its way is there. Headers take 4% of
// full frames.
func (f *flows) rates() []float64 {
	read := func() []int64 {
		out := make([]int64, len(f.got))
		for i, n := range f.got {
			out[i] = n.Load()
		}
		return out
	}
	<-time.After(time.Second)
	before, began := read(), time.Now()
	<-time.After(2 * time.Second)
	after, took := read(), time.Since(began).Seconds()
	out := make([]float64, len(f.got))
	for i := range out {
		out[i] = float64(after[i]-before[i]) * 8 / 1e6 / took / 0.962
	}
	return out
}

// dividedWorld is a host with two networks of one server each, and its uplink divided.
func dividedWorld(t *testing.T, s hostnet.Shares) (*world, *Host, []*site) {
	w := newWorld(t)
	h := w.daemon()
	must(t, h.SetShares(context.Background(), s))
	var guests []*site
	for _, id := range []string{"a", "b"} {
		n := describeNet(id, "10.7.0.0/24", 1, 0)
		set(t, h, n)
		guests = append(guests, w.guest(h, n, 0))
	}
	return w, h, guests
}

func twoNetworks(rate, a, b api.BitRate) hostnet.Shares {
	return hostnet.Shares{Rate: rate, Reserved: rate / 20, Tenants: []hostnet.TenantShare{
		{ID: "t1", Networks: []hostnet.NetworkShare{{ID: "a", Profile: hostnet.Profile{Committed: a}}}},
		{ID: "t2", Networks: []hostnet.NetworkShare{{ID: "b", Profile: hostnet.Profile{Committed: b}}}},
	}}
}

// Each network gets what is committed to it, and what is spare in proportion, in both directions; and a change while all
// goes on is kept too.
func TestDivided(t *testing.T) {
	for name, direction := range map[string]func(*flows, *world, *site, int){"out": (*flows).out, "in": (*flows).in} {
		t.Run(name, func(t *testing.T) {
			w, h, guests := dividedWorld(t, twoNetworks(40*mbit, 24*mbit, 8*mbit))
			f := &flows{t: t}
			for i, g := range guests {
				direction(f, w, g, 5000+i)
			}
			check := func(what string, want ...float64) {
				t.Helper()
				got := f.rates()
				t.Logf("%s: %.1f Mbit/s", what, got)
				for i := range want { // wide, for a machine that is emulated: that nobody divides is seen all the same
					if got[i] < want[i]*0.5 || got[i] > want[i]*1.5 {
						t.Errorf("%s: network %d has %.1f Mbit/s, want %.0f", what, i, got[i], want[i])
					}
				}
			}
			check("at first", 30, 10)
			must(t, h.SetShares(t.Context(), twoNetworks(40*mbit, 8*mbit, 24*mbit)))
			check("changed", 10, 30)
			capped := twoNetworks(40*mbit, 8*mbit, 0)
			capped.Tenants[1].Peak = 4 * mbit
			must(t, h.SetShares(t.Context(), capped))
			check("a tenant's peak", 36, 4)
		})
	}
}

// What is changed by hand is mended, and what is somebody else's is left alone.
func TestDividedMends(t *testing.T) {
	s := twoNetworks(40*mbit, 24*mbit, 8*mbit)
	w, h, guests := dividedWorld(t, s)
	listenTCP(t, w.outside, outsideAddr+":80", "hello")
	up, err := w.host.LinkByName("up0")
	must(t, err)
	// Somebody's own filter, on the same hook, for packets that there are none of.
	foreign := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: up.Attrs().Index, Parent: netlink.HANDLE_MIN_EGRESS, Priority: 7, Protocol: unix.ETH_P_ALL},
		ClassId:     netlink.MakeHandle(7, 7),
		Sel:         &netlink.TcU32Sel{Flags: netlink.TC_U32_TERMINAL, Nkeys: 1, Keys: []netlink.TcU32Key{{Mask: 1<<32 - 1, Val: 0xdeadbeef}}},
	}
	must(t, w.host.FilterAdd(foreign))
	bucket := func() netlink.Link {
		t.Helper()
		l, err := w.host.LinkByName(outBucket(w.o.Prefix))
		must(t, err)
		return l
	}
	for name, harm := range map[string]func(){
		"nothing":          func() {},
		"a bucket removed": func() { must(t, w.host.LinkDel(bucket())) },
		"a bucket down":    func() { must(t, w.host.LinkSetDown(bucket())) },
		"its classes removed": func() {
			must(t, w.host.QdiscDel(netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: bucket().Attrs().Index, Parent: netlink.HANDLE_ROOT, Handle: handle(w.o.Prefix, 0)})))
		},
		"the filter removed": func() {
			must(t, w.host.FilterDel(&netlink.U32{FilterAttrs: netlink.FilterAttrs{LinkIndex: up.Attrs().Index,
				Parent: netlink.HANDLE_MIN_EGRESS, Priority: leadPriority(w.o.Prefix), Protocol: unix.ETH_P_ALL}}))
		},
		"the rules flushed": func() {
			c, err := w.host.rules()
			must(t, err)
			must(t, table{Name: hostTable(w.o.Prefix), Family: nftables.TableFamilyIPv4}.remove(c))
		},
	} {
		t.Run(name, func(t *testing.T) {
			harm()
			must(t, h.SetShares(t.Context(), s))
			before := sent(t, w, bucket(), s, "a")
			if got, err := fetch(guests[0], outsideAddr+":80", 5*time.Second); err != nil || got != "hello "+hostAddr {
				t.Fatalf("outside answers %q, %v", got, err)
			}
			if after := sent(t, w, bucket(), s, "a"); after <= before {
				t.Errorf("nothing went by the network's class: %d bytes before and %d after", before, after)
			}
		})
	}
	must(t, h.SetShares(t.Context(), hostnet.Shares{}))
	left, err := w.host.FilterList(up, netlink.HANDLE_MIN_EGRESS)
	must(t, err)
	if len(left) == 0 {
		t.Error("somebody else's filter is gone")
	}
	for _, f := range left {
		if f.Attrs().Priority != 7 {
			t.Errorf("a filter of priority %d is left", f.Attrs().Priority)
		}
	}
	if got, err := fetch(guests[0], outsideAddr+":80", 5*time.Second); err != nil || got != "hello "+hostAddr {
		t.Errorf("undivided, outside answers %q, %v", got, err)
	}
}

// sent is how many bytes went by a network's class.
func sent(t *testing.T, w *world, bucket netlink.Link, s hostnet.Shares, network string) uint64 {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(w.o.RunDir, "classes.json"))
	must(t, err)
	numbers := map[string]uint16{}
	must(t, json.Unmarshal(b, &numbers))
	classes, err := w.host.ClassList(bucket, netlink.HANDLE_NONE)
	must(t, err)
	for _, c := range classes {
		if c.Attrs().Handle == handle(w.o.Prefix, numbers[networkKey(network)]) {
			return c.Attrs().Statistics.Basic.Bytes
		}
	}
	t.Fatalf("network %s has no class", network)
	return 0
}

// A daemon that was killed finds its division, and gives nobody another class.
func TestDividedRestart(t *testing.T) {
	s := twoNetworks(40*mbit, 24*mbit, 8*mbit)
	w, h, guests := dividedWorld(t, s)
	listenTCP(t, w.outside, outsideAddr+":80", "hello")
	if _, err := fetch(guests[1], outsideAddr+":80", 5*time.Second); err != nil {
		t.Fatal(err)
	}
	l, err := w.host.LinkByName(outBucket(w.o.Prefix))
	must(t, err)
	before := sent(t, w, l, s, "b")
	must(t, h.Close())
	h = w.daemon()
	s.Tenants = slices.Insert(s.Tenants, 0, hostnet.TenantShare{ID: "t0", Networks: []hostnet.NetworkShare{{ID: "0"}}}) // sorts before
	must(t, h.SetShares(t.Context(), s))
	if after := sent(t, w, l, s, "b"); after < before || before == 0 {
		t.Errorf("its class has sent %d bytes, and had %d before", after, before)
	}
	s.Tenants = s.Tenants[1:2] // b's tenant is gone
	must(t, h.SetShares(t.Context(), s))
	classes, err := w.host.ClassList(l, netlink.HANDLE_NONE)
	must(t, err)
	if len(classes) != 4 {
		t.Errorf("%d classes are left, want those of the uplink, the host, a tenant and a network", len(classes))
	}
}
