package oci

import "strings"

// System calls that guests may not make, by why (syscalls(2)). Names that an architecture does not have are passed over
// by the runtime.

// hostCalls act on the host as a whole, or their checks have failed before: modules, other kernels, clocks, swap,
// hardware, and what has no namespaces (keys, BPF, performance counters) or much unseasoned code (io_uring,
// userfaultfd). Then what no program of today needs.
var hostCalls = strings.Fields(`
	create_module delete_module finit_module init_module get_kernel_syms query_module
	kexec_load kexec_file_load
	clock_settime clock_settime64 settimeofday stime
	swapon swapoff
	iopl ioperm pciconfig_iobase pciconfig_read pciconfig_write
	perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register
	migrate_pages move_pages lookup_dcookie memfd_secret
	_sysctl afs_syscall bdflush getpmsg mpx nfsservctl putpmsg security sysfs tuxcall uselib ustat vserver vm86 vm86old`)

// sharedCalls act on what all guests and the host share, unless the kernel sees to it; container managers need them.
var sharedCalls = strings.Fields(`bpf add_key keyctl request_key`)

// systemCalls are for an init: mounts, existing namespaces, host name, power. Applications have no use for them.
var systemCalls = strings.Fields(`
	mount mount_setattr move_mount open_tree open_tree_attr fsconfig fsmount fsopen fspick pivot_root umount umount2
	setns sethostname setdomainname reboot quotactl quotactl_fd fanotify_init open_by_handle_at acct syslog`)
