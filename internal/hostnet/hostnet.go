// Package hostnet is the contract of a host's networking: what the networks of this host are to be, as data. An
// implementation makes the host so, any number of times, and changes only what differs.
package hostnet

import (
	"context"
	"net"
	"net/netip"
)

// Host makes a host's networks. Methods may be called concurrently; calls for one network are serialized.
type Host interface {
	// Set makes a network as described: what is missing is made, what differs is changed, what is no longer wanted is
	// removed, and what is right is left alone. It can be called any number of times and resumes after a crash at any
	// point. On return every port in n can carry traffic, and DHCP and DNS answer.
	Set(ctx context.Context, n Network) error
	// Remove takes a network and everything of it away. Unknown networks are no error.
	Remove(ctx context.Context, id string) error
	// List names the networks that exist on this host, by id, whoever made them for this state directory.
	List(ctx context.Context) ([]string, error)
	// Attachment tells where a port's guest end is, or will be after Set. It is pure.
	Attachment(networkID string, p Port) Attachment
	// Counters reads a port's counters from the kernel.
	Counters(ctx context.Context, networkID, portID string) (Counters, error)
	// Close stops the services that run in this process (DHCP, DNS). Networks stay.
	Close() error
}

// Uplinker is a Host that can tell whether it has a way out.
type Uplinker interface {
	// Uplink names the device that traffic leaves through now; empty: there is none.
	Uplink() (string, error)
}

// Divider is a Host that can divide its uplink.
type Divider interface {
	// SetShares divides the uplink as described, at once and while traffic flows: nothing is lost by the change itself. It
	// can be called any number of times; what is right is left alone. Networks that are made later find their part there.
	SetShares(ctx context.Context, s Shares) error
}

// Network is a network on this host: a bridge and a router in a network namespace of its own, so that the prefixes of
// two networks may overlap.
type Network struct {
	ID         string
	Subnets    []Subnet
	MTU        int
	NAT        bool
	Domain     string       // of the servers' names, without a dot at the end
	Forwarders []netip.Addr // resolvers for other names; empty: the host's
	Records    []Record     // names of servers, wherever they run
	Ports      []Port       // ports of servers on this host
}

// Subnet is a prefix with its router.
type Subnet struct {
	Prefix  netip.Prefix
	Gateway netip.Addr
}

// Record gives a name in the network's domain an address; the reverse name too.
type Record struct {
	Name string // single label
	Addr netip.Addr
}

// Port is a server's attachment to a network.
type Port struct {
	ID     string // unique on the host, at most 26 characters
	Kind   Kind
	Guest  string // device name in the guest: "eth0"
	Name   string // host name given by DHCP
	MAC    net.HardwareAddr
	Addrs  []netip.Prefix // addresses with the subnet's length
	Server string         // server id: its ports share a namespace, for Kind Namespace
}

// Kind is what a port's guest end is.
type Kind int

const (
	// Namespace: a device in a network namespace of the server's own, with addresses and routes set: for guests of the
	// host's kernel.
	Namespace Kind = iota
	// Tap: a tap device in the network's namespace, to be opened by a virtual machine monitor.
	Tap
)

// Attachment is where a port's guest end is.
type Attachment struct {
	NetNS  string // path of the network namespace: the server's (Namespace), or the network's (Tap)
	Device string // device name there
}

// Counters of a port, as the guest sees the directions.
type Counters struct {
	RxBytes, TxBytes, RxPackets, TxPackets, RxDropped, TxDropped uint64
}
