package uml

import (
	_ "embed"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/memfile"
)

//go:generate gcc -O2 -Wall -Wextra -Werror -shared -fPIC -nostdlib -fno-builtin -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables -Wl,--hash-style=gnu,-z,noseparate-code,-z,noexecstack,--build-id=none,-soname,croft-xstate.so -s -o xstate/ptrace.so xstate/ptrace.c

// xstate lets the kernel run on processors whose extended state is larger than it knows; see xstate/ptrace.c.
//
//go:embed xstate/ptrace.so
var xstate []byte

// preload opens what xstate is for a program that this process becomes, and returns the variable that has it loaded.
func preload() (string, error) {
	f, err := memfile.New("croft-xstate", xstate)
	if err != nil {
		return "", err
	}
	defer f.Close()
	// The program that is executed next keeps it: not the descriptor that Go would close behind our back.
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD, 0)
	if err != nil {
		return "", fmt.Errorf("keep a file in memory: %w", err)
	}
	return fmt.Sprintf("LD_PRELOAD=/proc/self/fd/%d", fd), nil
}
