// Package syscallfilter takes system calls away from a process that turns hostile (seccomp(2)).
//
// A list of names is not enough: a call can be made by another of the processor's ABIs, where it has another number, and
// clone makes namespaces as unshare does. What the list is stacked upon closes these ways.
package syscallfilter

import (
	"fmt"
	"runtime"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf"
	"golang.org/x/sys/unix"
)

// Enter refuses the calls named, in all threads of this process and for good. With EPERM fail the named ones and a clone
// with new namespaces; with ENOSYS clone3, whose arguments are behind a pointer (C libraries fall back to clone); with
// EAFNOSUPPORT a socket of a family other than those given. A call by a foreign ABI ends the process.
func Enter(refused []string, families ...uint32) error {
	guard, err := guard(families)
	if err != nil {
		return fmt.Errorf("make system call filter: %w", err)
	}
	if err := seccomp.SetNoNewPrivs(); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	program := unix.SockFprog{Len: uint16(len(guard)), Filter: &guard[0]}
	const flags = unix.SECCOMP_FILTER_FLAG_TSYNC
	// With TSYNC a thread that can't follow is the result: its id.
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("load system call filter: %w", errno)
	}
	if thread != 0 {
		return fmt.Errorf("load system call filter: thread %d has another", thread)
	}
	err = seccomp.LoadFilter(seccomp.Filter{
		NoNewPrivs: true,
		Flag:       seccomp.FilterFlagTSync,
		Policy: seccomp.Policy{
			DefaultAction: seccomp.ActionAllow,
			Syscalls:      []seccomp.SyscallGroup{{Action: seccomp.ActionErrno, Names: refused}},
		},
	})
	if err != nil {
		return fmt.Errorf("load system call filter: %w", err)
	}
	return nil
}

// Offsets in struct seccomp_data. Of an argument that is an int, or whose upper half holds no flags, the kernel looks at
// the lower half only, and so does the filter.
const (
	offNumber = 0
	offArch   = 4
	offArg0   = 16 // its lower half, on a little-endian machine
)

// newNamespaces are the flags of clone(2) that make them. CLONE_NEWTIME is none of clone's.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// foreignNumbers is where the numbers of x32 begin, an ABI that x86_64 tells by a bit of the number.
const foreignNumbers = 0x40000000

// architectures are the ABIs' identifiers in linux/audit.h.
var architectures = map[string]uint32{
	"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64, "riscv64": unix.AUDIT_ARCH_RISCV64,
}

// guard is the filter below the list of names.
func guard(families []uint32) ([]unix.SockFilter, error) {
	arch, ok := architectures[runtime.GOARCH]
	if !ok {
		return nil, fmt.Errorf("the ABI of %s is not known", runtime.GOARCH)
	}
	kill, allow := result(unix.SECCOMP_RET_KILL_PROCESS), result(unix.SECCOMP_RET_ALLOW)
	p := []unix.SockFilter{
		load(offArch), jump(unix.BPF_JEQ, arch, 1, 0), kill,
		load(offNumber), jump(unix.BPF_JGE, foreignNumbers, 0, 1), kill,
		jump(unix.BPF_JEQ, unix.SYS_CLONE3, 0, 1), failure(unix.ENOSYS),
		jump(unix.BPF_JEQ, unix.SYS_CLONE, 0, 4),
		load(offArg0), jump(unix.BPF_JSET, newNamespaces, 0, 1), failure(unix.EPERM), allow,
		jump(unix.BPF_JEQ, unix.SYS_SOCKET, 1, 0), allow,
		load(offArg0),
	}
	for _, family := range families {
		p = append(p, jump(unix.BPF_JEQ, family, 0, 1), allow)
	}
	return append(p, failure(unix.EAFNOSUPPORT)), nil
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

// jump passes over as many instructions as yes or no says.
func jump(condition uint16, value uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | condition | unix.BPF_K, Jt: yes, Jf: no, K: value}
}

func result(action uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
}

func failure(errno unix.Errno) unix.SockFilter {
	return result(unix.SECCOMP_RET_ERRNO | uint32(errno))
}
