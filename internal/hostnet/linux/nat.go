package linux

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// table is an nftables table of the inet family, as data.
type table struct {
	Name   string
	Chains []chain
}

type chain struct {
	Name     string
	Type     nftables.ChainType
	Hook     *nftables.ChainHook
	Priority *nftables.ChainPriority
	Rules    []rule
}

// rule is kept in the kernel with its text as comment. By it, a rule that is there is told from one that is not: it
// can't be changed without losing the comment.
type rule struct {
	Text  string
	Exprs []expr.Any
}

// list is a table's content in short: what ruleList reads back.
func (t table) list() []string {
	var out []string
	for _, c := range t.Chains {
		out = append(out, c.Name)
		for _, r := range c.Rules {
			out = append(out, c.Name+": "+r.Text)
		}
	}
	return out
}

// rulesOfNetwork translates a network's way out to its leg's address and lets nothing in that was not asked for.
func rulesOfNetwork() table {
	up := uplinkDevice
	in, out := match(expr.MetaKeyIIFNAME, exactly(up)), match(expr.MetaKeyOIFNAME, exactly(up))
	return table{networkTable, []chain{
		{"input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, []rule{
			{"iif uplink established accept", slices.Concat(in, established(), accept)},
			{"iif uplink drop", slices.Concat(in, drop)},
		}},
		{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, []rule{
			{"oif uplink tcp syn maxseg rt mtu", slices.Concat(out, clampMSS())},
			{"iif uplink established accept", slices.Concat(in, established(), accept)},
			{"iif uplink drop", slices.Concat(in, drop)},
		}},
		{"postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, []rule{
			{"oif uplink masquerade", slices.Concat(out, []expr.Any{&expr.Masq{}})},
		}},
	}}
}

// rulesOfHost lets legs reach the uplink and nothing else: no other leg, no other device, and not the host itself.
// Their names tell the daemon's legs, so the rules don't depend on the networks.
//
// closed: the uplink forwards only because the daemon had it to, and is to make no router of the host. What begins
// outside is dropped then, whatever it is for; answers pass, those to another daemon's networks too.
func rulesOfHost(prefix, uplink string, transit netip.Prefix, closed bool) table {
	legs := []byte(prefix + "-")
	fromLeg, toLeg := match(expr.MetaKeyIIFNAME, legs), match(expr.MetaKeyOIFNAME, legs)
	fromUp, toUp := match(expr.MetaKeyIIFNAME, exactly(uplink)), match(expr.MetaKeyOIFNAME, exactly(uplink))
	forward := []rule{
		{"iif legs oif " + uplink + " accept", slices.Concat(fromLeg, toUp, accept)},
		{"iif " + uplink + " oif legs established accept", slices.Concat(fromUp, toLeg, established(), accept)},
		{"iif legs drop", slices.Concat(fromLeg, drop)},
		{"oif legs drop", slices.Concat(toLeg, drop)},
	}
	if closed {
		forward = append(forward,
			rule{"iif " + uplink + " established accept", slices.Concat(fromUp, established(), accept)},
			rule{"iif " + uplink + " drop", slices.Concat(fromUp, drop)})
	}
	return table{hostTable(prefix), []chain{
		{"input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, []rule{
			{"iif legs drop", slices.Concat(fromLeg, drop)},
		}},
		{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, forward},
		{"postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, []rule{
			{"from " + transit.String() + " oif " + uplink + " masquerade",
				slices.Concat(source(transit), toUp, []expr.Any{&expr.Masq{}})},
		}},
	}}
}

var (
	accept = []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop   = []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
)

func match(key expr.MetaKey, data []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}}
}

// exactly is a device name as the kernel compares it whole; without the padding it would match a beginning.
func exactly(dev string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, dev)
	return b
}

func established() []expr.Any {
	bits := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	zero := binaryutil.NativeEndian.PutUint32(0)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: bits, Xor: zero},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: zero},
	}
}

// source matches IPv4 packets from a prefix.
func source(p netip.Prefix) []expr.Any {
	mask := ^uint32(0) << (32 - p.Bits())
	return append(match(expr.MetaKeyNFPROTO, []byte{unix.NFPROTO_IPV4}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.BigEndian.PutUint32(mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()})
}

// clampMSS keeps TCP segments within the path's MTU where that is smaller than the network's, whatever becomes of
// ICMP on the way (RFC 2923).
func clampMSS() []expr.Any {
	const flags, syn, rst = 13, 0x02, 0x04
	const optMaxSeg = 2
	return append(match(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_TCP}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: flags, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{syn | rst}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{syn}},
		&expr.Rt{Register: 1, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: 1, Type: optMaxSeg, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt})
}

// replace puts a table in place of one of its name, in one transaction: no packet sees it half made.
func (t table) replace(c *nftables.Conn) error {
	nt := &nftables.Table{Name: t.Name, Family: nftables.TableFamilyINet}
	c.AddTable(nt) // so that there is one to delete
	c.DelTable(nt)
	c.AddTable(nt)
	for _, ch := range t.Chains {
		nc := c.AddChain(&nftables.Chain{Name: ch.Name, Table: nt, Type: ch.Type, Hooknum: ch.Hook, Priority: ch.Priority})
		for _, r := range ch.Rules {
			comment := userdata.AppendString(nil, userdata.TypeComment, r.Text)
			c.AddRule(&nftables.Rule{Table: nt, Chain: nc, Exprs: r.Exprs, UserData: comment})
		}
	}
	return c.Flush()
}

func (s setTable) do(_ context.Context, a *actor) error {
	site, err := a.site(s.In)
	if err != nil {
		return err
	}
	if s.In == inHost {
		a.h.uplink.Lock()
		defer a.h.uplink.Unlock()
	}
	c, err := site.rules()
	if err != nil {
		return err
	}
	return s.Table.replace(c)
}

// tables remembers the rules of a network's table and of the host's, and the generation that they were read at.
type tables struct {
	seen  [2]uint32
	rules [2][]string
}

// of reads a table's rules, if anything about the namespace's nftables changed since the last time.
func (t *tables) of(i int, s *site, name string) ([]string, error) {
	gen, err := s.generation()
	if err != nil {
		return nil, err
	}
	if gen == t.seen[i] && gen != 0 {
		return t.rules[i], nil
	}
	rules, err := ruleList(s, name)
	if err != nil {
		return nil, err
	}
	t.seen[i], t.rules[i] = gen, rules
	return rules, nil
}

// ruleList reads a table back.
func ruleList(s *site, name string) ([]string, error) {
	c, err := s.rules()
	if err != nil {
		return nil, err
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, ch := range chains {
		if ch.Table.Name != name {
			continue
		}
		out = append(out, ch.Name)
		rules, err := c.GetRules(ch.Table, ch)
		if errors.Is(err, unix.ENOENT) {
			return nil, nil // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			text, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			out = append(out, ch.Name+": "+text)
		}
	}
	return out, nil
}

// tableNames lists the inet tables of a namespace.
func tableNames(s *site) ([]string, error) {
	c, err := s.rules()
	if err != nil {
		return nil, err
	}
	all, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(all))
	for i, t := range all {
		names[i] = t.Name
	}
	return names, nil
}

// remove removes a table that is there.
func (t table) remove(c *nftables.Conn) error {
	c.DelTable(&nftables.Table{Name: t.Name, Family: nftables.TableFamilyINet})
	return c.Flush()
}
