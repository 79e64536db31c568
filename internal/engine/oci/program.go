package oci

import (
	"encoding/binary"
	"fmt"
	goruntime "runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// exitProgram is a program that exits with code.
func exitProgram(code byte) ([]byte, error) {
	switch goruntime.GOARCH {
	case "amd64":
		return program([]byte{
			0xbf, code, 0, 0, 0, // mov edi, code
			0xb8, 60, 0, 0, 0, // mov eax, SYS_exit
			0x0f, 0x05, // syscall
		})
	case "arm64":
		return program(words(
			0xd2800000|uint32(code)<<5, // mov x0, code
			0xd2800ba8,                 // mov x8, SYS_exit
			0xd4000001,                 // svc 0
		))
	}
	return program(nil)
}

// namespacesProgram is a program that enters a user namespace of its own and stops (SIGSTOP), for who traces it; when it
// goes on, it enters a network namespace, which that user namespace owns, and stops again. Where the kernel refuses, it
// exits with the number of the error.
func namespacesProgram() ([]byte, error) {
	switch goruntime.GOARCH {
	case "amd64":
		const size = 37 // of one of the two parts
		enter := func(flag uint32, toEnd byte) []byte {
			return []byte{
				0xbf, byte(flag), byte(flag >> 8), byte(flag >> 16), byte(flag >> 24), // mov edi, flag
				0xb8, 0x10, 0x01, 0, 0, // mov eax, SYS_unshare
				0x0f, 0x05, // syscall
				0x85, 0xc0, // test eax, eax
				0x75, toEnd, // jne to the end
				0xb8, 39, 0, 0, 0, // mov eax, SYS_getpid
				0x0f, 0x05, // syscall
				0x89, 0xc7, // mov edi, eax
				0xbe, 19, 0, 0, 0, // mov esi, SIGSTOP
				0xb8, 62, 0, 0, 0, // mov eax, SYS_kill
				0x0f, 0x05, // syscall
			}
		}
		const jump = 16 // where its jump ends
		end := []byte{
			0xf7, 0xd8, // neg eax
			0x89, 0xc7, // mov edi, eax
			0xb8, 60, 0, 0, 0, // mov eax, SYS_exit
			0x0f, 0x05, // syscall
		}
		return program(slices.Concat(enter(unix.CLONE_NEWUSER, 2*size-jump), enter(unix.CLONE_NEWNET, size-jump), end))
	case "arm64":
		const size = 9 // instructions
		enter := func(flag, toEnd uint32) []byte {
			return words(
				0xd2a00000|flag>>16<<5, // mov x0, flag
				0xd2800c28,             // mov x8, SYS_unshare
				0xd4000001,             // svc 0
				0xb5000000|toEnd<<5,    // cbnz x0, to the end
				0xd2801588,             // mov x8, SYS_getpid
				0xd4000001,             // svc 0
				0xd2800261,             // mov x1, SIGSTOP
				0xd2801028,             // mov x8, SYS_kill
				0xd4000001,             // svc 0
			)
		}
		const jump = 3 // where its jump is
		end := words(
			0xcb0003e0, // neg x0, x0
			0xd2800ba8, // mov x8, SYS_exit
			0xd4000001, // svc 0
		)
		return program(slices.Concat(enter(unix.CLONE_NEWUSER, 2*size-jump), enter(unix.CLONE_NEWNET, size-jump), end))
	}
	return program(nil)
}

// words lays out instructions of four bytes.
func words(of ...uint32) []byte {
	var text []byte
	for _, w := range of {
		text = binary.LittleEndian.AppendUint32(text, w)
	}
	return text
}

// program makes a static program of instructions, as small as an ELF file can be (elf(5)): the file header, one program
// header, and the instructions.
func program(text []byte) ([]byte, error) {
	machines := map[string]uint16{"amd64": 62, "arm64": 183} // EM_X86_64, EM_AARCH64
	machine, ok := machines[goruntime.GOARCH]
	if !ok {
		return nil, fmt.Errorf("no program is known for %s", goruntime.GOARCH)
	}
	const base, head, segment = 0x400000, 64, 56
	le := binary.LittleEndian
	file := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...) // 64 bit, little endian, version 1
	file = le.AppendUint16(file, 2)                                   // ET_EXEC
	file = le.AppendUint16(file, machine)
	file = le.AppendUint32(file, 1)                 // version
	file = le.AppendUint64(file, base+head+segment) // entry
	file = le.AppendUint64(file, head)              // program headers' offset
	file = le.AppendUint64(file, 0)                 // no sections
	file = le.AppendUint32(file, 0)                 // flags
	for _, n := range []uint16{head, segment, 1, 0, 0, 0} {
		file = le.AppendUint16(file, n)
	}
	size := uint64(head + segment + len(text))
	file = le.AppendUint32(file, 1) // PT_LOAD
	file = le.AppendUint32(file, 5) // readable, executable
	for _, n := range []uint64{0, base, base, size, size, 0x1000} {
		file = le.AppendUint64(file, n)
	}
	return append(file, text...), nil
}
