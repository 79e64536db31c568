package uml

import (
	_ "embed"
	"fmt"

	"golang.org/x/sys/unix"
)

//go:generate gcc -O2 -Wall -Wextra -Werror -shared -fPIC -nostdlib -fno-builtin -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables -Wl,--hash-style=gnu,-z,noseparate-code,-z,noexecstack,--build-id=none,-soname,croft-xstate.so -s -o xstate/ptrace.so xstate/ptrace.c

// xstate lets the kernel run on processors whose extended state is larger than it knows; see xstate/ptrace.c.
//
//go:embed xstate/ptrace.so
var xstate []byte

// preload opens what xstate is for a program that this process becomes, and returns the variable that has it loaded.
func preload() (string, error) {
	const executable = 0x10 // MFD_EXEC, Linux 6.3 or later: memfd_create(2)
	fd, err := unix.MemfdCreate("croft-xstate", unix.MFD_ALLOW_SEALING|executable)
	if err == unix.EINVAL {
		fd, err = unix.MemfdCreate("croft-xstate", unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return "", fmt.Errorf("make a file in memory: %w", err)
	}
	if n, err := unix.Write(fd, xstate); err != nil || n < len(xstate) {
		return "", fmt.Errorf("write a file in memory: %d bytes of %d: %w", n, len(xstate), err)
	}
	const seals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return "", fmt.Errorf("seal a file in memory: %w", err)
	}
	return fmt.Sprintf("LD_PRELOAD=/proc/self/fd/%d", fd), nil
}
