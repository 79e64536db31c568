package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"

	"github.com/croftproject/croft/internal/syscallfilter"
)

const limitVariable = "CROFT_SANDBOX_FILE_LIMIT"

// hostDirs are what programs need of the host, to be started in the sandbox.
var hostDirs = []string{"/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache"}

// Enter confines the calling process, which Run started. It is called before anything of the input is read.
func Enter() error {
	limit, err := strconv.ParseUint(os.Getenv(limitVariable), 10, 63)
	if err != nil {
		return fmt.Errorf("not started as a sandbox: %w", err)
	}
	// The parent closes the input once this process is in its control group.
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return fmt.Errorf("wait for limits: %w", err)
	}
	if err := enterRoot(); err != nil {
		return fmt.Errorf("enter sandbox: %w", err)
	}
	if err := limitResources(limit); err != nil {
		return fmt.Errorf("limit sandbox: %w", err)
	}
	// Best effort: an older kernel lacks some rights to restrict, and the root directory holds nothing else anyway.
	err = landlock.V5.BestEffort().RestrictPaths(
		landlock.RODirs("/usr", "/bin", "/lib", "/lib64").IgnoreIfMissing(),
		landlock.ROFiles("/etc/ld.so.cache").IgnoreIfMissing(),
		landlock.RWDirs(Work).WithRefer(),
	)
	if err != nil {
		return fmt.Errorf("restrict sandbox: %w", err)
	}
	if err := dropCapabilities(); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return filterCalls()
}

// enterRoot makes a root directory of the work directory and the host's programs, and leaves the old one behind.
func enterRoot() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	const root = "/tmp"
	if err := unix.Mount("sandbox", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=1m,mode=755"); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	for _, path := range hostDirs {
		if err := showHost(root, path); err != nil {
			return err
		}
	}
	for _, dir := range []string{Work, "/old"} {
		if err := os.MkdirAll(root+dir, 0o755); err != nil {
			return err
		}
	}
	if err := showThreads(root, root+"/old"); err != nil {
		return err
	}
	if err := unix.MoveMount(treeFD, "", unix.AT_FDCWD, root+Work, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach work directory: %w", err)
	}
	for _, fd := range []int{treeFD, programFD} {
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	if err := unix.PivotRoot(root, root+"/old"); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := os.Chdir(Work); err != nil {
		return err
	}
	if err := unix.Unmount("/old", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount old root: %w", err)
	}
	return os.Remove("/old")
}

// showHost makes a path of the host visible, read-only. Of a symbolic link, as /bin is on a merged /usr, it makes a copy.
func showHost(root, path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	target := root + path
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	switch {
	case st.Mode()&os.ModeSymlink != 0:
		link, err := os.Readlink(path)
		if err != nil {
			return err
		}
		return os.Symlink(link, target)
	case st.IsDir():
		err = os.Mkdir(target, 0o755)
	default:
		err = os.WriteFile(target, nil, 0o644)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(path, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("show %s: %w", path, err)
	}
	err = unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV,
	})
	if err != nil {
		return fmt.Errorf("make %s read-only: %w", path, err)
	}
	return nil
}

// addressSpace is enough for the program and its decompressors, and keeps a bomb from taking the host's memory.
const addressSpace = 4 << 30

func limitResources(fileSize uint64) error {
	limits := map[int]uint64{
		unix.RLIMIT_FSIZE: fileSize, unix.RLIMIT_AS: addressSpace, unix.RLIMIT_NOFILE: 256, unix.RLIMIT_CORE: 0,
		unix.RLIMIT_NPROC: mostTasks,
	}
	for resource, value := range limits {
		var old unix.Rlimit
		if err := unix.Getrlimit(resource, &old); err != nil {
			return err
		}
		value = min(value, old.Max)
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: value, Max: value}); err != nil {
			return err
		}
	}
	return nil
}

// keptCapabilities are what unpacking a root tree takes: giving files away, and their modes.
const keptCapabilities = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID

func dropCapabilities() error {
	for capability := uintptr(0); capability <= unix.CAP_LAST_CAP; capability++ {
		if keptCapabilities&(1<<capability) != 0 {
			continue
		}
		// EINVAL: a capability that this kernel doesn't know.
		if _, _, errno := psx.Syscall3(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, capability, 0); errno != 0 && errno != unix.EINVAL {
			return errno
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: keptCapabilities, Permitted: keptCapabilities}}
	_, _, errno := psx.Syscall3(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// refused are the calls that unpacking never needs, and that holes in kernels were found behind.
var refused = []string{
	"acct", "add_key", "bpf", "chroot", "clock_adjtime", "clock_settime", "delete_module", "fanotify_init", "finit_module",
	"fsconfig", "fsmount", "fsopen", "fspick", "init_module", "io_uring_enter", "io_uring_register", "io_uring_setup",
	"kcmp", "kexec_file_load", "kexec_load", "keyctl", "mount", "mount_setattr", "move_mount", "name_to_handle_at",
	"open_by_handle_at", "open_tree", "perf_event_open", "personality", "pidfd_getfd", "pivot_root", "process_vm_readv",
	"process_vm_writev", "ptrace", "quotactl", "reboot", "request_key", "setdomainname", "sethostname", "setns", "socket",
	"socketpair", "swapoff", "swapon", "umount2", "unshare", "userfaultfd", "vmsplice",
}

func filterCalls() error {
	return syscallfilter.Enter(refused)
}
