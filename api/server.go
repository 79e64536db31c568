package api

import (
	"net/netip"
	"time"
)

// Model is how a server is virtualized.
type Model string

const (
	ModelFull Model = "full" // a complete virtual machine
	ModelPara Model = "para" // a guest kernel that knows that it is one
	ModelOS   Model = "os"   // the host's own kernel
)

// Models in the order in which they are listed.
var Models = []Model{ModelFull, ModelPara, ModelOS}

// EngineAuto lets the host choose the engine of a model.
const EngineAuto = "auto"

// Server is a virtual server: what a tenant creates.
type Server struct {
	Meta
	Spec   ServerSpec   `json:"spec"`
	Status ServerStatus `json:"status"`
}

// ServerSpec is what the tenant asks for. Specs that differ in Model only describe the same system under another model.
type ServerSpec struct {
	Model  Model      `json:"model" enum:"full,para,os" doc:"How the server is virtualized."`
	Engine string     `json:"engine,omitempty" doc:"Engine that runs it; 'auto' lets the host choose among the model's." default:"auto"`
	Image  string     `json:"image" doc:"Image to make the root disk from: a name of the tenant's or of a shared image, or an id."`
	Host   string     `json:"host,omitempty" doc:"Host to place it on; empty lets Croft choose."`
	State  PowerState `json:"state,omitempty" enum:"running,stopped,paused" default:"running" doc:"State that the server is to be kept in."`

	CPU    CPU     `json:"cpu,omitzero"`
	Memory Memory  `json:"memory,omitzero"`
	PIDs   int64   `json:"pids,omitempty" positive:"true" doc:"Most processes and threads at a time." default:"4096"`
	Disk   Disk    `json:"disk,omitzero" doc:"Root disk."`
	Ports  []Port  `json:"ports,omitempty" doc:"Attachments to networks; at most one today."`
	Grants []Grant `json:"grants,omitempty" doc:"Host resources and privileges handed to the guest; each must be allowed to the tenant by the operator."`

	Firmware Firmware `json:"firmware,omitempty" enum:"bios,uefi" default:"bios" doc:"Firmware of a full server; uefi takes at least 192MiB of memory."`
	Devices  Devices  `json:"devices,omitempty" enum:"virtio,emulated" default:"virtio" doc:"Kind of disk and network devices that a full server sees: virtio, or AHCI and e1000e for systems without virtio drivers."`
	CDROM    string   `json:"cdrom,omitempty" doc:"ISO image in the CD-ROM drive of a full server; boots first where the disk is empty."`

	App   *App   `json:"app,omitempty" doc:"Process of an application server (model os, OCI image); fields left out come from the image."`
	Guest *Guest `json:"guest,omitempty" doc:"First-boot configuration, handed over in cloud-init's NoCloud form."`

	Autostart        Autostart     `json:"autostart,omitzero"`
	Restart          RestartPolicy `json:"restart,omitzero"`
	StopTimeout      Duration      `json:"stopTimeout,omitempty" positive:"true" default:"30s" doc:"How long a graceful stop may take before the guest is stopped hard; at most 1h."`
	DeleteProtection bool          `json:"deleteProtection,omitempty" doc:"Refuse to delete the server while set."`
}

// PowerState is the state that a server is to be kept in.
type PowerState string

const (
	StateRunning PowerState = "running"
	StateStopped PowerState = "stopped"
	StatePaused  PowerState = "paused"
)

// CPU divides the host's processors: what is always given, what is never exceeded, and the share of the rest.
type CPU struct {
	Count       int      `json:"count,omitempty" positive:"true" default:"1" minimum:"1" maximum:"1024" doc:"Virtual CPUs that the guest sees."`
	Entitlement MilliCPU `json:"entitlement,omitempty" positive:"true" doc:"CPU that the server always gets when it asks for it; what admission counts. Default: 100m for each virtual CPU, no more than the cap; with dedicated CPUs all of them."`
	Cap         MilliCPU `json:"cap,omitempty" positive:"true" doc:"CPU that the server never exceeds. Default: count."`
	Weight      int      `json:"weight,omitempty" positive:"true" minimum:"1" maximum:"10000" doc:"Share of what is left once all entitlements are met. Default: in proportion to the entitlement."`
	Dedicated   bool     `json:"dedicated,omitempty" doc:"Whole host CPUs for this server alone, as many as count. Needs the grant dedicated-cpu."`
}

// Memory divides the host's memory.
type Memory struct {
	Limit       Bytes `json:"limit,omitempty" positive:"true" default:"512MiB" doc:"Memory that the guest sees and never exceeds."`
	Reservation Bytes `json:"reservation,omitempty" positive:"true" doc:"Memory that is kept for the server under pressure; what admission counts, with the engine's overhead. Default: limit."`
	HugePages   bool  `json:"hugePages,omitempty" doc:"Back the guest's memory with huge pages. Needs the grant huge-pages."`
}

// Disk is the root disk.
type Disk struct {
	Size      Bytes `json:"size,omitempty" positive:"true" doc:"Size of the disk. Default: 10GiB, or the image's own size where that is larger."`
	ReadIOPS  int64 `json:"readIOPS,omitempty" doc:"Most reads a second; 0 is no limit."`
	WriteIOPS int64 `json:"writeIOPS,omitempty" doc:"Most writes a second; 0 is no limit."`
	ReadRate  Bytes `json:"readRate,omitempty" doc:"Most bytes read a second; 0 is no limit."`
	WriteRate Bytes `json:"writeRate,omitempty" doc:"Most bytes written a second; 0 is no limit."`
}

// Port attaches the server to a network.
type Port struct {
	Network string     `json:"network" doc:"Network of the same tenant."`
	Address netip.Addr `json:"address,omitzero" doc:"Address of the port; chosen from the subnet where left out, and then kept."`
	MAC     string     `json:"mac,omitempty" doc:"MAC address (IEEE 802, aa:bb:cc:dd:ee:ff); made from the server's id where left out, and then kept."`
}

// GrantKind names what a grant hands over.
type GrantKind string

const (
	GrantDirectory    GrantKind = "directory"     // a host directory: bind mount (os), hostfs (uml), 9p (qemu)
	GrantDevice       GrantKind = "device"        // a host device node (os), or a PCI device by VFIO (full)
	GrantDedicatedCPU GrantKind = "dedicated-cpu" // permits cpu.dedicated
	GrantHugePages    GrantKind = "huge-pages"    // permits memory.hugePages
	GrantCapability   GrantKind = "capability"    // a Linux capability (os)
	GrantNesting      GrantKind = "nesting"       // containers within the server (os), nested virtualization (full)
)

// GrantKinds in the order in which they are listed.
var GrantKinds = []GrantKind{GrantDirectory, GrantDevice, GrantDedicatedCPU, GrantHugePages, GrantCapability, GrantNesting}

// Grant is a host resource or privilege handed to a server.
type Grant struct {
	Kind     GrantKind `json:"kind" enum:"directory,device,dedicated-cpu,huge-pages,capability,nesting" doc:"dedicated-cpu and huge-pages are refused here: a server asks for them by cpu.dedicated and memory.hugePages."`
	Source   string    `json:"source,omitempty" doc:"What is granted: the host path of a directory or device, a PCI address, or the capability's name (CAP_NET_RAW)."`
	Target   string    `json:"target,omitempty" doc:"Where the guest sees a directory, or a device below /dev: a path in the guest, or the mount tag of a full server. Default: source."`
	ReadOnly bool      `json:"readOnly,omitempty" doc:"The guest can't write it: of a directory, or a device below /dev."`
}

// Firmware of a full server.
type Firmware string

const (
	FirmwareBIOS Firmware = "bios"
	FirmwareUEFI Firmware = "uefi"
)

// Devices that a full server sees.
type Devices string

const (
	DevicesVirtio   Devices = "virtio"
	DevicesEmulated Devices = "emulated"
)

// App is the process of an application server; a field left out is the OCI image's (OCI image-spec, config).
type App struct {
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Args       []string          `json:"args,omitempty" doc:"Arguments after the entrypoint; the image's Cmd where left out."`
	Env        map[string]string `json:"env,omitempty"`
	User       string            `json:"user,omitempty" doc:"User or user:group, by name or number."`
	WorkingDir string            `json:"workingDir,omitempty"`
}

// Guest is first-boot configuration for images that carry cloud-init (NoCloud datasource).
type Guest struct {
	Hostname string      `json:"hostname,omitempty" doc:"Name that the guest gives itself. Default: the server's name."`
	Users    []GuestUser `json:"users,omitempty"`
	SSHKeys  []string    `json:"sshKeys,omitempty" doc:"Keys of the image's default user (authorized_keys lines)."`
	UserData string      `json:"userData,omitempty" doc:"cloud-init user-data, taken as it is; then hostname is still set, users and sshKeys must be empty."`
}

// GuestUser is a user made at first boot.
type GuestUser struct {
	Name         string   `json:"name"`
	SSHKeys      []string `json:"sshKeys,omitempty"`
	PasswordHash string   `json:"passwordHash,omitempty" doc:"Hash as in crypt(5); never a clear password."`
	Sudo         bool     `json:"sudo,omitempty"`
}

// Autostart says what becomes of the server when its host comes up again.
type Autostart struct {
	Policy AutostartPolicy `json:"policy,omitempty" enum:"last,always,never" default:"last" doc:"last: as spec.state says; always: start it whatever the state was; never: leave it stopped until it is started."`
	Order  int             `json:"order,omitempty" doc:"Lower starts first; equal orders start together." minimum:"-1000" maximum:"1000"`
}

type AutostartPolicy string

const (
	AutostartLast   AutostartPolicy = "last"
	AutostartAlways AutostartPolicy = "always"
	AutostartNever  AutostartPolicy = "never"
)

// RestartPolicy says what happens when the guest ends by itself.
type RestartPolicy struct {
	Policy     RestartKind `json:"policy,omitempty" enum:"never,on-failure,always" default:"on-failure" doc:"on-failure restarts after a crash or non-zero exit, not after the guest powered itself off."`
	MaxRetries int         `json:"maxRetries,omitempty" minimum:"0" maximum:"1000" doc:"Restarts in a row before giving up; 0 is no limit. A run of ten minutes clears the count."`
}

type RestartKind string

const (
	RestartNever     RestartKind = "never"
	RestartOnFailure RestartKind = "on-failure"
	RestartAlways    RestartKind = "always"
)

// Phase is where a server stands.
type Phase string

const (
	PhasePending  Phase = "pending"  // admitted; the host has not begun
	PhaseStarting Phase = "starting" // image, volume and ports are being made, or the guest launched
	PhaseRunning  Phase = "running"
	PhasePaused   Phase = "paused"
	PhaseStopping Phase = "stopping"
	PhaseStopped  Phase = "stopped"
	PhaseBackoff  Phase = "backoff" // ended by itself; will be restarted
	PhaseFailed   Phase = "failed"  // ended or could not start, and will not be tried again
	PhaseDeleting Phase = "deleting"
)

// ServerStatus is what the owning host reports.
type ServerStatus struct {
	Phase       Phase        `json:"phase" enum:"pending,starting,running,paused,stopping,stopped,backoff,failed,deleting" doc:"Where the server stands. pending: its host has not begun; starting: what it needs is being made, or its guest launched; backoff: it ended by itself and will be restarted; failed: it ended or could not start, and is not tried again."`
	Message     string       `json:"message,omitempty" doc:"Why the server is in this phase, for people."`
	Host        string       `json:"host,omitempty"`
	Engine      string       `json:"engine,omitempty" doc:"Engine that was chosen."`
	Accelerator string       `json:"accelerator,omitempty" doc:"kvm or tcg, for engines that use QEMU."`
	ImageID     string       `json:"imageID,omitempty"`
	Ports       []PortStatus `json:"ports,omitempty"`
	Overhead    Bytes        `json:"overhead,omitempty" doc:"Memory that admission counts for the engine, beyond the guest's own."`
	Started     time.Time    `json:"started,omitzero" doc:"When the engine was started last."`
	Ready       time.Time    `json:"ready,omitzero" doc:"When the guest's userspace was first seen since then."`
	Restarts    int          `json:"restarts,omitempty" doc:"Restarts in a row, by the restart policy."`
	NextStart   time.Time    `json:"nextStart,omitzero" doc:"When a server in back-off is started again."`
	Exit        *Exit        `json:"exit,omitempty" doc:"How the guest ended last."`
	Conditions  []Condition  `json:"conditions,omitempty"`
	Observed    int64        `json:"observed,omitempty" doc:"Revision of the spec that this status speaks of."`
}

// PortStatus is a port as it was made.
type PortStatus struct {
	Network string     `json:"network"`
	MAC     string     `json:"mac"`
	Address netip.Addr `json:"address,omitzero"`
	Prefix  int        `json:"prefix,omitempty" doc:"Prefix length of the subnet."`
	Name    string     `json:"name,omitempty" doc:"DNS name in the network."`
}

// Exit is how a guest ended.
type Exit struct {
	Code   int       `json:"code" doc:"Exit code; 128 plus the signal's number where a signal ended it."`
	Reason string    `json:"reason,omitempty" doc:"asked, poweroff, reboot, exited, signal, oom, lost."`
	Time   time.Time `json:"time"`
}

// PowerAction is an act on a server's power.
type PowerAction string

const (
	PowerStart   PowerAction = "start"
	PowerStop    PowerAction = "stop"
	PowerRestart PowerAction = "restart"
	PowerPause   PowerAction = "pause"
	PowerResume  PowerAction = "resume"
)

// Duration is a span of time, written as Go writes it: "30s", "5m".
type Duration time.Duration

func (d Duration) String() string               { return time.Duration(d).String() }
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = Duration(parsed)
	return err
}
