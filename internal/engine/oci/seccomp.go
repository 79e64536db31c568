package oci

import (
	goruntime "runtime"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// confinement is how far a guest's processes are held.
type confinement int

const (
	application confinement = iota // one process and its children
	system                         // an init, which mounts and starts services
	nesting                        // a system that runs containers itself
)

// newNamespaces are the flags of clone(2) and unshare(2) that make namespaces.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
	unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP

// Families of sockets that reach past the guest's network namespace or into little-tended code (address_families(7)).
const (
	familyALG   = unix.AF_ALG
	familyVsock = unix.AF_VSOCK
)

// seccomp is the guest's system call filter.
func seccomp(c confinement) *specs.LinuxSeccomp {
	filter := &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno,
		Architectures: architectures(),
		Syscalls:      []specs.LinuxSyscall{allow(everyCalls)},
	}
	add := func(calls ...specs.LinuxSyscall) { filter.Syscalls = append(filter.Syscalls, calls...) }

	// Between, and beyond, the refused families: one comparison a rule, as the filter can't say "none of".
	add(allow([]string{"socket"}, arg(0, specs.OpLessThan, familyALG, 0)),
		allow([]string{"socket"}, arg(0, specs.OpEqualTo, familyALG+1, 0)),
		allow([]string{"socket"}, arg(0, specs.OpGreaterThan, familyVsock, 0)))
	for _, persona := range []uint64{0, 0x8, 0x20000, 0x20008, 0xffffffff} { // PER_LINUX, PER_LINUX32, UNAME26, ask
		add(allow([]string{"personality"}, arg(0, specs.OpEqualTo, persona, 0)))
	}

	switch c {
	case application:
		add(allow([]string{"clone"}, arg(0, specs.OpMaskedEqual, newNamespaces, 0)),
			allow([]string{"unshare"}, arg(0, specs.OpMaskedEqual, newNamespaces|unix.CLONE_NEWTIME, 0)))
	case system:
		add(allow(systemCalls),
			allow([]string{"clone"}, arg(0, specs.OpMaskedEqual, unix.CLONE_NEWUSER, 0)),
			allow([]string{"unshare"}, arg(0, specs.OpMaskedEqual, unix.CLONE_NEWUSER, 0)))
	case nesting:
		add(allow(systemCalls), allow(nestingCalls))
		return filter
	}
	// clone3's flags are behind a pointer. With ENOSYS the C library falls back to clone.
	missing := uint(unix.ENOSYS)
	add(specs.LinuxSyscall{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: &missing})
	return filter
}

func allow(names []string, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: names, Action: specs.ActAllow, Args: args}
}

func arg(index uint, op specs.LinuxSeccompOperator, value, two uint64) specs.LinuxSeccompArg {
	return specs.LinuxSeccompArg{Index: index, Op: op, Value: value, ValueTwo: two}
}

// architectures are the host's own, with those whose programs it runs too.
func architectures() []specs.Arch {
	switch goruntime.GOARCH {
	case "amd64":
		return []specs.Arch{specs.ArchX86_64, specs.ArchX86}
	case "arm64":
		return []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
	case "riscv64":
		return []specs.Arch{specs.ArchRISCV64}
	}
	return nil
}
