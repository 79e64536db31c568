package linux

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// rulesOfNetwork translates a network's way out to its leg's address and lets nothing in that was not asked for.
func rulesOfNetwork() table {
	up := uplinkDevice
	in, out := match(expr.MetaKeyIIFNAME, exactly(up)), match(expr.MetaKeyOIFNAME, exactly(up))
	return table{Name: networkTable, Chains: []chain{
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
	return table{Name: hostTable(prefix), Chains: []chain{
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
