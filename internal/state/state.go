// Package state names the records that Croft keeps in its store, and their keys. It is pure.
//
// Spec and status are separate records with one writer each: the control plane writes Server, Network, Image, Host and
// Tenant; the agent of the owning host writes ServerStatus, NetworkStatus and HostStatus. They are joined when read (Join…).
//
//	name/<kind>/<tenant>/<name>   id of the resource: what makes names unique
//	server/<id>                   Server
//	server-status/<id>            api.ServerStatus
//	network-status/<id>           NetworkStatus; none while the network is on no host
//	network/<id>, image/<id>, tenant/<id>, host/<id>, job/<id>
//	host-status/<id>              api.HostStatus, without Allocatable and Allocated
//	ledger/host/<id>              what is promised of a host
//	ledger/tenant/<id>            what is promised to a tenant
//	ledger/network/<id>           which addresses are held
//	ledger/image/<id>             how many servers use it
//	ledger/uplink/<host>/<tenant> what is committed to a tenant on a host's uplink, by ids; none while that has no port there
//	event/<id>                    api.Event, expiring
//	idempotency/<tenant id>/<key> what an Idempotency-Key was answered with, expiring
package state

import (
	"net/netip"
	"time"

	"github.com/croftproject/croft/api"
)

// Prefixes of keys.
const (
	Names         = "name/"
	Servers       = "server/"
	ServerStatus  = "server-status/"
	Networks      = "network/"
	NetworkStatus = "network-status/"
	Images        = "image/"
	Tenants       = "tenant/"
	Hosts         = "host/"
	HostStatus    = "host-status/"
	Jobs          = "job/"
	HostLedger    = "ledger/host/"
	TenantLedger  = "ledger/tenant/"
	NetworkLedger = "ledger/network/"
	UplinkLedger  = "ledger/uplink/"
	Events        = "event/"
	Idempotency   = "idempotency/"
)

// Server is the control plane's record of a server. Meta.Revision is not stored: it is the record's own.
type Server struct {
	Meta   api.Meta       `json:"meta"`
	Spec   api.ServerSpec `json:"spec"` // defaulted and valid
	Intent Intent         `json:"intent"`

	// What admission decided and promised, in the transaction that wrote the spec.
	HostID      string        `json:"hostID"`
	Host        string        `json:"host"` // its name
	Engine      string        `json:"engine"`
	Reserved    api.Resources `json:"reserved"` // Memory with Overhead, without HugePages
	Overhead    api.Bytes     `json:"overhead"`
	CPUs        []int         `json:"cpus,omitempty"` // dedicated host CPUs
	ImageID     string        `json:"imageID"`
	Digest      string        `json:"digest"`
	CDROMDigest string        `json:"cdromDigest,omitempty"` // content of spec.cdrom
	CDROMID     string        `json:"cdromID,omitempty"`     // image of spec.cdrom
	Ports       []Port        `json:"ports,omitempty"`

	// Derived names the fields of Spec, by pointer, that were left out and follow from others.
	Derived []string `json:"derived,omitempty"`
}

// Port of a server, as admitted.
type Port struct {
	ID        string     `json:"id"` // port id: the server's, with the index: unique
	Network   string     `json:"network"`
	NetworkID string     `json:"networkID"`
	MAC       string     `json:"mac"`
	Address   netip.Addr `json:"address"`
	Bits      int        `json:"bits"` // of the subnet's prefix
}

// Intent is what was asked of the server besides its spec. Each number grows with each request, and the host's status
// says which one it has carried out.
type Intent struct {
	Restart int64 `json:"restart,omitempty"` // asked restarts
	Start   int64 `json:"start,omitempty"`   // asked starts: also of a server that failed, or whose autostart is off
	Force   bool  `json:"force,omitempty"`   // the last stop, restart or delete was to be hard at once
	// Delete is when deletion was asked for; zero: it was not.
	Delete time.Time `json:"delete,omitzero"`
}

// Status is the host's record of a server: what the API shows, and what the host has carried out of the intent.
type Status struct {
	api.ServerStatus
	Restarted int64  `json:"restarted,omitempty"` // Intent.Restart carried out
	StartSeen int64  `json:"startSeen,omitempty"` // Intent.Start carried out
	BootID    string `json:"bootID,omitempty"`    // boot of the host that this was written in
}

// JoinServer makes the resource out of its two records.
func JoinServer(s *Server, st *Status, revision int64) api.Server {
	out := api.Server{Meta: s.Meta, Spec: s.Spec}
	out.Meta.Revision = revision
	if st != nil {
		out.Status = st.ServerStatus
	} else {
		out.Status.Phase = api.PhasePending
	}
	out.Status.Host, out.Status.Engine, out.Status.ImageID, out.Status.Overhead = s.Host, s.Engine, s.ImageID, s.Overhead
	out.Status.Ports = nil
	for _, p := range s.Ports {
		out.Status.Ports = append(out.Status.Ports, api.PortStatus{
			Network: p.Network, MAC: p.MAC, Address: p.Address, Prefix: p.Bits, Name: s.Meta.Name,
		})
	}
	if !s.Intent.Delete.IsZero() {
		out.Status.Phase = api.PhaseDeleting
	}
	return out
}

// UplinkKey is the key of what is committed to a tenant on a host's uplink.
func UplinkKey(hostID, tenantID string) string { return UplinkLedger + hostID + "/" + tenantID }

// NameKey is the key that holds the id of a named resource. Tenant is empty for hosts and tenants.
func NameKey(kind, tenant, name string) string { return Names + kind + "/" + tenant + "/" + name }
