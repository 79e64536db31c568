package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Place is a group that processes can be started in.
type Place struct {
	v1 []string // directories in v1 hierarchies
	v2 string   // directory in the v2 hierarchy, or empty
}

// Open returns the group at path, relative to each hierarchy's root. Its parent must exist; the group itself is made
// where it is missing. A hierarchy that counts for nothing on this host (named ones; v2 in hybrid mode) takes part
// only where the parent is in it.
func Open(path string) (*Place, error) {
	m, err := host()
	if err != nil {
		return nil, err
	}
	return open(m, path, os.Mkdir)
}

// Make is Open that makes the path with its parents in every hierarchy. It is for processes that must leave
// the groups that a service manager tracks them by.
func Make(path string) (*Place, error) {
	m, err := host()
	if err != nil {
		return nil, err
	}
	return open(m, path, os.MkdirAll)
}

func open(m mounts, path string, mkdir func(string, os.FileMode) error) (*Place, error) {
	if !filepath.IsLocal(path) {
		return nil, fmt.Errorf("cgroup %q: not a relative path below the root", path)
	}
	p := &Place{}
	for _, h := range m.all {
		dir := h.dir(path)
		switch err := mkdir(dir, 0o755); {
		case errors.Is(err, fs.ErrExist):
		case errors.Is(err, fs.ErrNotExist) && (h.unified && m.mode == Hybrid || !h.unified && len(h.controllers) == 0):
			continue
		case err != nil:
			return nil, fmt.Errorf("make cgroup: %w", err)
		}
		if err := inherit(h, path); err != nil {
			return nil, err
		}
		if h.unified {
			p.v2 = dir
		} else {
			p.v1 = append(p.v1, dir)
		}
	}
	return p, nil
}

// Start forks and executes a program in the group, as syscall.ForkExec does. The program's first instruction
// already runs in it. A nil Place is the caller's own group.
func (p *Place) Start(argv0 string, argv []string, attr *syscall.ProcAttr) (pid int, err error) {
	if p == nil {
		return syscall.ForkExec(argv0, argv, attr)
	}
	if p.v2 != "" {
		if frozen(p.v2) {
			return 0, fmt.Errorf("start %s in cgroup %s: it is frozen", argv0, p.v2)
		}
		fd, err := unix.Open(p.v2, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return 0, &os.PathError{Op: "open cgroup", Path: p.v2, Err: err}
		}
		defer unix.Close(fd)
		sys := syscall.SysProcAttr{}
		if attr.Sys != nil {
			sys = *attr.Sys
		}
		sys.UseCgroupFD, sys.CgroupFD = true, fd
		with := *attr
		with.Sys = &sys
		attr = &with
	}
	if len(p.v1) == 0 {
		return syscall.ForkExec(argv0, argv, attr)
	}
	OnThread(func() {
		if err = p.enter(); err == nil {
			pid, err = syscall.ForkExec(argv0, argv, attr)
		}
	})
	return pid, err
}

// Take moves a process, with all its threads, into the group. What it forked before stays where it is.
func (p *Place) Take(pid int) error {
	dirs := p.v1
	if p.v2 != "" {
		dirs = append(slices.Clip(dirs), p.v2)
	}
	for _, dir := range dirs {
		if err := write(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			return err
		}
	}
	return nil
}

// enter moves the calling thread into the group's v1 directories: what it forks is born there. Moving oneself by
// writing 0 takes no global lock in the kernel, unlike moving another process, which waits for an RCU grace period.
func (p *Place) enter() error {
	for _, dir := range p.v1 {
		// A thread that enters a frozen group would stop there, and with it the whole Go runtime.
		state, err := os.ReadFile(filepath.Join(dir, "freezer.state"))
		if err == nil && strings.TrimSpace(string(state)) != "THAWED" {
			return fmt.Errorf("cgroup %s is frozen", dir)
		}
		if err := write(filepath.Join(dir, "tasks"), "0"); err != nil {
			return err
		}
	}
	return nil
}

// OnThread runs f on an operating system thread that ends with it, so that f may change what belongs to a thread
// (its cgroup, its namespaces). The process's first thread is never used: it can't end, and a change would stay.
func OnThread(f func()) {
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// While this goroutine holds the first thread, the one that OnThread starts can't be on it.
			OnThread(f)
			runtime.UnlockOSThread()
			close(done)
			return
		}
		defer close(done)
		f()
	}()
	<-done
}

// frozen tells whether a v2 group is frozen. A child forked into one stops before it executes its program, and its parent
// would wait for that (vfork(2)).
func frozen(dir string) bool {
	events, err := read(filepath.Join(dir, "cgroup.events"))
	return err == nil && strings.Contains(events, "frozen 1")
}

// write writes a control file; the kernel takes a value in one write.
func write(file, value string) error {
	fd, err := unix.Open(file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: file, Err: err}
	}
	defer unix.Close(fd)
	if value == "" {
		value = "\n" // an empty write never reaches the controller
	}
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return fmt.Errorf("write %q to %s: %w", strings.TrimSpace(value), file, err)
	}
	return nil
}

func read(file string) (string, error) {
	b, err := os.ReadFile(file)
	return strings.TrimSpace(string(b)), err
}

// inherit gives a group in a v1 hierarchy what children there don't get from their parents: a cpuset's CPUs and memory
// nodes (a set that is empty takes no process), and the I/O limits (blk-throttle is flat in v1, see
// Documentation/admin-guide/cgroup-v1/blkio-controller.rst). Groups from the root down are filled.
func inherit(h hierarchy, path string) error {
	if h.unified || !h.has("cpuset") && !h.has("blkio") {
		return nil
	}
	parent := h.root
	for _, name := range strings.Split(filepath.Clean(path), "/") {
		dir := filepath.Join(parent, name)
		if h.has("cpuset") {
			if err := inheritFile(parent, dir, "cpuset.cpus"); err != nil {
				return err
			}
			if err := inheritFile(parent, dir, "cpuset.mems"); err != nil {
				return err
			}
		}
		parent = dir
	}
	if h.has("blkio") && strings.Contains(path, "/") {
		return inheritThrottle(filepath.Dir(h.dir(path)), h.dir(path))
	}
	return nil
}

// inheritFile copies a value from the parent's file to a child that has none.
func inheritFile(parent, dir, file string) error {
	have, err := read(filepath.Join(dir, file))
	if err != nil || have != "" {
		return err
	}
	value, err := read(filepath.Join(parent, file))
	if err != nil {
		return err
	}
	return write(filepath.Join(dir, file), value)
}

// inheritThrottle copies the limits of every device.
func inheritThrottle(parent, dir string) error {
	for _, file := range throttleFiles {
		limits, err := read(filepath.Join(parent, file))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without blk-throttle
		}
		if err != nil {
			return err
		}
		for line := range strings.Lines(limits) {
			if err := write(filepath.Join(dir, file), strings.TrimSpace(line)); err != nil {
				return err
			}
		}
	}
	return nil
}

// throttleFiles are the v1 files of IOLimit's fields, in their order.
var throttleFiles = [...]string{
	"blkio.throttle.read_iops_device", "blkio.throttle.write_iops_device",
	"blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device",
}
