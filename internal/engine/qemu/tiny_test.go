package qemu_test

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// The tiny guests boot in a fraction of a second: they say that they are ready on the serial port, answer each
// character with its other case, and power off at 'q' and at the power button. One is a boot sector, for the PC; the
// other a PVH kernel, for the microvm.
const tinyReady = "CROFT-READY\r\n"

// bootSector is 16-bit code for address 0x7C00. The power button and sleep registers are ICH9's (PMBASE is 0x600, as
// the firmware sets it).
func bootSector() []byte {
	code := []byte{
		0xFA, 0xFC, // cli; cld
		0x31, 0xC0, 0x8E, 0xD8, // xor ax, ax; mov ds, ax
		0xB0, 0xFF, 0xE6, 0xA1, 0xE6, 0x21, // mask all interrupts
		0xBA, 0x02, 0x06, 0xB8, 0x00, 0x01, 0xEF, // PM1_EN: power button
		0xBE, 0x00, 0x7D, // mov si, message
		0xAC, 0x84, 0xC0, 0x74, 0x06, // print: lodsb; test al, al; jz poll
		0xBA, 0xF8, 0x03, 0xEE, 0xEB, 0xF5, // mov dx, 0x3F8; out dx, al; jmp print
		0xBA, 0x00, 0x06, 0xED, 0xF6, 0xC4, 0x01, 0x75, 0x20, // poll: PM1_STS: power button? jnz off
		0xBA, 0xFD, 0x03, 0xEC, 0xA8, 0x01, 0x74, 0x0D, // character? jz wait
		0xBA, 0xF8, 0x03, 0xEC, 0x3C, 'q', 0x74, 0x10, // in al, dx; cmp al, 'q'; je off
		0x34, 0x20, 0xEE, 0xEB, 0xE2, // xor al, 0x20; out dx, al; jmp poll
		0x66, 0xB9, 0x00, 0x00, 0x01, 0x00, 0x67, 0xE2, 0xFD, 0xEB, 0xD7, // wait: mov ecx, 65536; loop; jmp poll
		0xBA, 0x04, 0x06, 0xB8, 0x00, 0x20, 0xEF, 0xF4, 0xEB, 0xF6, // off: PM1_CNT: SLP_EN; hlt; jmp off
	}
	sector := make([]byte, 512)
	copy(sector, code)
	copy(sector[0x100:], tinyReady)
	sector[510], sector[511] = 0x55, 0xAA
	return sector
}

// pvhKernel is an ELF file with the PVH entry point in a note (Xen, docs/misc/pvh.pandoc), of 32-bit code. Power button
// and sleep registers are those of ACPI's generic event device where QEMU's microvm has it (hw/i386/microvm.h).
func pvhKernel() []byte {
	const at, codeAt, messageAt, noteAt, size = 0x100000, 0x400, 0x600, 0x200, 0x4000
	code := []byte{
		0xFA, 0xFC, // cli; cld
		0xBE, 0x00, 0x06, 0x10, 0x00, // mov esi, message
		0xAC, 0x84, 0xC0, 0x74, 0x07, // print: lodsb; test al, al; jz poll
		0x66, 0xBA, 0xF8, 0x03, 0xEE, 0xEB, 0xF4, // mov dx, 0x3F8; out dx, al; jmp print
		0xA1, 0x00, 0x00, 0xA0, 0xFE, 0xA8, 0x02, 0x75, 0x20, // poll: mov eax, [GED]; power down? jnz off
		0x66, 0xBA, 0xFD, 0x03, 0xEC, 0xA8, 0x01, 0x74, 0x0E, // character? jz wait
		0x66, 0xBA, 0xF8, 0x03, 0xEC, 0x3C, 'q', 0x74, 0x0E, // in al, dx; cmp al, 'q'; je off
		0x34, 0x20, 0xEE, 0xEB, 0xE0, // xor al, 0x20; out dx, al; jmp poll
		0xB9, 0x00, 0x00, 0x01, 0x00, 0xE2, 0xFE, 0xEB, 0xD7, // wait: mov ecx, 65536; loop; jmp poll
		0xB0, 0x34, 0xA2, 0x00, 0x02, 0xA0, 0xFE, 0xF4, 0xEB, 0xF6, // off: SLEEP_CTL: S5; hlt; jmp off
	}
	var out bytes.Buffer
	put := func(v any) { _ = binary.Write(&out, binary.LittleEndian, v) } // to memory: can't fail
	header := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Entry: at + codeAt,
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2,
	}
	copy(header.Ident[:], elf.ELFMAG+"\x02\x01\x01")
	put(header)
	put(elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: 7, Vaddr: at, Paddr: at, Filesz: size, Memsz: size, Align: 0x1000})
	put(elf.Prog64{Type: uint32(elf.PT_NOTE), Flags: 4, Off: noteAt, Vaddr: at + noteAt, Paddr: at + noteAt, Filesz: 24, Memsz: 24, Align: 4})
	image := make([]byte, size)
	copy(image, out.Bytes())
	out.Reset()
	put([]uint32{4, 8, 18}) // sizes of name and value; XEN_ELFNOTE_PHYS32_ENTRY
	out.WriteString("Xen\x00")
	put(uint64(at + codeAt))
	copy(image[noteAt:], out.Bytes())
	copy(image[codeAt:], code)
	copy(image[messageAt:], tinyReady)
	return image
}

// writeFile writes a file that everyone may use, as QEMU's user must.
func writeFile(t testing.TB, dir, name string, parts ...[]byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, slices.Concat(parts...), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}
