package ledger

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"

	"github.com/croftproject/croft/api"
)

var (
	ErrOutside  = errors.New("is not in the subnet")
	ErrReserved = errors.New("is the subnet's own: its network, broadcast or gateway address")
	ErrTaken    = errors.New("is taken")
	ErrFull     = errors.New("has no free address")
)

// MaxHostBits limits subnets, so that the map of a network's addresses stays below 8 KiB.
const MaxHostBits = 16

// Network is which addresses of a network are held. Who holds them is in the servers' records.
type Network struct {
	Ports int    `json:"ports"`
	Held  []byte `json:"held,omitempty"` // a bit for each address of the subnet, lowest first; zeros at the end are cut
}

// Take holds an address of the subnet: the one wanted, or the lowest free one where want is the zero Addr.
func (n Network) Take(s api.Subnet, want netip.Addr) (Network, netip.Addr, error) {
	size := 1 << (s.Prefix.Addr().BitLen() - s.Prefix.Bits())
	if !want.IsValid() {
		for i := n.lowestZero(); i < size; i++ {
			addr := nth(s.Prefix, i)
			if !n.has(i) && !own(s, addr, i, size) {
				return n.with(i, true), addr, nil
			}
		}
		return n, want, fmt.Errorf("%s %w", s.Prefix, ErrFull)
	}
	if !s.Prefix.Contains(want) {
		return n, want, fmt.Errorf("%s %w %s", want, ErrOutside, s.Prefix)
	}
	i := index(s.Prefix, want)
	if own(s, want, i, size) {
		return n, want, fmt.Errorf("%s %w", want, ErrReserved)
	}
	if n.has(i) {
		return n, want, fmt.Errorf("%s %w", want, ErrTaken)
	}
	return n.with(i, true), want, nil
}

// Give releases an address; one that is not held is no error.
func (n Network) Give(s api.Subnet, addr netip.Addr) Network {
	if !s.Prefix.Contains(addr) {
		return n
	}
	if i := index(s.Prefix, addr); n.has(i) {
		return n.with(i, false)
	}
	return n
}

func own(s api.Subnet, addr netip.Addr, i, size int) bool {
	return i == 0 || i == size-1 || addr == s.Gateway
}

func (n Network) has(i int) bool { return i/8 < len(n.Held) && n.Held[i/8]&(1<<(i%8)) != 0 }

func (n Network) lowestZero() int {
	for i, b := range n.Held {
		if b != 0xff {
			return i*8 + bits.TrailingZeros8(^b)
		}
	}
	return len(n.Held) * 8
}

func (n Network) with(i int, held bool) Network {
	next := make([]byte, max(len(n.Held), i/8+1))
	copy(next, n.Held)
	if held {
		next[i/8] |= 1 << (i % 8)
		n.Ports++
	} else {
		next[i/8] &^= 1 << (i % 8)
		n.Ports--
	}
	for len(next) > 0 && next[len(next)-1] == 0 {
		next = next[:len(next)-1]
	}
	n.Held = next
	if len(next) == 0 {
		n.Held = nil
	}
	return n
}

// nth is the i-th address of a prefix; index is its inverse. Subnets have at most MaxHostBits bits for hosts, so only
// the last two bytes differ within one.
func nth(p netip.Prefix, i int) netip.Addr {
	raw := p.Masked().Addr().AsSlice()
	raw[len(raw)-1] |= byte(i)
	raw[len(raw)-2] |= byte(i >> 8)
	addr, _ := netip.AddrFromSlice(raw)
	return addr
}

func index(p netip.Prefix, addr netip.Addr) int {
	base, raw := p.Masked().Addr().AsSlice(), addr.AsSlice()
	last := len(raw) - 1
	return int(raw[last]^base[last]) | int(raw[last-1]^base[last-1])<<8
}
