package state

import (
	"time"

	"github.com/croftproject/croft/api"
)

// Ledgers besides the hosts', tenants' and networks': how many servers use an image, as root or in their drives.
const ImageLedger = "ledger/image/"

// How long records that expire live, in seconds.
const (
	EventTTL       = 7 * 24 * 3600
	IdempotencyTTL = 24 * 3600
)

// Network is the control plane's record of a network: Spec is defaulted and valid.
type Network struct {
	Meta api.Meta        `json:"meta"`
	Spec api.NetworkSpec `json:"spec"`
	// Derived names the fields of Spec, by pointer, that were left out and follow from others.
	Derived []string `json:"derived,omitempty"`
}

// NetStatus is a host's record of a network that is on it.
type NetStatus struct {
	HostID     string          `json:"hostID"`
	Conditions []api.Condition `json:"conditions"`
}

// Image is the control plane's record of an image. Status.Users is not stored.
type Image struct {
	Meta   api.Meta        `json:"meta"`
	Spec   api.ImageSpec   `json:"spec"`
	Status api.ImageStatus `json:"status"`
}

// Tenant is the control plane's record of a tenant.
type Tenant struct {
	Meta api.Meta       `json:"meta"`
	Spec api.TenantSpec `json:"spec"`
}

// Host is the control plane's record of a host.
type Host struct {
	Meta     api.Meta      `json:"meta"`
	Spec     api.HostSpec  `json:"spec"`     // defaulted and valid
	Capacity api.Resources `json:"capacity"` // as the daemon found it when it started
	CPUs     []int         `json:"cpus"`     // that can be dedicated
	// UplinkRate is what the uplink carries by what its device tells; zero: it tells nothing.
	UplinkRate api.BitRate `json:"uplinkRate,omitempty"`
}

// Job is the control plane's record of a job. HostID is the host that does it.
type Job struct {
	api.Job
	HostID string `json:"hostID"`
}

// ImageUse is an image's ledger.
type ImageUse struct {
	Users int `json:"users"`
}

// Answer is what an Idempotency-Key was answered with.
type Answer struct {
	Kind    string    `json:"kind"`
	Digest  string    `json:"digest"` // of the request
	Body    []byte    `json:"body"`   // the resource, as it was answered
	Created time.Time `json:"created"`
}

// EventKey is the key of an event.
func EventKey(e *api.Event) string { return Events + e.ID }
