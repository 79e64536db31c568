package linux

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
)

// step is one change to the host. Each may be done again after a crash, in a plan made from what was observed then.
type step interface {
	do(ctx context.Context, a *actor) error
}

// place is a namespace that a step acts in: the network's, the host's, or the server's with that id.
type place string

const (
	inNetwork place = ""
	inHost    place = "/host" // no id holds a slash
)

func (p place) String() string {
	switch p {
	case inNetwork:
		return "network"
	case inHost:
		return "host"
	}
	return "server " + string(p)
}

type (
	// makeNamespace makes and binds a namespace.
	makeNamespace struct{ In place }
	// setForwarding lets a device of the host's namespace forward IPv4 and takes IPv6 from legs, or lets the network's
	// namespace forward.
	setForwarding struct {
		In  place
		Dev string
	}
	// makeBridge makes the network's bridge: without STP, so that ports forward at once, and without snooping.
	makeBridge struct {
		MAC string
		MTU int
	}
	// setLink changes those properties of a device that are not empty.
	setLink struct {
		In  place
		Dev string
		MTU int
		MAC string
		Up  bool
	}
	delLink struct {
		In  place
		Dev string
	}
	addAddr struct {
		In   place
		Dev  string
		Addr netip.Prefix
	}
	delAddr struct {
		In   place
		Dev  string
		Addr netip.Prefix
	}
	// setRoute sets the default route through a device.
	setRoute struct {
		In     place
		Dev    string
		Via    netip.Addr
		Metric int
	}
	// makeLeg makes the pair that joins the network's namespace to the host's, with addresses and routes.
	makeLeg struct {
		Dev string
		MTU int
	}
	// setTable replaces a whole nftables table at once.
	setTable struct {
		In    place
		Table table
	}
	// setKeys brings the keys of a table's sets from what they are to what they are in Table, and leaves the rest of it alone.
	setKeys struct {
		In       place
		Table    table
		Add, Del []keys
	}
	// markPort records whose namespace a port's guest end will be in, so that it is found after a crash.
	markPort struct{ Dev, Server string }
	// makeVeth makes a port and, where there is none, the server's namespace.
	makeVeth struct {
		Dev, Server, Guest, MAC string
		MTU                     int
	}
	makeTap struct{ Dev string }
	enslave struct{ Dev string }
	// dropPorts removes ports and, where one was its server's last, the server's namespace.
	dropPorts struct{ Ports []droppedPort }
)

type droppedPort struct{ Dev, Server string }

// describe names a step for people: "addAddr in network: br0 10.0.0.1/24".
func describe(s step) string {
	name := strings.TrimPrefix(fmt.Sprintf("%T", s), "linux.")
	switch s := s.(type) {
	case setTable:
		return fmt.Sprintf("%s in %s: %s", name, s.In, s.Table)
	case setKeys:
		return fmt.Sprintf("%s in %s: %s", name, s.In, s.Table)
	}
	return fmt.Sprintf("%s %+v", name, s)
}
