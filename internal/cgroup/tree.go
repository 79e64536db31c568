package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/croftproject/croft/api"
)

// leaf is the group below a server's own in which its engine runs.
const leaf = "guest"

// Tree is a daemon's part of the host's groups: a parent group with one group per server. All methods may be called
// concurrently; for one name they wait for each other.
type Tree struct {
	mounts mounts
	layout layout
	parent string
	used   []hierarchy // those in which groups are made

	killTime time.Duration

	whole  sync.RWMutex // held for writing while the parent's limits change
	mu     sync.Mutex
	groups map[string]*group // by name; "" is the parent
}

// group is what a Tree remembers of one.
type group struct {
	mu    sync.Mutex
	have  *Limits      // as last written; nil: not known
	asked api.MilliCPU // the cap of the last Set: have's may be left out within the parent's
}

// New makes the parent group, a path relative to each hierarchy's root, and makes the controllers available in it.
func New(parent string) (*Tree, error) {
	m, err := host()
	if err != nil {
		return nil, err
	}
	return newTree(m, parent)
}

func newTree(m mounts, parent string) (*Tree, error) {
	if !filepath.IsLocal(parent) || parent == "." {
		return nil, fmt.Errorf("cgroup %q: not a relative path below the root", parent)
	}
	t := &Tree{mounts: m, parent: filepath.Clean(parent), killTime: killTime, groups: map[string]*group{}}
	t.layout = layout{hugePage: hugePage(), v2: func(controller string) bool {
		h, ok := m.find(controller)
		return ok && h.unified
	}}
	for _, h := range m.all {
		if h.unified && m.mode == V2 || !h.unified && slices.ContainsFunc(h.controllers, isUsed) {
			t.used = append(t.used, h)
		}
	}
	if err := t.makeParent(); err != nil {
		return nil, fmt.Errorf("make cgroup %s: %w", parent, err)
	}
	memory, ok := m.find("memory")
	t.layout.swap = ok && (exists(memory.dir(t.parent, "memory.memsw.limit_in_bytes")) || exists(memory.dir(t.parent, "memory.swap.max")))
	return t, nil
}

// isUsed tells whether a v1 hierarchy of the controller gets our groups. "devices" does, since runtimes put their guests
// below the server's group in it.
func isUsed(controller string) bool {
	switch controller {
	case "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb":
		return true
	}
	return false
}

// enabled are the v2 controllers that servers' groups need, where the host has them.
var enabled = []string{"cpu", "cpuset", "io", "memory", "pids", "hugetlb"}

func (t *Tree) makeParent() error {
	for _, h := range t.used {
		if err := mkdirAll(h, t.parent); err != nil {
			return err
		}
		if h.unified {
			if err := t.enable(h, enabled); err != nil {
				return err
			}
			continue
		}
		if h.has("memory") {
			// Kernels before 5.11 account for children only where told so.
			if v, err := read(h.dir(t.parent, "memory.use_hierarchy")); err == nil && v == "0" {
				if err := write(h.dir(t.parent, "memory.use_hierarchy"), "1"); err != nil {
					return err
				}
			}
		}
		if err := inherit(h, t.parent); err != nil {
			return err
		}
	}
	return nil
}

// mkdirAll is os.MkdirAll below a root that must be there.
func mkdirAll(h hierarchy, path string) error {
	if _, err := os.Stat(h.root); err != nil {
		return err
	}
	return os.MkdirAll(h.dir(path), 0o755)
}

// enable makes controllers available to the groups below the parent: in cgroup.subtree_control of each group on the way,
// from the root on.
func (t *Tree) enable(h hierarchy, controllers []string) error {
	dir := h.root
	for _, name := range append([]string{""}, strings.Split(t.parent, "/")...) {
		dir = filepath.Join(dir, name)
		have, err := read(filepath.Join(dir, "cgroup.subtree_control"))
		if err != nil {
			return err
		}
		for _, c := range controllers {
			if h.has(c) && !slices.Contains(strings.Fields(have), c) {
				if err := write(filepath.Join(dir, "cgroup.subtree_control"), "+"+c); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// hugePage is the host's default huge page size as in control files' names; empty without huge pages
// (proc_meminfo(5)).
func hugePage() string {
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(meminfo)) {
		var kB int64
		if n, _ := fmt.Sscanf(line, "Hugepagesize: %d kB", &kB); n == 1 {
			if kB >= 1<<20 {
				return number(kB>>20) + "GB"
			}
			return number(kB>>10) + "MB"
		}
	}
	return ""
}

// Path is the group's path relative to each hierarchy's root.
func (t *Tree) Path(name string) string { return filepath.Join(t.parent, name) }

// lock takes a group for one caller.
func (t *Tree) lock(name string) (g *group, unlock func()) {
	t.mu.Lock()
	g = t.groups[name]
	if g == nil {
		g = &group{}
		t.groups[name] = g
	}
	t.mu.Unlock()
	g.mu.Lock()
	return g, g.mu.Unlock
}

// Set makes the group or changes its limits. It writes only what differs from the last Set; where it fails, the next
// writes everything.
func (t *Tree) Set(name string, l Limits) error {
	if err := checkName(name); err != nil {
		return err
	}
	t.whole.RLock()
	defer t.whole.RUnlock()
	return t.set(name, l)
}

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("cgroup %q: not a name", name)
	}
	return nil
}

func (t *Tree) set(name string, l Limits) (err error) {
	g, unlock := t.lock(name)
	defer unlock()
	l.CPUSet = slices.Clone(l.CPUSet)
	l.IO = slices.Clone(l.IO)
	asked, had := l.CPUCap, g.have
	g.have = nil
	defer func() {
		if err != nil {
			err = fmt.Errorf("limit cgroup %s: %w", t.Path(name), err)
		}
	}()
	for _, controller := range t.layout.needs(l) {
		if _, ok := t.mounts.find(controller); !ok {
			return fmt.Errorf("the host has no %s controller", controller)
		}
	}
	if l.CPUCap, err = t.withinParent(name, asked); err != nil {
		return err
	}
	made, err := t.make(name, l)
	if err != nil {
		return err
	}
	switch {
	case made:
		had = &Limits{}
	case had == nil && name == "":
		found, err := t.readParent()
		if err != nil {
			return err
		}
		had = &found
	}
	if err := t.apply(name, had, l); err != nil {
		return err
	}
	if err := t.throttleLeaf(name, l); err != nil {
		return err
	}
	g.have, g.asked = &l, asked
	return nil
}

// make makes the group's directories. It reports whether all of them are new.
func (t *Tree) make(name string, l Limits) (made bool, err error) {
	made = true
	path := t.Path(name)
	for _, h := range t.hierarchies(l) {
		switch err := os.Mkdir(h.dir(path), 0o755); {
		case errors.Is(err, fs.ErrExist):
			made = false
			continue
		case errors.Is(err, fs.ErrNotExist): // the parent was removed, or is not in this hierarchy yet
			if err := mkdirAll(h, path); err != nil {
				return false, err
			}
		case err != nil:
			return false, err
		}
		if err := inherit(h, path); err != nil {
			return false, err
		}
	}
	return made, nil
}

// hierarchies are those that limits need: in hybrid mode, the v2 one only for huge pages.
func (t *Tree) hierarchies(l Limits) []hierarchy {
	h, ok := t.mounts.find("hugetlb")
	if l.HugePages == 0 || !ok || slices.ContainsFunc(t.used, func(u hierarchy) bool { return u.root == h.root }) {
		return t.used
	}
	return append(slices.Clip(t.used), h)
}

// apply writes the step from one set of limits to another. from is nil where the group's limits are not known.
func (t *Tree) apply(name string, from *Limits, to Limits) error {
	var limited []IOLimit
	if from != nil {
		limited = from.IO
	} else {
		var err error
		if limited, err = t.limited(name); err != nil {
			return err
		}
	}
	for _, c := range t.layout.plan(from, limited, to) {
		h, ok := t.mounts.find(c.controller)
		if !ok {
			continue // needed by no limit
		}
		file := h.dir(t.Path(name), c.file)
		if c.controller == "hugetlb" && t.mounts.mode == Hybrid && h.unified {
			if to.HugePages == 0 && !exists(file) {
				continue // never limited
			}
			if err := t.enable(h, []string{"hugetlb"}); err != nil {
				return err
			}
		}
		dirs := []string{h.dir(t.Path(name))}
		if c.controller == "blkio" && name != "" {
			dirs = subtree(dirs[0]) // limits of v1 hold for a group alone
		}
		for _, dir := range dirs {
			if err := write(filepath.Join(dir, c.file), c.value); err != nil {
				return err
			}
		}
	}
	if from != nil && slices.Equal(from.CPUSet, to.CPUSet) {
		return nil
	}
	return t.setCPUs(name, to.CPUSet)
}

// throttleLeaf makes the engine's group where I/O is limited, since in v1 it is not by its parent's limits.
func (t *Tree) throttleLeaf(name string, l Limits) error {
	h, ok := t.mounts.find("blkio")
	if !ok || name == "" || len(l.IO) == 0 {
		return nil
	}
	parent := h.dir(t.Path(name))
	if err := os.Mkdir(filepath.Join(parent, leaf), 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	return inheritThrottle(parent, filepath.Join(parent, leaf))
}

// limited reads which devices have limits in an existing group.
func (t *Tree) limited(name string) ([]IOLimit, error) {
	files := throttleFiles[:]
	h, ok := t.mounts.find("blkio")
	if !ok {
		files = []string{"io.max"}
		if h, ok = t.mounts.find("io"); !ok {
			return nil, nil
		}
	}
	var out []IOLimit
	for _, file := range files {
		text, err := read(h.dir(t.Path(name), file))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(text) {
			var d IOLimit
			if n, _ := fmt.Sscanf(line, "%d:%d", &d.Major, &d.Minor); n == 2 && !slices.Contains(out, d) {
				out = append(out, d)
			}
		}
	}
	return out, nil
}

// setCPUs sets the CPUs that a group may run on; empty is all of its parent's. In v1, a child's set must at all times be
// within its parent's: the group first gets both sets, then those below it get the new one, then it does.
func (t *Tree) setCPUs(name string, cpus []int) error {
	h, ok := t.mounts.find("cpuset")
	if !ok {
		return nil
	}
	dir, list := h.dir(t.Path(name)), cpuList(cpus)
	const file = "cpuset.cpus"
	if h.unified {
		return write(filepath.Join(dir, file), list)
	}
	if list == "" {
		var err error
		if list, err = read(filepath.Join(filepath.Dir(dir), file)); err != nil {
			return err
		}
	}
	have, err := read(filepath.Join(dir, file))
	if err != nil || have == list {
		return err
	}
	if err := write(filepath.Join(dir, file), strings.Trim(have+","+list, ",")); err != nil {
		return err
	}
	if name != "" {
		for _, below := range subtree(dir)[1:] {
			if err := write(filepath.Join(below, file), list); err != nil {
				return err
			}
		}
	}
	return write(filepath.Join(dir, file), list)
}

// subtree lists a group's directories, parents first.
func subtree(dir string) []string {
	var dirs []string
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil // a group that goes meanwhile is no error
	})
	return dirs
}

// List returns the names of all groups below the parent.
func (t *Tree) List() ([]string, error) {
	var names []string
	for _, h := range t.mounts.all {
		entries, err := os.ReadDir(h.dir(t.parent))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Remove removes a group with those below it, from every hierarchy; the empty name is the parent. A group that is not
// there is no error. Groups with live processes are refused: ErrBusy.
func (t *Tree) Remove(ctx context.Context, name string) error {
	if name != "" {
		if err := checkName(name); err != nil {
			return err
		}
	}
	g, unlock := t.lock(name)
	defer unlock()
	g.have = nil
	var errs []error
	for _, h := range t.mounts.all {
		errs = append(errs, removeAll(ctx, h.dir(t.Path(name))))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", t.Path(name), err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.groups[name] == g {
		delete(t.groups, name)
	}
	return nil
}
