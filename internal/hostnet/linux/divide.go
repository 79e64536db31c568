package linux

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/hostnet"
)

// An uplink is divided by two hierarchical token buckets, one for each direction, with the same classes (tree.go):
//
//	 network ── leg ─┐  forward: the leg gives the class               ┌─ filter ─▶ PREFIX-out ─▶ uplink
//	                 ├─────────────────────────────────────────────────┤
//	 network ◀─ leg ◀┴─ PREFIX-in ◀─ filter                            └─ uplink
//
// A bucket sits on an ifb device, to which a filter on the way out of the uplink, or of a leg, sends everything; from
// there it goes on where it was bound for. So the uplink's own queues stay as they are. Rules of a table of the daemon's
// set a packet's priority to its class (tc-htb(8)), by the leg that it comes from or goes to. What has none, as the host's
// own traffic, is the host's class.

// divider is what is known of how the uplink is divided.
type divider struct {
	mu     sync.Mutex            // held through a division, and while a leg is made
	shares hostnet.Shares        // as divided last
	uplink string                // that leads into its bucket, as all legs do; empty: that is not known
	queues map[queueID]api.Bytes // how long they are
}

// numbersFile keeps the classes' numbers, as long as the kernel keeps the classes.
func (h *Host) numbersFile() string { return filepath.Join(h.o.RunDir, "classes.json") }

// SetShares implements hostnet.Divider.
func (h *Host) SetShares(ctx context.Context, s hostnet.Shares) error {
	h.divider.mu.Lock()
	defer h.divider.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if !s.Divides() {
		if err := h.undivide(); err != nil {
			return fmt.Errorf("undo the division of the uplink: %w", err)
		}
		return nil
	}
	if reflect.DeepEqual(s, h.divider.shares) {
		h.divider.uplink = "" // nothing is new, so something may be amiss: look at everything
	}
	if err := h.divide(s); err != nil {
		h.divider.uplink = ""
		return fmt.Errorf("divide the uplink: %w", err)
	}
	h.divider.shares = s
	return nil
}

// divide makes the buckets and what leads to them. What is right is left alone.
func (h *Host) divide(s hostnet.Shares) error {
	numbers, err := h.numbers(s)
	if err != nil {
		return err
	}
	classes := tree(s, numbers)
	for _, dev := range []string{outBucket(h.o.Prefix), inBucket(h.o.Prefix)} {
		if err := h.setBucket(dev, classes); err != nil {
			return fmt.Errorf("bucket %s: %w", dev, err)
		}
	}
	if err := h.setClasses(classTable(h.o.Prefix, s, numbers)); err != nil {
		return fmt.Errorf("rules that give the classes: %w", err)
	}
	h.uplink.Lock()
	up, err := h.uplinkOf()
	h.uplink.Unlock()
	if err != nil {
		return err
	}
	if up.name != "" && up.name == h.divider.uplink {
		return nil // and a leg that came since has been led into its bucket
	}
	links, hooked, err := h.hooks()
	if err != nil {
		return err
	}
	for _, l := range links {
		bucket := ""
		switch name := l.Attrs().Name; {
		case name == up.name:
			bucket = outBucket(h.o.Prefix)
		case l.Type() == "veth" && strings.HasPrefix(name, h.o.Prefix+"-"):
			bucket = inBucket(h.o.Prefix)
		}
		if err := h.lead(l, hooked[l.Attrs().Index], bucket); err != nil && !gone(err) {
			return fmt.Errorf("lead what leaves by %s into a bucket: %w", l.Attrs().Name, err)
		}
	}
	h.divider.uplink = up.name
	return nil
}

// divideLeg leads what leaves by a new leg into its bucket, before anything does. The caller holds the divider's lock.
func (h *Host) divideLeg(dev string) error {
	if h.divider.uplink == "" {
		return nil
	}
	l, err := h.host.LinkByName(dev)
	if err != nil {
		return err
	}
	return h.lead(l, false, inBucket(h.o.Prefix))
}

// hooks lists the devices of the host's namespace, and those, by index, on which filters can hang.
func (h *Host) hooks() ([]netlink.Link, map[int]bool, error) {
	links, err := dump(h.host.LinkList)
	if err != nil {
		return nil, nil, fmt.Errorf("list devices: %w", err)
	}
	qdiscs, err := dump(func() ([]netlink.Qdisc, error) { return h.host.QdiscList(nil) })
	if err != nil {
		return nil, nil, fmt.Errorf("list queues: %w", err)
	}
	hooked := map[int]bool{}
	for _, q := range qdiscs {
		if q.Type() == "clsact" {
			hooked[q.Attrs().LinkIndex] = true
		}
	}
	return links, hooked, nil
}

// dump reads a list, again where it changed meanwhile.
func dump[T any](list func() ([]T, error)) (all []T, err error) {
	for range 10 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// gone tells whether a device went while it was looked at.
func gone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.As(err, new(netlink.LinkNotFoundError))
}

// undivide takes all of it away.
func (h *Host) undivide() error {
	h.divider.shares, h.divider.uplink, h.divider.queues = hostnet.Shares{}, "", nil
	if _, err := os.Stat(h.numbersFile()); errors.Is(err, os.ErrNotExist) {
		return nil // it is written before anything is made, and removed last
	}
	links, hooked, err := h.hooks()
	if err != nil {
		return err
	}
	var buckets []string
	for _, l := range links {
		if err := h.lead(l, hooked[l.Attrs().Index], ""); err != nil && !gone(err) {
			return fmt.Errorf("lead what leaves by %s past the buckets: %w", l.Attrs().Name, err)
		}
		if name := l.Attrs().Name; name == outBucket(h.o.Prefix) || name == inBucket(h.o.Prefix) {
			buckets = append(buckets, name)
		}
	}
	for _, dev := range buckets {
		if err := removeLink(h.host, dev); err != nil {
			return err
		}
	}
	if err := h.setClasses(table{Name: hostTable(h.o.Prefix), Family: nftables.TableFamilyIPv4}); err != nil {
		return err
	}
	if err := os.Remove(h.numbersFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// numbers gives tenants and networks their classes, and keeps them.
func (h *Host) numbers(s hostnet.Shares) (map[string]uint16, error) {
	had := map[string]uint16{}
	if b, err := os.ReadFile(h.numbersFile()); err == nil {
		_ = json.Unmarshal(b, &had) // one that is damaged holds nothing
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	numbers, ok := number(s, had)
	if !ok {
		return nil, errors.New("it has more tenants and networks than the kernel has classes for")
	}
	b, err := json.Marshal(numbers)
	if err != nil {
		return nil, err
	}
	return numbers, os.WriteFile(h.numbersFile(), b, 0o600)
}

// handle is that of a class, or of the bucket itself (0). A packet keeps its class as its priority when it has left the
// bucket, so the number must mean nothing to another daemon's bucket, nor to people's own queues on the uplink.
func handle(prefix string, minor uint16) uint32 {
	return netlink.MakeHandle(leadPriority(prefix), minor)
}

// setBucket makes a bucket with these classes, and changes those that differ. Packets that wait stay.
func (h *Host) setBucket(dev string, classes []class) error {
	l, err := h.host.LinkByName(dev)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		h.divider.uplink = "" // what leads to the one that was there leads nowhere now
		at := netlink.NewLinkAttrs()
		at.Name = dev
		if err := h.host.LinkAdd(&netlink.Ifb{LinkAttrs: at}); err != nil {
			return err
		}
		if err := h.host.sysctl(noIPv6(dev)); err != nil {
			return err
		}
		l, err = h.host.LinkByName(dev)
	}
	if err != nil {
		return err
	}
	if l.Attrs().RawFlags&unix.IFF_UP == 0 {
		if err := h.host.LinkSetUp(l); err != nil {
			return err
		}
	}
	qdiscs, err := dump(func() ([]netlink.Qdisc, error) { return h.host.QdiscList(l) })
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(qdiscs, func(q netlink.Qdisc) bool { return q.Type() == "htb" && q.Attrs().Handle == handle(h.o.Prefix, 0) }) {
		root := netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_ROOT, Handle: handle(h.o.Prefix, 0)})
		root.Defcls = hostClass
		if err := h.host.QdiscReplace(root); err != nil {
			return err
		}
	}
	if err := h.setBucketClasses(l.Attrs().Index, classes); err != nil {
		return err
	}
	if qdiscs, err = dump(func() ([]netlink.Qdisc, error) { return h.host.QdiscList(l) }); err != nil {
		return err
	}
	return h.setQueues(l.Attrs().Index, qdiscs, classes)
}

// setQueues gives each class without parts a queue of so many bytes: the kernel's own counts packets, of which some are a
// hundred times larger than others.
func (h *Host) setQueues(index int, have []netlink.Qdisc, classes []class) error {
	there := map[uint32]bool{}
	for _, q := range have {
		there[q.Attrs().Parent] = q.Type() == "bfifo"
	}
	if h.divider.queues == nil {
		h.divider.queues = map[queueID]api.Bytes{}
	}
	for _, c := range classes {
		id := queueID{index, c.Minor}
		if c.Queue == 0 || there[handle(h.o.Prefix, c.Minor)] && h.divider.queues[id] == c.Queue {
			continue
		}
		err := h.host.request(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_REPLACE,
			&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(index), Handle: netlink.MakeHandle(c.Minor, 0), Parent: handle(h.o.Prefix, c.Minor)},
			nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("bfifo")),
			nl.NewRtAttr(nl.TCA_OPTIONS, nl.Uint32Attr(uint32(c.Queue)))) // struct tc_fifo_qopt
		if err != nil {
			return fmt.Errorf("queue of class %x: %w", handle(h.o.Prefix, c.Minor), err)
		}
		h.divider.queues[id] = c.Queue
	}
	return nil
}

type queueID struct {
	device int
	minor  uint16
}

func (h *Host) setBucketClasses(index int, classes []class) error {
	have, err := dump(func() ([]netlink.Class, error) {
		return h.host.ClassList(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}, netlink.HANDLE_NONE)
	})
	if err != nil {
		return err
	}
	there := map[uint32]*netlink.HtbClass{}
	for _, c := range have {
		if htb, ok := c.(*netlink.HtbClass); ok {
			there[htb.Handle] = htb
		}
	}
	wanted := map[uint32]*netlink.HtbClass{}
	for _, c := range classes {
		wanted[handle(h.o.Prefix, c.Minor)] = c.htb(h.o.Prefix, index)
	}
	// Those without parts first: a class that has some can't be removed.
	var gone []*netlink.HtbClass
	for id, c := range there {
		if w := wanted[id]; w == nil || w.Parent != c.Parent {
			gone = append(gone, c)
			delete(there, id)
		}
	}
	slices.SortFunc(gone, func(a, b *netlink.HtbClass) int { return int(a.Level) - int(b.Level) })
	for _, c := range gone {
		if err := h.host.ClassDel(c); err != nil {
			return fmt.Errorf("remove class %x: %w", c.Handle, err)
		}
		_, minor := netlink.MajorMinor(c.Handle)
		delete(h.divider.queues, queueID{index, minor}) // it goes with the class
	}
	for _, c := range classes {
		w := wanted[handle(h.o.Prefix, c.Minor)]
		if was := there[handle(h.o.Prefix, c.Minor)]; was != nil && sameClass(was, w) {
			continue
		}
		if err := h.host.ClassReplace(w); err != nil {
			return fmt.Errorf("class %x: %w", w.Handle, err)
		}
	}
	return nil
}

func (c class) htb(prefix string, index int) *netlink.HtbClass {
	parent := uint32(netlink.HANDLE_ROOT)
	if c.Parent != 0 {
		parent = handle(prefix, c.Parent)
	}
	out := netlink.NewHtbClass(
		netlink.ClassAttrs{LinkIndex: index, Parent: parent, Handle: handle(prefix, c.Minor)},
		netlink.HtbClassAttrs{Rate: uint64(c.Rate), Ceil: uint64(c.Ceil), Buffer: uint32(c.Burst), Cbuffer: uint32(c.Cburst)},
	)
	out.Quantum = max(uint32(c.Quantum), packet)
	return out
}

// sameClass tells whether the kernel has a class as it is wanted. One without a parent is the kernel's root's.
func sameClass(a, b *netlink.HtbClass) bool {
	return a.Rate == b.Rate && a.Ceil == b.Ceil && a.Buffer == b.Buffer && a.Cbuffer == b.Cbuffer && a.Quantum == b.Quantum
}

// classTable has the rules that set each packet's priority to its class.
func classTable(prefix string, s hostnet.Shares, numbers map[string]uint16) table {
	classes := keys{Name: "classes", Key: []nftables.SetDatatype{nftables.TypeIFName}, Value: nftables.TypeClassID}
	for _, t := range s.Tenants {
		for _, n := range t.Networks {
			classes.Keys = append(classes.Keys, exactly(legDevice(prefix, n.ID)))
			classes.Values = append(classes.Values, binaryutil.NativeEndian.PutUint32(handle(prefix, numbers[networkKey(n.ID)])))
		}
	}
	by := func(key expr.MetaKey) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: key, Register: 1},
			&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: classes.Name},
			&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: 1},
		}
	}
	return table{Name: hostTable(prefix), Family: nftables.TableFamilyIPv4, Sets: []keys{classes}, Chains: []chain{
		{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityMangle, []rule{
			{"class by iif", by(expr.MetaKeyIIFNAME)},
			{"class by oif", by(expr.MetaKeyOIFNAME)},
		}},
	}}
}

// setClasses makes a table of the host's namespace as wanted; one without chains is removed.
func (h *Host) setClasses(t table) error {
	h.uplink.Lock()
	defer h.uplink.Unlock()
	have, err := ruleList(h.host, t.family(), t.Name)
	if err != nil || slices.Equal(have, t.list()) {
		return err
	}
	c, err := h.host.rules()
	if err != nil {
		return err
	}
	if len(t.Chains) == 0 {
		return t.remove(c)
	}
	return t.replace(c)
}

// leadPriority is where the daemon's filter is among others on a device: after those of people, and beside those of other
// daemons.
func leadPriority(prefix string) uint16 {
	sum := fnv.New32a()
	_, _ = io.WriteString(sum, prefix)
	return 0xc000 | uint16(sum.Sum32()&0xfff)
}

// lead sends what leaves by a device into a bucket, or, where that is empty, no more. Other filters there are left alone,
// and so is what they hang on. hook tells whether there is such.
func (h *Host) lead(l netlink.Link, hook bool, bucket string) error {
	if bucket == "" && !hook {
		return nil
	}
	target, priority := 0, leadPriority(h.o.Prefix)
	if bucket != "" {
		b, err := h.host.LinkByName(bucket)
		if err != nil {
			return err
		}
		target = b.Attrs().Index
	}
	var ours []netlink.Filter
	others := false
	for _, parent := range []uint32{netlink.HANDLE_MIN_EGRESS, netlink.HANDLE_MIN_INGRESS} {
		if !hook || parent == netlink.HANDLE_MIN_INGRESS && target != 0 {
			continue
		}
		list, err := dump(func() ([]netlink.Filter, error) { return h.host.FilterList(l, parent) })
		if err != nil {
			return err
		}
		for _, f := range list {
			if parent == netlink.HANDLE_MIN_EGRESS && f.Attrs().Priority == priority {
				ours = append(ours, f)
			} else {
				others = true
			}
		}
	}
	if target != 0 && slices.ContainsFunc(ours, func(f netlink.Filter) bool { return leadsTo(f, target) }) {
		return nil
	}
	attrs := netlink.FilterAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_MIN_EGRESS, Priority: priority, Protocol: unix.ETH_P_ALL}
	if len(ours) > 0 { // all of a priority go at once
		if err := h.host.FilterDel(&netlink.U32{FilterAttrs: attrs}); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	if target == 0 {
		if len(ours) > 0 && !others {
			return h.host.QdiscDel(clsact(l))
		}
		return nil
	}
	if !hook {
		if err := h.host.QdiscAdd(clsact(l)); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return h.host.FilterAdd(&netlink.U32{
		FilterAttrs: attrs,
		Actions: []netlink.Action{&netlink.MirredAction{
			ActionAttrs: netlink.ActionAttrs{Action: netlink.TC_ACT_STOLEN}, MirredAction: netlink.TCA_EGRESS_REDIR, Ifindex: target}},
	})
}

func leadsTo(f netlink.Filter, index int) bool {
	u, ok := f.(*netlink.U32)
	return ok && slices.ContainsFunc(u.Actions, func(a netlink.Action) bool {
		m, ok := a.(*netlink.MirredAction)
		return ok && m.Ifindex == index
	})
}

func clsact(l netlink.Link) *netlink.GenericQdisc {
	return &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)}}
}
