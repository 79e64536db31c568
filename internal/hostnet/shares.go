package hostnet

import "github.com/croftproject/croft/api"

// Shares is how a host's uplink is divided between the tenants that have a network on the host, and between the networks of
// each. All rates hold in each direction by itself. The zero Shares divides nothing.
//
// A committed rate is had whatever the others ask for, as long as the committed rates of the parts of anything are no more
// than its own, and those of the tenants no more than Rate less Reserved: whoever asks for them has seen to that. What is
// spare is shared in proportion to the committed rates, up to the peaks.
type Shares struct {
	// Rate is what the uplink carries; zero: it is not known, and only peaks are kept.
	Rate api.BitRate
	// Reserved is the part of Rate that is kept for the host's own traffic.
	Reserved api.BitRate
	Tenants  []TenantShare
}

// TenantShare is the part of a tenant.
type TenantShare struct {
	ID string
	Profile
	Networks []NetworkShare
}

// NetworkShare is the part of a network.
type NetworkShare struct {
	ID string
	Profile
}

// Profile is a bandwidth profile (MEF 10.3): committed is its CIR, peak its CIR and EIR together, burst its CBS.
type Profile struct {
	Committed api.BitRate
	Peak      api.BitRate // zero: what carries it is the limit
	Burst     api.Bytes   // zero: chosen by the implementation
}

// Divides tells whether anything has a profile, so that there is something to do.
func (s Shares) Divides() bool {
	for _, t := range s.Tenants {
		if t.Profile != (Profile{}) {
			return true
		}
		for _, n := range t.Networks {
			if n.Profile != (Profile{}) {
				return true
			}
		}
	}
	return false
}
