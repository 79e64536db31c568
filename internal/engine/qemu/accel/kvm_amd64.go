package accel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of linux/kvm.h (Documentation/virt/kvm/api.rst), x86-64.
const (
	kvmGetAPIVersion       = 0xAE00
	kvmCreateVM            = 0xAE01
	kvmGetVCPUMmapSize     = 0xAE04
	kvmGetSupportedCPUID   = 0xC008AE05
	kvmCreateVCPU          = 0xAE41
	kvmSetUserMemoryRegion = 0x4020AE46
	kvmSetTSSAddr          = 0xAE47
	kvmRun                 = 0xAE80
	kvmGetRegs             = 0x8090AE81
	kvmSetRegs             = 0x4090AE82
	kvmGetSregs            = 0x8138AE83
	kvmSetSregs            = 0x4138AE84
	kvmSetCPUID2           = 0x4008AE90

	kvmAPIVersion = 12
)

// Why KVM_RUN returned, as far as the probe tells them apart.
const exitIO = 2

var exitNames = map[uint32]string{
	0: "KVM_EXIT_UNKNOWN", 1: "KVM_EXIT_EXCEPTION", 2: "KVM_EXIT_IO", 5: "KVM_EXIT_HLT", 6: "KVM_EXIT_MMIO",
	8: "KVM_EXIT_SHUTDOWN", 9: "KVM_EXIT_FAIL_ENTRY", 10: "KVM_EXIT_INTR", 17: "KVM_EXIT_INTERNAL_ERROR",
}

// Layout of struct kvm_run: bytes from its beginning.
const (
	runImmediateExit = 1
	runExitReason    = 8
	runIODirection   = 32 // 1 is out
	runIOPort        = 34
	runIOData        = 40 // offset of the data in the structure
)

type segment struct {
	base                                                   uint64
	limit                                                  uint32
	selector                                               uint16
	kind, present, dpl, db, s, l, g, avl, unusable, unused uint8
}

type table struct {
	base   uint64
	limit  uint16
	unused [3]uint16
}

type sregs struct {
	cs, ds, es, fs, gs, ss, tr, ldt         segment
	gdt, idt                                table
	cr0, cr2, cr3, cr4, cr8, efer, apicBase uint64
	interrupts                              [4]uint64
}

type regs struct {
	rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags uint64
}

type memoryRegion struct {
	slot, flags               uint32
	address, size, userMemory uint64
}

// The guest: where things lie in its memory, of which two MiB are mapped one to one.
const (
	memorySize = 2 << 20
	pml4       = 0x1000
	pdpt       = 0x2000
	directory  = 0x3000
	codeAt     = 0x8000
	afterSSE   = codeAt + 3

	probePort  = 0x10
	probeValue = 0x42
)

// program is what the guest runs.
var program = []byte{
	0x0F, 0x57, 0xC0, //             xorps xmm0, xmm0
	0xB9, 0x80, 0x84, 0x1E, 0x00, // mov ecx, 2000000
	0xFF, 0xC9, //                   dec ecx
	0x75, 0xFC, //                   jnz to the dec
	0x66, 0x0F, 0x7E, 0xC0, //       movd eax, xmm0
	0x04, probeValue, //             add al, 0x42
	0xE6, probePort, //              out 0x10, al
	0xF4, //                         hlt
}

// vm is a machine with one virtual CPU, for the length of a probe.
type vm struct {
	kvm, machine, cpu int
	memory, run       []byte
}

// runTestGuest runs the program on a virtual CPU, and tells the CPU time that it took. It returns once the program has
// ended, or left early, or used up the limit, whatever KVM does; at the latest after patience.
func runTestGuest(device string, limit time.Duration) (time.Duration, error) {
	v, err := newVM(device)
	if err != nil {
		return 0, err
	}
	var (
		thread = make(chan int, 1)
		ended  = make(chan error, 1)
		expire atomic.Bool
		took   time.Duration
	)
	go func() {
		// The thread that runs the virtual CPU is the one that a signal must reach.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		tid := unix.Gettid()
		before := cpuTime(tid)
		thread <- tid
		err := v.execute(&expire)
		took = cpuTime(tid) - before
		ended <- err
	}()
	tid := <-thread
	begun, before := time.Now(), cpuTime(tid)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case err = <-ended:
			v.close()
			return took, err
		case <-timer.C:
		}
		used := cpuTime(tid) - before
		if used < limit && time.Since(begun) < patience { // the host is busy with other work
			timer.Reset(max(limit-used, 10*time.Millisecond))
			continue
		}
		if err = v.interrupt(tid, &expire, ended); err != nil {
			return used, err // the thread is still in there: its memory must stay
		}
		v.close()
		if used < limit {
			return used, fmt.Errorf("2 million instructions were not done in %v", patience)
		}
		return used, fmt.Errorf("%w (%v)", errSlow, used.Round(time.Millisecond))
	}
}

// cpuTime is the CPU time that a thread of this process has used, its guest's included.
func cpuTime(tid int) time.Duration {
	const perThread, scheduled = 4, 2 // CPUCLOCK_PERTHREAD_MASK, CPUCLOCK_SCHED (linux/posix-timers.h)
	var t unix.Timespec
	if unix.ClockGettime(int32(^tid<<3|perThread|scheduled), &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// interrupt makes KVM_RUN return: immediate_exit catches a thread that is not in it yet, the signal one that is. The
// signal is the one that Go's own scheduler preempts with, so it has a handler that does no harm.
func (v *vm) interrupt(tid int, expire *atomic.Bool, ended <-chan error) error {
	expire.Store(true)
	v.run[runImmediateExit] = 1
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for range 100 {
		_ = unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
		select {
		case <-ended:
			return nil
		case <-again.C:
		}
	}
	return errors.New("KVM_RUN could not be interrupted")
}

// execute runs the virtual CPU to its first exit and judges it.
func (v *vm) execute(expire *atomic.Bool) error {
	for {
		_, err := ioctl(v.cpu, kvmRun, 0)
		if errors.Is(err, unix.EINTR) {
			if expire.Load() {
				return err
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("KVM_RUN: %w", err)
		}
		break
	}
	reason := binary.LittleEndian.Uint32(v.run[runExitReason:])
	if reason != exitIO {
		return v.leftEarly(reason)
	}
	data := binary.LittleEndian.Uint64(v.run[runIOData:])
	port := binary.LittleEndian.Uint16(v.run[runIOPort:])
	if v.run[runIODirection] != 1 || port != probePort || data >= uint64(len(v.run)) || v.run[data] != probeValue {
		return errors.New("the guest computed a wrong result")
	}
	return nil
}

// leftEarly says at which instruction the virtual CPU gave up.
func (v *vm) leftEarly(reason uint32) error {
	where := ""
	var r regs
	if _, err := ioctl(v.cpu, kvmGetRegs, uintptr(unsafe.Pointer(&r))); err == nil {
		switch {
		case r.rip == codeAt:
			where = " at an SSE instruction"
		case r.rip >= afterSSE && r.rip < codeAt+uint64(len(program)):
			where = " after the SSE instruction"
		default:
			where = fmt.Sprintf(" at address %#x", r.rip)
		}
	}
	name := exitNames[reason]
	if name == "" {
		name = "unexpected"
	}
	return fmt.Errorf("KVM_RUN left with exit %d (%s)%s", reason, name, where)
}

// newVM makes the machine with its memory, program and virtual CPU.
func newVM(device string) (*vm, error) {
	v := &vm{kvm: -1, machine: -1, cpu: -1}
	if err := v.create(device); err != nil {
		v.close()
		return nil, err
	}
	if err := v.enterLongMode(); err != nil {
		v.close()
		return nil, err
	}
	return v, nil
}

func (v *vm) create(device string) (err error) {
	if v.kvm, err = unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("%w: open %s: %w", errDevice, device, err)
	}
	version, err := ioctl(v.kvm, kvmGetAPIVersion, 0)
	if err != nil || version != kvmAPIVersion {
		return fmt.Errorf("%w: %s does not speak version %d of the API", errDevice, device, kvmAPIVersion)
	}
	if v.machine, err = ioctl(v.kvm, kvmCreateVM, 0); err != nil {
		return fmt.Errorf("%w: KVM_CREATE_VM: %w", errDevice, err)
	}
	// Intel processors without "unrestricted guest" need three pages that the guest does not use. Others don't mind.
	_, _ = ioctl(v.machine, kvmSetTSSAddr, 0xFFFBD000)
	if v.memory, err = unix.Mmap(-1, 0, memorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return fmt.Errorf("allocate guest memory: %w", err)
	}
	v.fillMemory()
	region := memoryRegion{size: memorySize, userMemory: uint64(uintptr(unsafe.Pointer(&v.memory[0])))}
	if _, err = ioctl(v.machine, kvmSetUserMemoryRegion, uintptr(unsafe.Pointer(&region))); err != nil {
		return fmt.Errorf("KVM_SET_USER_MEMORY_REGION: %w", err)
	}
	if v.cpu, err = ioctl(v.machine, kvmCreateVCPU, 0); err != nil {
		return fmt.Errorf("KVM_CREATE_VCPU: %w", err)
	}
	size, err := ioctl(v.kvm, kvmGetVCPUMmapSize, 0)
	if err != nil {
		return fmt.Errorf("KVM_GET_VCPU_MMAP_SIZE: %w", err)
	}
	if v.run, err = unix.Mmap(v.cpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("map the virtual CPU's state: %w", err)
	}
	return v.copyCPUID()
}

// fillMemory writes the page tables (AMD64 Architecture Programmer's Manual, volume 2, 5.3) and the program.
func (v *vm) fillMemory() {
	const present, writable, large = 1, 2, 1 << 7
	put := binary.LittleEndian.PutUint64
	put(v.memory[pml4:], pdpt|present|writable)
	put(v.memory[pdpt:], directory|present|writable)
	put(v.memory[directory:], present|writable|large)
	copy(v.memory[codeAt:], program)
}

// copyCPUID shows the guest the features that KVM can give it, SSE and long mode among them.
func (v *vm) copyCPUID() error {
	const entries, entrySize = 256, 40
	list := make([]byte, 8+entries*entrySize)
	binary.LittleEndian.PutUint32(list, entries)
	if _, err := ioctl(v.kvm, kvmGetSupportedCPUID, uintptr(unsafe.Pointer(&list[0]))); err != nil {
		return fmt.Errorf("KVM_GET_SUPPORTED_CPUID: %w", err)
	}
	if _, err := ioctl(v.cpu, kvmSetCPUID2, uintptr(unsafe.Pointer(&list[0]))); err != nil {
		return fmt.Errorf("KVM_SET_CPUID2: %w", err)
	}
	return nil
}

// enterLongMode puts the virtual CPU into 64-bit mode with paging and SSE on, at the program's beginning.
func (v *vm) enterLongMode() error {
	const (
		cr0PE, cr0MP, cr0ET, cr0NE, cr0WP, cr0PG = 1 << 0, 1 << 1, 1 << 4, 1 << 5, 1 << 16, 1 << 31
		cr4PAE, cr4OSFXSR, cr4OSXMMEXCPT         = 1 << 5, 1 << 9, 1 << 10
		eferLME, eferLMA                         = 1 << 8, 1 << 10
	)
	var s sregs
	if _, err := ioctl(v.cpu, kvmGetSregs, uintptr(unsafe.Pointer(&s))); err != nil {
		return fmt.Errorf("KVM_GET_SREGS: %w", err)
	}
	s.cr0 = cr0PE | cr0MP | cr0ET | cr0NE | cr0WP | cr0PG
	s.cr3 = pml4
	s.cr4 = cr4PAE | cr4OSFXSR | cr4OSXMMEXCPT
	s.efer = eferLME | eferLMA
	s.cs = segment{limit: 0xFFFFFFFF, selector: 8, kind: 11, present: 1, s: 1, l: 1, g: 1}
	data := segment{limit: 0xFFFFFFFF, selector: 16, kind: 3, present: 1, db: 1, s: 1, g: 1}
	s.ds, s.es, s.fs, s.gs, s.ss = data, data, data, data, data
	// VM entry on Intel wants a busy 64-bit task state segment.
	s.tr = segment{limit: 0x67, selector: 24, kind: 11, present: 1}
	if _, err := ioctl(v.cpu, kvmSetSregs, uintptr(unsafe.Pointer(&s))); err != nil {
		return fmt.Errorf("KVM_SET_SREGS: %w", err)
	}
	r := regs{rip: codeAt, rsp: memorySize - 16, rflags: 2}
	if _, err := ioctl(v.cpu, kvmSetRegs, uintptr(unsafe.Pointer(&r))); err != nil {
		return fmt.Errorf("KVM_SET_REGS: %w", err)
	}
	return nil
}

func (v *vm) close() {
	if v.run != nil {
		_ = unix.Munmap(v.run)
	}
	for _, fd := range []int{v.cpu, v.machine, v.kvm} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	if v.memory != nil {
		_ = unix.Munmap(v.memory)
	}
}

func ioctl(fd int, request, argument uintptr) (int, error) {
	value, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, argument)
	if errno != 0 {
		return 0, errno
	}
	return int(value), nil
}
