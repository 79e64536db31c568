package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// processes are the command lines of all processes, by pid.
func processes() map[int][]string {
	out := map[int][]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		data, readErr := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err == nil && readErr == nil {
			out[pid] = strings.Split(strings.TrimRight(string(data), "\x00"), "\x00")
		}
	}
	return out
}

// find is the process whose arguments contain each of the texts.
func find(texts ...string) (int, []string, error) {
	for pid, args := range processes() {
		if pid == os.Getpid() {
			continue
		}
		line, all := strings.Join(args, "\x00"), true
		for _, t := range texts {
			all = all && strings.Contains(line, t)
		}
		if all {
			return pid, args, nil
		}
	}
	return 0, nil, fmt.Errorf("no process has %q in its command line", texts)
}

// field reads a field in KiB of a file such as /proc/meminfo, in MiB. It is zero where there is no such field.
func field(path, name string) (float64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		value, ok := strings.CutPrefix(lines.Text(), name+":")
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 64)
		return n / 1024, err
	}
	return 0, nil
}

// pss is the proportional set size of a process in MiB: its memory, with what it shares counted in parts (proc(5)).
func pss(pid int) (float64, error) { return field(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss") }

// kernelMemory is what the kernel itself takes for its structures, in MiB.
func kernelMemory() (total float64, err error) {
	for _, name := range []string{"SUnreclaim", "PageTables", "KernelStack", "Percpu"} {
		v, err := field("/proc/meminfo", name)
		if err != nil {
			return 0, err
		}
		total += v
	}
	return total, nil
}
