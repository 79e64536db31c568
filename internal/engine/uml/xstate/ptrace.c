// A ptrace(2) for User-Mode Linux on hosts whose processors keep more extended state than UML knows of.
//
// UML reads and writes its processes' floating point registers as the regset NT_X86_XSTATE, in a buffer of a size that was
// right when it was written (2696 bytes up to AVX-512 and PKRU). The host's kernel gives as much of the state as fits, but
// takes it only whole: with AMX (Sapphire Rapids and later) that is 11008 bytes, so every write fails (EFAULT), and init
// dies of it. Here a write that is too short is lengthened by what UML does not know, which is in its initial state: a guest
// has never asked to use it (arch_prctl(2), ARCH_REQ_XCOMP_PERM).
//
// It is loaded into UML by LD_PRELOAD, and built by `go generate` into ptrace.so, which the program carries.

#define NULL ((void *)0)

enum {
	SYS_ptrace = 101,
	PTRACE_PEEKTEXT = 1, PTRACE_PEEKUSER = 3,
	PTRACE_GETREGSET = 0x4204, PTRACE_SETREGSET = 0x4205,
	NT_X86_XSTATE = 0x202,
	MOST = 1 << 16, // bytes of state; the largest there is today is 11008
};

struct iovec {
	void *base;
	unsigned long len;
};

extern int *__errno_location(void);

static long call(long request, long pid, void *addr, void *data)
{
	register void *r10 __asm__("r10") = data;
	long result;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(SYS_ptrace), "D"(request), "S"(pid), "d"(addr), "r"(r10)
			 : "rcx", "r11", "memory");
	return result;
}

// UML's kernel is one thread, and only that traces. Beyond what UML writes the buffer stays as it was: zero.
static char state[MOST] __attribute__((aligned(64)));
static unsigned long whole; // bytes of the host's state; 0: not known yet

static long set(long pid, struct iovec *given)
{
	struct iovec longer = {state, MOST};
	unsigned long i;
	if (whole == 0) {
		if (call(PTRACE_GETREGSET, pid, (void *)NT_X86_XSTATE, &longer) != 0)
			return call(PTRACE_SETREGSET, pid, (void *)NT_X86_XSTATE, given);
		whole = longer.len;
		for (i = 0; i < MOST; i++)
			state[i] = 0;
	}
	if (given->len >= whole)
		return call(PTRACE_SETREGSET, pid, (void *)NT_X86_XSTATE, given);
	for (i = 0; i < given->len / 8; i++)
		((unsigned long *)state)[i] = ((unsigned long *)given->base)[i];
	longer.len = whole;
	return call(PTRACE_SETREGSET, pid, (void *)NT_X86_XSTATE, &longer);
}

long ptrace(long request, long pid, void *addr, void *data)
{
	long peeked = 0, result;
	int peeks = request >= PTRACE_PEEKTEXT && request <= PTRACE_PEEKUSER;
	if (request == PTRACE_SETREGSET && addr == (void *)NT_X86_XSTATE && data != NULL)
		result = set(pid, data);
	else
		result = call(request, pid, addr, peeks ? &peeked : data);
	if (result < 0 && result > -4096) {
		*__errno_location() = (int)-result;
		return -1;
	}
	if (peeks)
		*__errno_location() = 0;
	return peeks ? peeked : result;
}
