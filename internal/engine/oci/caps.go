package oci

import (
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Capabilities (capabilities(7)), without the prefix. All of them hold within the guest's user namespace only.

// systemCaps are those that an init and what it starts need. Left out is what has no effect outside the host's user
// namespace or reaches for the host: SYS_MODULE, SYS_RAWIO, SYS_TIME, SYSLOG, MAC_ADMIN, MAC_OVERRIDE, BPF, PERFMON,
// WAKE_ALARM, BLOCK_SUSPEND, AUDIT_READ, MKNOD.
var systemCaps = strings.Fields(`
	CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP SETFCAP LINUX_IMMUTABLE
	NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
	SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TTY_CONFIG LEASE AUDIT_WRITE AUDIT_CONTROL`)

// applicationCaps are the usual ones of OCI runtimes.
var applicationCaps = strings.Fields(`
	CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL
	AUDIT_WRITE`)

// grantableCaps can be granted beyond these: they do something within a user namespace.
var grantableCaps = strings.Fields(`MKNOD CHECKPOINT_RESTORE`)

// uselessCaps have no effect in a user namespace other than the host's, so a grant of one would be a promise not kept.
var uselessCaps = strings.Fields(`
	SYS_MODULE SYS_RAWIO SYS_TIME SYSLOG MAC_ADMIN MAC_OVERRIDE BPF PERFMON WAKE_ALARM BLOCK_SUSPEND AUDIT_READ`)

// capName strips the prefix of a capability's name: "CAP_NET_RAW" and "net_raw" are NET_RAW.
func capName(name string) string { return strings.TrimPrefix(strings.ToUpper(name), "CAP_") }

// capabilities are the sets of a process that may have these. The inheritable set stays empty, so that a process of
// another user gains nothing from files' inheritable sets; nothing is ambient.
func capabilities(names []string) *specs.LinuxCapabilities {
	full := make([]string, 0, len(names))
	for _, name := range names {
		full = append(full, "CAP_"+name)
	}
	slices.Sort(full)
	full = slices.Compact(full)
	return &specs.LinuxCapabilities{Bounding: full, Effective: full, Permitted: full}
}
