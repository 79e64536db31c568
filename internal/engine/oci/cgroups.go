package oci

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/engine"
)

// leaf is the group that the guest runs in, below the server's own.
const leaf = "guest"

// hierarchies are the host's mounted control group hierarchies.
type hierarchies struct{ root string }

// mode tells how they are mounted.
func (h hierarchies) mode() Cgroups {
	switch {
	case isCgroup2(h.root):
		return CgroupsV2
	case isCgroup2(h.root + "/unified"):
		return CgroupsHybrid
	}
	return CgroupsV1
}

func isCgroup2(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && int64(st.Type) == unix.CGROUP2_SUPER_MAGIC
}

// mounts are the directories of the hierarchies.
func (h hierarchies) mounts() []string {
	if h.mode() == CgroupsV2 {
		return []string{h.root}
	}
	entries, err := os.ReadDir(h.root)
	if err != nil {
		return nil
	}
	var dirs []string
	for _, e := range entries {
		if e.IsDir() { // links are second names ("cpu" for "cpu,cpuacct")
			dirs = append(dirs, filepath.Join(h.root, e.Name()))
		}
	}
	return dirs
}

// unified is the directory of a group in the v2 hierarchy; empty where there is none.
func (h hierarchies) unified(group string) string {
	switch h.mode() {
	case CgroupsV2:
		return filepath.Join(h.root, group)
	case CgroupsHybrid:
		return filepath.Join(h.root, "unified", group)
	}
	return ""
}

// delegate makes the guest's group in the v2 hierarchy and gives it to the guest's root, as cgroups(7) says under
// "Cgroups delegation". The limits, in the parent, stay the host's.
func (h hierarchies) delegate(m *engine.Machine) error {
	dir := h.unified(guestGroup(m))
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the guest's control group: %w", err)
	}
	for _, name := range []string{"", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} {
		if err := os.Chown(filepath.Join(dir, name), int(m.IDs.Base), int(m.IDs.Base)); err != nil {
			return fmt.Errorf("hand the control group to the guest: %w", err)
		}
	}
	return nil
}

func guestGroup(m *engine.Machine) string { return filepath.Join(m.Cgroup, leaf) }

// kill kills every process in a group and below it, thawing it for that (a frozen process of v1 does not die). It tells
// how many there were.
func (h hierarchies) kill(group string) (killed int) {
	for _, dir := range h.mounts() {
		for _, pid := range processes(filepath.Join(dir, group)) {
			if unix.Kill(pid, unix.SIGKILL) == nil {
				killed++
			}
		}
	}
	h.thaw(group)
	return killed
}

// holds tells whether a process is in a group or below it.
func (h hierarchies) holds(group string, pid int) bool {
	return slices.ContainsFunc(h.mounts(), func(dir string) bool {
		return slices.Contains(processes(filepath.Join(dir, group)), pid)
	})
}

// thaw lets a group run, whatever it was. A group that is not there is no error.
func (h hierarchies) thaw(group string) {
	if h.mode() == CgroupsV2 {
		_ = os.WriteFile(filepath.Join(h.root, group, "cgroup.freeze"), []byte("0"), 0)
		return
	}
	_ = os.WriteFile(filepath.Join(h.root, "freezer", group, "freezer.state"), []byte("THAWED"), 0)
}

// frozen tells whether a group is halted.
func (h hierarchies) frozen(group string) (bool, error) {
	path, want := filepath.Join(h.root, "freezer", group, "freezer.state"), "FROZEN"
	if h.mode() == CgroupsV2 {
		path, want = filepath.Join(h.root, group, "cgroup.freeze"), "1"
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("read freezer: %w", err)
	}
	return strings.TrimSpace(string(data)) == want, nil
}

// oomKills is how many processes of a group were killed for want of memory; zero where it can't be told.
func (h hierarchies) oomKills(group string) int {
	path := filepath.Join(h.root, "memory", group, "memory.oom_control")
	if h.mode() == CgroupsV2 {
		path = filepath.Join(h.root, group, "memory.events")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(data) {
		if name, value, ok := strings.Cut(strings.TrimSpace(string(line)), " "); ok && name == "oom_kill" {
			n, _ := strconv.Atoi(value)
			return n
		}
	}
	return 0
}

// remove takes a group away with what the guest made below it. It is idempotent; a group with processes stays, and is
// an error.
func (h hierarchies) remove(group string) error {
	var failed error
	for _, dir := range h.mounts() {
		if err := removeGroup(filepath.Join(dir, group)); err != nil {
			failed = errors.Join(failed, fmt.Errorf("remove control group: %w", err))
		}
	}
	return failed
}

func removeGroup(dir string) error {
	// Most often it has no children, and is gone already in most hierarchies.
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	entries, rerr := os.ReadDir(dir)
	if rerr != nil {
		return rerr
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeGroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

// processes are those in a group's directory and below it.
func processes(dir string) []int {
	var pids []int
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		for _, field := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}
