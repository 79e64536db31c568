package daemon

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/croftproject/croft/api"
	"golang.org/x/sys/unix"
)

// facts are what the machine is.
type facts struct {
	CPUs      []int
	Memory    api.Bytes // without huge pages of any size
	HugePages api.Bytes // of 2 MiB, those that engines use
	Kernel    string
	BootID    string
	Booted    time.Time
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
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return f, err
	}
	if f.Memory, err = ordinaryMemory(meminfo); err != nil {
		return f, err
	}
	if pages, err := readWord("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"); err == nil {
		n, _ := strconv.ParseInt(pages, 10, 64) // empty where the kernel has none
		f.HugePages = api.Bytes(n) * 2 * api.MiB
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

// ordinaryMemory is the memory of a machine less all that is set aside as huge pages (proc_meminfo(5)).
func ordinaryMemory(meminfo []byte) (api.Bytes, error) {
	kB := map[string]int64{}
	for lines := bufio.NewScanner(bytes.NewReader(meminfo)); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) == 3 {
			n, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("/proc/meminfo: %q: %w", lines.Text(), err)
			}
			kB[fields[0]] = n
		}
	}
	if kB["MemTotal:"] == 0 {
		return 0, errors.New("/proc/meminfo has no MemTotal")
	}
	return api.Bytes(kB["MemTotal:"]-kB["Hugetlb:"]) * api.KiB, nil
}

// hostName reads the name that the state directory's host has had since its first start, or keeps the one given: a host
// whose hostname(1) changes stays the host that its servers are placed on.
func hostName(path, given, hostname string) (string, error) {
	kept, err := readWord(path)
	if err != nil {
		return "", err
	}
	if kept == "" {
		if given == "" {
			given = label(hostname)
		}
		return given, writeWord(path, given)
	}
	if given != "" && given != kept {
		return "", fmt.Errorf("this state directory is host %q, not %q: leave --host out, or give another --state-dir", kept, given)
	}
	return kept, nil
}

// readWord reads a file of one word. It is empty where there is no file, or nothing in it.
func readWord(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return "", err
	}
	return strings.TrimSpace(string(data)), nil
}

// writeWord writes a file of one word, whole or not at all, also over a loss of power.
func writeWord(path, word string) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(word + "\n")
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// holds says in words what a state directory has of servers; empty: nothing.
func holds(stateDir string) (string, error) {
	var parts []string
	for _, what := range []string{"servers", "volumes"} {
		entries, err := os.ReadDir(filepath.Join(stateDir, what))
		if err != nil && !os.IsNotExist(err) {
			return "", err
		}
		n := 0
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), ".") && e.IsDir() { // else it is the pool's own
				n++
			}
		}
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d directories in %s", n, filepath.Join(stateDir, what)))
		}
	}
	return strings.Join(parts, " and "), nil
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
