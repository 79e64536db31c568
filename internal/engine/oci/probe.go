package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/idmap"
	"github.com/croftproject/croft/internal/memfile"
)

// probeIDs is the range that the probe's guest runs with; nothing of it stays.
var probeIDs = engine.IDRange{Base: 1 << 30, Size: 65536}

// probeTime is how long the probe may take in all, on a host that has just booted and does much else.
const probeTime = time.Minute

// Probe runs a guest that does nothing, with everything that a real one has: user namespace, control groups, seccomp,
// mounts. See engine.Engine.
func (e *Engine) Probe(ctx context.Context) engine.Report {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	report := engine.Report{
		Abilities: []string{"exec", "console", "pause", "resize"},
		Grants:    []api.GrantKind{api.GrantDevice, api.GrantDedicatedCPU, api.GrantCapability, api.GrantNesting},
	}
	report.Withhold(api.GrantHugePages, "an os server's memory is the host kernel's to lay out")
	var err error
	if report.Version, err = e.version(ctx); err != nil {
		report.Reason = err.Error()
		return report
	}
	for _, carried := range []*memfile.Kept{&holderProgram, &takerProgram} {
		if _, err := carried.File(); err != nil {
			report.Reason = err.Error()
			return report
		}
	}
	e.sweep(ctx)
	dir, err := os.MkdirTemp(e.runtimeParent(), probePrefix)
	if err != nil {
		report.Reason = fmt.Sprintf("the runtime's directory can't be written: %v", err)
		return report
	}
	defer os.RemoveAll(dir)
	if err := e.tryGuest(ctx, dir); err != nil {
		report.Reason = err.Error()
		return report
	}
	report.Available = true
	if capable(unix.CAP_SYS_RESOURCE) {
		report.Abilities = append(report.Abilities, "grow")
	}
	// The run directory is often a tmpfs, which has no idmapped mounts before Linux 6.3, but holds nothing to grant.
	if err := tryShift(dir, "/", "/var/lib"); err != nil {
		report.Withhold(api.GrantDirectory, fmt.Sprintf("no directory can be mounted with its owners shifted: %v", err))
	} else {
		report.Grants = append(report.Grants, api.GrantDirectory)
	}
	if e.groups.mode() == CgroupsV1 {
		report.Reason = "systemd does not boot here: the host has no cgroup v2 hierarchy (mount -t cgroup2 none /sys/fs/cgroup/unified)"
	}
	return report
}

// capable tells whether this process has a capability. Growing a mounted ext4 takes CAP_SYS_RESOURCE, which root may lack
// within a container.
func capable(number uint) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[number/32].Effective&(1<<(number%32)) != 0
}

// runtimeParent is a directory that is there: the state directory is made where it is missing.
func (e *Engine) runtimeParent() string {
	if e.runtime.root == "" || os.MkdirAll(e.runtime.root, 0o711) != nil {
		return ""
	}
	return filepath.Dir(e.runtime.root)
}

func (e *Engine) version(ctx context.Context) (string, error) {
	binary, err := e.runtime.path()
	if err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", binary, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(strings.Replace(first, " version ", " ", 1)), nil
}

// probeCode is what the probe's guest exits with, so that no other success is taken for it.
const probeCode = 42

func (e *Engine) tryGuest(ctx context.Context, dir string) error {
	// The guest's root user must be able to reach its root.
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	program, err := exitProgram(probeCode)
	if err != nil {
		return err
	}
	m := e.trial(dir)
	b := bundleOf(m)
	for _, path := range []string{m.Root.Path, string(b)} {
		if err := os.Mkdir(path, 0o711); err != nil {
			return err
		}
	}
	// A file system of its own: the directory's may be mounted without the right to execute.
	owner := fmt.Sprintf("mode=755,size=64k,uid=%d,gid=%d", m.IDs.Base, m.IDs.Base)
	if err := unix.Mount("tmpfs", m.Root.Path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, owner); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTime)
		defer cancel()
		e.undoTrial(undo, m)
	}()
	if err := os.WriteFile(filepath.Join(m.Root.Path, "exit"), program, 0o755); err != nil {
		return err
	}
	if err := b.write(Config(m, Facts{Cgroups: e.groups.mode()}), saved{ID: m.ID, PowerOff: offApplication}); err != nil {
		return err
	}
	err = e.runtime.do(ctx, "run", "--bundle", string(b), m.ID)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == probeCode:
		return nil
	case err == nil:
		return errors.New("a trial guest did not run, though the runtime says so")
	}
	if closed := unsearchable(m.Root.Path, m.IDs.Base); closed != "" {
		return fmt.Errorf("guests' users can't enter directory %s: give it mode o+x (%w)", closed, err)
	}
	return fmt.Errorf("a trial guest does not run: %w", err)
}

// probePrefix begins the names of trial guests and their directories.
const probePrefix = "probe-"

// trial describes the trial guest that has a directory.
func (e *Engine) trial(dir string) *engine.Machine {
	return &engine.Machine{
		ID:     filepath.Base(dir),
		Host:   "probe",
		RunDir: dir,
		Spec:   &api.ServerSpec{Model: api.ModelOS},
		Cgroup: filepath.Join(e.cgroup, filepath.Base(dir)),
		IDs:    probeIDs,
		Root:   engine.Root{Path: filepath.Join(dir, "root")},
		App:    &api.App{Entrypoint: []string{"/exit"}},
	}
}

// undoTrial takes away what a trial guest has made. It is idempotent; what can't be taken away is left to the next sweep.
func (e *Engine) undoTrial(ctx context.Context, m *engine.Machine) {
	_ = e.empty(ctx, guestGroup(m))
	_ = e.runtime.remove(ctx, m.ID)
	_ = e.removeGroup(ctx, m.Cgroup)
	_ = e.groups.remove(e.cgroup)
	_ = unix.Unmount(m.Root.Path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	_ = bundleOf(m).remove()
}

// sweep takes away what the trial guests of daemons that were killed have left.
func (e *Engine) sweep(ctx context.Context) {
	parent := e.runtimeParent()
	if parent == "" {
		return // it would be anybody's
	}
	left, _ := filepath.Glob(filepath.Join(parent, probePrefix+"*"))
	for _, dir := range left {
		e.undoTrial(ctx, e.trial(dir))
		_ = os.RemoveAll(dir)
	}
}

// tryShift makes an idmapped mount, as grants of directories need it, of one of the directories. Whether that of a grant
// can be shifted is seen when it is handed over.
func tryShift(dirs ...string) error {
	shift, err := idmap.New(probeIDs.Base, probeIDs.Size)
	if err != nil {
		return err
	}
	defer shift.Close()
	var errs []error
	for _, dir := range dirs {
		tree, err := shift.Clone(dir, 0)
		if err == nil {
			return tree.Close()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
