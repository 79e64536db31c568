package oci

import (
	"math"
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

// seccomp is the guest's system call filter. It names what is refused. The usual list of what is allowed comes to the
// same for the calls that there are, but is eight times as long, and the library that compiles it takes a time that
// grows with the square of the rules: half as long again as all of the rest of a guest's start.
func seccomp(c confinement) *specs.LinuxSeccomp {
	filter := &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Architectures: architectures(),
		Syscalls: []specs.LinuxSyscall{
			refuse(unix.EPERM, hostCalls),
			// The kernel's cryptography, and a way to the host and other guests that knows no network namespace.
			refuse(unix.EAFNOSUPPORT, []string{"socket"}, equal(0, unix.AF_ALG)),
			refuse(unix.EAFNOSUPPORT, []string{"socket"}, equal(0, unix.AF_VSOCK)),
			// Its arguments are behind a pointer; C libraries use socket where this is missing.
			refuse(unix.ENOSYS, []string{"socketcall"}),
		},
	}
	if c == nesting {
		return filter
	}
	add := func(calls ...specs.LinuxSyscall) { filter.Syscalls = append(filter.Syscalls, calls...) }
	add(refuse(unix.EPERM, sharedCalls),
		// As with socketcall: C libraries fall back to clone.
		refuse(unix.ENOSYS, []string{"clone3"}))
	made := []uint64{unix.CLONE_NEWUSER}
	if c == application {
		add(refuse(unix.EPERM, systemCalls))
		made = append(made, unix.CLONE_NEWNS, unix.CLONE_NEWUTS, unix.CLONE_NEWIPC, unix.CLONE_NEWPID,
			unix.CLONE_NEWNET, unix.CLONE_NEWCGROUP)
	}
	for _, flag := range made {
		add(refuse(unix.EPERM, []string{"clone", "unshare"}, masked(0, flag)))
	}
	return filter
}

func refuse(errno unix.Errno, names []string, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
	code := uint(errno)
	return specs.LinuxSyscall{Names: names, Action: specs.ActErrno, ErrnoRet: &code, Args: args}
}

// equal holds where the argument, an int, is the value. The kernel looks at its lower half only, whatever is above.
func equal(index uint, value uint64) specs.LinuxSeccompArg {
	return specs.LinuxSeccompArg{Index: index, Op: specs.OpMaskedEqual, Value: math.MaxUint32, ValueTwo: value}
}

// masked holds where the flag is set in the argument.
func masked(index uint, flag uint64) specs.LinuxSeccompArg {
	return specs.LinuxSeccompArg{Index: index, Op: specs.OpMaskedEqual, Value: flag, ValueTwo: flag}
}

// architectures are the host's own, with those whose programs it runs too. Programs of any other are killed, those of
// x32 for one.
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
