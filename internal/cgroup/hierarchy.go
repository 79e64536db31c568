package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Mode is how control groups are mounted on a host.
type Mode int

const (
	V1     Mode = iota + 1 // controllers in hierarchies of their own
	Hybrid                 // V1, with a v2 hierarchy beside it
	V2                     // one hierarchy with all controllers
)

func (m Mode) String() string {
	switch m {
	case V1:
		return "v1"
	case Hybrid:
		return "hybrid"
	case V2:
		return "v2"
	}
	return fmt.Sprintf("Mode(%d)", int(m))
}

// ErrNone says that the host has no control groups mounted.
var ErrNone = errors.New("no cgroup hierarchy is mounted")

// hierarchy is one mounted tree of groups.
type hierarchy struct {
	root        string
	controllers []string // v1: mounted with it; v2: available at its root
	unified     bool
}

func (h hierarchy) has(controller string) bool { return slices.Contains(h.controllers, controller) }

// dir is the directory of a group, by its path relative to the hierarchy's root.
func (h hierarchy) dir(path ...string) string {
	return filepath.Join(append([]string{h.root}, path...)...)
}

// host is what is mounted. It is read once: a running host does not change its hierarchies.
var host = sync.OnceValues(func() (mounts, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return mounts{}, err
	}
	m := parseMounts(string(table))
	for i, h := range m.all {
		if !h.unified {
			continue
		}
		names, err := os.ReadFile(h.dir("cgroup.controllers"))
		if err != nil {
			return mounts{}, err
		}
		m.all[i].controllers = strings.Fields(string(names))
	}
	m.mode = m.detect()
	if m.mode == 0 {
		return m, ErrNone
	}
	return m, nil
})

// mounts are the hierarchies of a host.
type mounts struct {
	mode Mode
	all  []hierarchy
}

// parseMounts reads proc_pid_mountinfo(5). The first mount of a hierarchy counts.
func parseMounts(table string) mounts {
	var m mounts
	seen := map[string]bool{}
	for line := range strings.Lines(table) {
		before, after, ok := strings.Cut(line, " - ")
		fields, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(tail) < 3 || seen[fields[2]] {
			continue
		}
		h := hierarchy{root: unescape.Replace(fields[4])}
		switch tail[0] {
		case "cgroup2":
			h.unified = true
		case "cgroup":
			for _, option := range strings.Split(tail[2], ",") {
				if slices.Contains(v1Controllers, option) {
					h.controllers = append(h.controllers, option)
				}
			}
		default:
			continue
		}
		seen[fields[2]] = true
		m.all = append(m.all, h)
	}
	return m
}

// unescape undoes the octal escapes of mountinfo.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

var v1Controllers = []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb",
	"net_cls", "net_prio", "perf_event", "rdma", "misc"}

func (m mounts) detect() Mode {
	var v1, v2 bool
	for _, h := range m.all {
		if h.unified {
			v2 = true
		} else if len(h.controllers) > 0 {
			v1 = true
		}
	}
	switch {
	case v1 && v2:
		return Hybrid
	case v1:
		return V1
	case v2:
		return V2
	}
	return 0
}

// find returns the hierarchy that has a controller; v1 goes before v2, since a controller is only ever in one of them.
func (m mounts) find(controller string) (hierarchy, bool) {
	for _, h := range m.all {
		if h.has(controller) {
			return h, true
		}
	}
	return hierarchy{}, false
}

// unified returns the v2 hierarchy.
func (m mounts) unified() (hierarchy, bool) {
	for _, h := range m.all {
		if h.unified {
			return h, true
		}
	}
	return hierarchy{}, false
}

// Detect tells how control groups are mounted on this host.
func Detect() (Mode, error) {
	m, err := host()
	return m.mode, err
}
