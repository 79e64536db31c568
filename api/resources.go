package api

import (
	"net/netip"
	"time"
)

// Network is a tenant's private network.
type Network struct {
	Meta
	Spec   NetworkSpec   `json:"spec"`
	Status NetworkStatus `json:"status"`
}

type NetworkSpec struct {
	Subnets []Subnet `json:"subnets,omitempty" doc:"Subnets; one IPv4 subnet today. Default: a free /24 of 10.0.0.0/8."`
	NAT     *bool    `json:"nat,omitempty" default:"true" doc:"Give servers a way out: their addresses are translated to the host's on the uplink. Without it they reach each other, and nothing else."`
	MTU     int      `json:"mtu,omitempty" positive:"true" default:"1500" minimum:"576" maximum:"9216"`
	DNS     DNS      `json:"dns,omitzero"`
	// Bandwidth holds on the uplink of each host that has a server in the network.
	Bandwidth Bandwidth `json:"bandwidth,omitzero" doc:"What the network's traffic gets of the uplink of each host that it has a server on."`
}

// Bandwidth is a bandwidth profile (MEF 10.3). It holds in each direction by itself.
type Bandwidth struct {
	Committed BitRate `json:"committed,omitempty" positive:"true" doc:"Rate that is had whatever others ask for (CIR); what admission counts. Default: none."`
	Peak      BitRate `json:"peak,omitempty" positive:"true" doc:"Rate that is never exceeded (CIR and EIR together). Default: what the uplink carries."`
	Burst     Bytes   `json:"burst,omitempty" positive:"true" doc:"Bytes that may pass at once (CBS), 64KiB to 1GiB. Default: what passes in 2 ms, and at least 64KiB."`
}

// Subnet is an IP prefix of a network. The gateway is the router's address in it.
type Subnet struct {
	Prefix  netip.Prefix `json:"prefix" doc:"Prefix without host bits, such as 10.7.0.0/24."`
	Gateway netip.Addr   `json:"gateway,omitzero" doc:"Address of the router. Default: the first address."`
}

// DNS of a network: the router answers for the servers' names and forwards the rest.
type DNS struct {
	Domain     string       `json:"domain,omitempty" doc:"Domain of the servers' names. Default: NETWORK.TENANT.internal."`
	Forwarders []netip.Addr `json:"forwarders,omitempty" doc:"Resolvers for other names. Default: the host's; none where there is no NAT."`
}

type NetworkStatus struct {
	Phase      string      `json:"phase" doc:"active, or deleting."`
	Ports      int         `json:"ports" doc:"Ports of servers in the network."`
	Conditions []Condition `json:"conditions,omitempty"`
}

// Image is what root disks are made from. Its content is kept once, by digest.
type Image struct {
	Meta
	Spec   ImageSpec   `json:"spec"`
	Status ImageStatus `json:"status"`
}

type ImageSpec struct {
	Shared      bool   `json:"shared,omitempty" doc:"Visible to every tenant; only the operator may share."`
	Description string `json:"description,omitempty"`
}

type ImageStatus struct {
	Digest  string  `json:"digest" doc:"sha256 of the content."`
	Size    Bytes   `json:"size" doc:"Space that the content takes in the pool."`
	Models  []Model `json:"models" doc:"Models that the image boots under."`
	Format  string  `json:"format" doc:"What it was made from: build, tree, qcow2, raw, iso, oci."`
	MinDisk Bytes   `json:"minDisk,omitempty" doc:"Least root disk."`
	App     *App    `json:"app,omitempty" doc:"Process of an application image."`
	Source  string  `json:"source,omitempty"`
	Users   int     `json:"users" doc:"Servers made from it."`
}

// Host is a physical server that runs the daemon.
type Host struct {
	Meta
	Spec   HostSpec   `json:"spec"`
	Status HostStatus `json:"status"`
}

type HostSpec struct {
	Unschedulable bool       `json:"unschedulable,omitempty" doc:"Place no new servers here."`
	Reserve       Reserve    `json:"reserve,omitzero" doc:"What guests can't have."`
	Overcommit    Overcommit `json:"overcommit,omitzero"`
	Uplink        string     `json:"uplink,omitempty" doc:"Device that leads out. Default: the one with the default route."`
	UplinkRate    BitRate    `json:"uplinkRate,omitempty" positive:"true" doc:"Rate that the uplink carries in each direction. Default: what the device tells; of one that tells none, no rate can be committed."`
	Committable   int        `json:"committable,omitempty" positive:"true" default:"90" minimum:"1" maximum:"95" doc:"Percent of the uplink's rate that may be committed; the rest is kept for the host's own traffic."`
}

// Reserve is kept for the host itself. Each is more than 0 and less than the host has; 1m and 1B are as good as nothing.
type Reserve struct {
	CPU    MilliCPU `json:"cpu,omitempty" positive:"true" default:"100m"`
	Memory Bytes    `json:"memory,omitempty" positive:"true" default:"512MiB"`
	Disk   Bytes    `json:"disk,omitempty" positive:"true" default:"1GiB"`
}

// Overcommit is how many times over the host's capacity, less the reserve, may be promised. In percent: 100 is once.
type Overcommit struct {
	CPU    int `json:"cpu,omitempty" positive:"true" default:"100" minimum:"1" maximum:"10000" doc:"Percent."`
	Memory int `json:"memory,omitempty" positive:"true" default:"100" minimum:"1" maximum:"1000" doc:"Percent."`
	Disk   int `json:"disk,omitempty" positive:"true" default:"200" minimum:"1" maximum:"10000" doc:"Percent. Volumes are sparse."`
}

type HostStatus struct {
	Phase       string         `json:"phase" doc:"ready, or away."`
	Version     string         `json:"version"`
	Kernel      string         `json:"kernel"`
	Cgroups     string         `json:"cgroups" doc:"v1, hybrid or v2."`
	Capacity    Resources      `json:"capacity" doc:"What the machine has."`
	Allocatable Resources      `json:"allocatable" doc:"What may be promised: capacity less reserve, times overcommit."`
	Allocated   Resources      `json:"allocated" doc:"What is promised."`
	Uplink      UplinkStatus   `json:"uplink,omitzero"`
	Engines     []EngineStatus `json:"engines"`
	Seen        time.Time      `json:"seen"`
	Booted      time.Time      `json:"booted"`
	Conditions  []Condition    `json:"conditions,omitempty"`
}

// UplinkStatus is the device that leads out of a host, and what is promised of it. Rates hold in each direction by itself.
type UplinkStatus struct {
	Device      string  `json:"device,omitempty"`
	Rate        BitRate `json:"rate,omitempty" doc:"What it carries, as declared or as the device tells; none: not known."`
	Committable BitRate `json:"committable,omitempty" doc:"What may be committed."`
	Committed   BitRate `json:"committed,omitempty" doc:"What is committed."`
}

// EngineStatus is what the probe of an engine found on a host.
type EngineStatus struct {
	Name        string          `json:"name"`
	Model       Model           `json:"model"`
	Available   bool            `json:"available"`
	Reason      string          `json:"reason,omitempty" doc:"Why it is not available, or why it runs slower than it could."`
	Version     string          `json:"version,omitempty"`
	Accelerator string          `json:"accelerator,omitempty" doc:"kvm or tcg."`
	Abilities   []string        `json:"abilities,omitempty" doc:"What it can do besides start and stop: exec, console, pause, resize (memory), grow (the disk), vnc."`
	Grants      []GrantKind     `json:"grants,omitempty" doc:"Kinds of grants that it can hand over here."`
	Withheld    []WithheldGrant `json:"withheld,omitempty" doc:"Kinds of grants that it can't hand over here, each with the reason."`
}

// WithheldGrant is a kind of grant that an engine can't hand over on a host.
type WithheldGrant struct {
	Kind   GrantKind `json:"kind"`
	Reason string    `json:"reason"`
}

func (w WithheldGrant) String() string {
	if w.Reason == "" {
		return string(w.Kind)
	}
	return string(w.Kind) + ": " + w.Reason
}

// Resources is an amount of everything that admission counts.
type Resources struct {
	Servers   int      `json:"servers"`
	CPU       MilliCPU `json:"cpu"`
	Memory    Bytes    `json:"memory" doc:"Of a host: without what is set aside as huge pages."`
	HugePages Bytes    `json:"hugePages,omitempty" doc:"Memory in huge pages of 2 MiB. It is neither reserved nor overcommitted, and counts as memory against quotas."`
	Disk      Bytes    `json:"disk"`
}

// Tenant is a customer. Tenants form a tree.
type Tenant struct {
	Meta
	Spec   TenantSpec   `json:"spec"`
	Status TenantStatus `json:"status"`
}

type TenantSpec struct {
	Parent string         `json:"parent,omitempty" doc:"Tenant whose quota this one's use counts against too."`
	Quota  Quota          `json:"quota,omitzero"`
	Grants []AllowedGrant `json:"grants,omitempty" doc:"Grants that the tenant's servers may ask for."`
	// Bandwidth holds on the uplink of each host that has a server of the tenant.
	Bandwidth Bandwidth `json:"bandwidth,omitzero" doc:"What all the tenant's networks together get of the uplink of each host that it has a server on."`
}

// Quota limits what a tenant may have; a field left out is no limit.
type Quota struct {
	Servers  *int      `json:"servers,omitempty" minimum:"0"`
	CPU      *MilliCPU `json:"cpu,omitempty" doc:"Sum of entitlements."`
	Memory   *Bytes    `json:"memory,omitempty" doc:"Sum of reservations."`
	Disk     *Bytes    `json:"disk,omitempty"`
	Networks *int      `json:"networks,omitempty" minimum:"0"`
	Images   *int      `json:"images,omitempty" minimum:"0"`
	// Bandwidth is what the tenant may promise its networks.
	Bandwidth *BitRate `json:"bandwidth,omitempty" doc:"Sum of the committed rates of networks."`
}

// AllowedGrant permits servers of a tenant to ask for grants of a kind.
type AllowedGrant struct {
	Kind   GrantKind `json:"kind" enum:"directory,device,dedicated-cpu,huge-pages,capability,nesting"`
	Source string    `json:"source,omitempty" doc:"Only this source: a path (and what lies below it, for directories), device or capability. Empty allows none for directory, device and capability."`
}

type TenantStatus struct {
	Used      Resources `json:"used"`
	Networks  int       `json:"networks"`
	Images    int       `json:"images"`
	Bandwidth BitRate   `json:"bandwidth,omitempty" doc:"Sum of the committed rates of networks."`
}

// Event tells what happened to a resource, and why.
type Event struct {
	ID       string    `json:"id"`
	Time     time.Time `json:"time"`
	Tenant   string    `json:"tenant,omitempty"`
	Kind     string    `json:"kind" doc:"Kind of resource: server, network, image, host, tenant."`
	Name     string    `json:"name"`
	ObjectID string    `json:"objectID"`
	Reason   string    `json:"reason" doc:"Stable CamelCase word: Created, Started, Exited, …"`
	Message  string    `json:"message,omitempty"`
	Actor    string    `json:"actor,omitempty" doc:"Who asked; empty where the host acted by itself."`
	Warning  bool      `json:"warning,omitempty"`
}

// Job is work done once: an image import or build.
type Job struct {
	Meta
	Spec   JobSpec   `json:"spec"`
	Status JobStatus `json:"status"`
}

type JobSpec struct {
	Kind   string `json:"kind" enum:"image-import,image-build"`
	Object string `json:"object" doc:"Name of the resource that the job makes."`
	Source string `json:"source,omitempty" doc:"What it is made from."`
}

type JobStatus struct {
	Phase    JobPhase  `json:"phase" enum:"running,done,failed"`
	Step     string    `json:"step,omitempty"`
	Progress int       `json:"progress" doc:"Percent."`
	Error    string    `json:"error,omitempty"`
	Code     Code      `json:"code,omitempty"`
	Finished time.Time `json:"finished,omitzero"`
}

type JobPhase string

const (
	JobRunning JobPhase = "running"
	JobDone    JobPhase = "done"
	JobFailed  JobPhase = "failed"
)

// Usage is what a server uses now, read from its cgroup when asked.
type Usage struct {
	Server  string   `json:"server"`
	Tenant  string   `json:"tenant"`
	CPUTime Duration `json:"cpuTime" doc:"CPU time used since the server was started."`
	CPU     MilliCPU `json:"cpu" doc:"CPU used over the last sample."`
	Memory  Bytes    `json:"memory"`
	PIDs    int64    `json:"pids"`
	Read    Bytes    `json:"read"`
	Written Bytes    `json:"written"`
	RxBytes Bytes    `json:"rxBytes"`
	TxBytes Bytes    `json:"txBytes"`
}
