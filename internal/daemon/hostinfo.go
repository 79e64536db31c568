package daemon

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/croftproject/croft/api"
	"golang.org/x/sys/unix"
)

// facts are what the machine is.
type facts struct {
	CPUs   []int
	Memory api.Bytes
	Kernel string
	BootID string
	Booted time.Time
}

// lookAround finds out what the machine is.
func lookAround() (f facts, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return f, fmt.Errorf("count CPUs: %w", err)
	}
	for cpu := range 1024 {
		if set.IsSet(cpu) {
			f.CPUs = append(f.CPUs, cpu)
		}
	}
	if f.Memory, err = memTotal(); err != nil {
		return f, err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return f, err
	}
	f.Kernel = unix.ByteSliceToString(u.Release[:])
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return f, err
	}
	f.BootID = strings.TrimSpace(string(id))
	var up unix.Sysinfo_t
	if err := unix.Sysinfo(&up); err != nil {
		return f, err
	}
	f.Booted = time.Now().Add(-time.Duration(up.Uptime) * time.Second).Truncate(time.Second)
	return f, nil
}

func memTotal() (api.Bytes, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) == 3 && fields[0] == "MemTotal:" {
			n, err := strconv.ParseInt(fields[1], 10, 64)
			return api.Bytes(n) * api.KiB, err
		}
	}
	return 0, fmt.Errorf("/proc/meminfo has no MemTotal")
}

// hostName reads the name that the state directory's host has had since its first start, or keeps the one given: a host
// whose hostname(1) changes stays the host that its servers are placed on.
func hostName(path, given, hostname string) (string, error) {
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		if given == "" {
			given = label(hostname)
		}
		return given, os.WriteFile(path, []byte(given+"\n"), 0o600)
	}
	if err != nil {
		return "", err
	}
	kept := strings.TrimSpace(string(data))
	if given != "" && given != kept {
		return "", fmt.Errorf("this state directory is host %q, not %q: leave --host out, or give another --state-dir", kept, given)
	}
	return kept, nil
}

// label makes a DNS label (RFC 1035) of a hostname: its first part, in lower case, with what is not allowed as dashes.
func label(hostname string) string {
	first, _, _ := strings.Cut(strings.ToLower(hostname), ".")
	out := strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, first), "-")
	if out == "" || out[0] < 'a' {
		out = "host-" + out
	}
	return strings.TrimRight(out[:min(len(out), 63)], "-")
}
