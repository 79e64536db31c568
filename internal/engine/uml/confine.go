package uml

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/syscallfilter"
)

// Confinement is a program and all that it and its children may touch of the file system. Everything else is denied.
type Confinement struct {
	Program    string   `json:"program"`
	Args       []string `json:"args"` // Args[0] is the program's name
	Read       []string `json:"read"` // files
	Write      []string `json:"write"`
	ReadBelow  []string `json:"readBelow"` // directories and all below
	WriteBelow []string `json:"writeBelow"`
}

// denied are system calls that UML does not make on its own account. A guest's own system calls are not filtered: UML
// carries them out itself, and with PTRACE_SYSEMU the host never sees them.
var denied = []string{
	"acct", "add_key", "bpf", "chroot", "clock_adjtime", "clock_settime", "delete_module", "fanotify_init", "finit_module",
	"fsconfig", "fsmount", "fsopen", "fspick", "init_module", "io_uring_enter", "io_uring_register", "io_uring_setup", "ioperm",
	"iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "migrate_pages", "mount",
	"mount_setattr", "move_mount", "move_pages", "name_to_handle_at", "nfsservctl", "open_by_handle_at", "open_tree",
	"perf_event_open", "pidfd_getfd", "pivot_root", "process_vm_readv", "process_vm_writev", "quotactl", "reboot",
	"request_key", "setdomainname", "sethostname", "setns", "settimeofday", "swapoff", "swapon", "sysfs", "syslog",
	"umount2", "unshare", "uselib", "userfaultfd", "ustat", "vhangup",
}

// addrNoRandomize is ADDR_NO_RANDOMIZE of personality(2). With a random heap UML maps the gap behind its own image as
// memory that it never uses but describes: 16 bytes of every KiB of up to 1 GiB, taken from the guest.
const addrNoRandomize = 0x0040000

// Confine restricts this process to what its argument, a Confinement as JSON, says, and becomes the program. It returns
// only on error. The process must be unprivileged already. It is the first thing that a guest's process does; the keeper
// starts the program croft for it.
func Confine(args []string) error {
	if len(args) != 1 {
		return errors.New("confine: one argument is expected")
	}
	var c Confinement
	if err := json.Unmarshal([]byte(args[0]), &c); err != nil {
		return fmt.Errorf("confine: %w", err)
	}
	if os.Geteuid() == 0 {
		return errors.New("confine: will not run a guest as root")
	}
	runtime.LockOSThread() // restrictions and personality are a thread's, and this thread executes the program
	if err := restrict(c); err != nil {
		return fmt.Errorf("confine: %w", err)
	}
	loaded, err := preload()
	if err != nil {
		return fmt.Errorf("confine: %w", err)
	}
	return fmt.Errorf("execute %s: %w", c.Program, unix.Exec(c.Program, c.Args, append(os.Environ(), loaded)))
}

func restrict(c Confinement) error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("set limit of core dumps: %w", err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_PERSONALITY, addrNoRandomize, 0, 0); errno != 0 {
		return fmt.Errorf("set personality: %w", errno)
	}
	unix.Umask(0o077)
	// Best effort lets a kernel enforce fewer kinds of access than the library knows. Below version 2 the library would
	// drop all of it, as the first has no rule for moving files between directories. Version 9 would take away the answers
	// of the management console, which go to a socket of the daemon.
	if version, err := ll.LandlockGetABIVersion(); err != nil || version < 2 {
		return fmt.Errorf("the kernel lacks Landlock (5.19 or later, enabled at boot with lsm=landlock,…): version %d, %v", version, err)
	}
	if err := landlock.V8.BestEffort().Restrict(
		landlock.ROFiles(c.Read...).IgnoreIfMissing(),
		landlock.RWFiles(c.Write...).IgnoreIfMissing(),
		landlock.RODirs(c.ReadBelow...).IgnoreIfMissing(),
		landlock.RWDirs(c.WriteBelow...).WithRefer().IgnoreIfMissing(),
	); err != nil {
		return err
	}
	// Threads and stand-ins of the guest's processes are made by clone; the kernel's helpers speak over unix sockets only.
	return syscallfilter.Enter(denied, unix.AF_UNIX)
}
