package uml

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
)

const (
	probeLimit = time.Minute
	probeUser  = 65534 // nobody: the probe's process owns nothing
	probeMem   = minMemory
)

// Probe boots the kernel, confined as a guest is, until it has passed its own checks (that it can trace its processes'
// system calls, and execute from its memory file) and runs; then it is killed.
func (e *Engine) Probe(ctx context.Context) engine.Report {
	version, err := e.probe(ctx)
	if err != nil {
		return engine.Report{Reason: err.Error()}
	}
	report := engine.Report{
		Available: true,
		Version:   version,
		Abilities: []string{"console", "pause", "resize"},
		Grants:    []api.GrantKind{api.GrantDirectory, api.GrantDedicatedCPU},
	}
	report.Withhold(api.GrantDevice, "uml has no devices of the host's")
	report.Withhold(api.GrantHugePages, "uml backs a guest's memory by a file")
	report.Withhold(api.GrantCapability, "the guest has a kernel of its own")
	report.Withhold(api.GrantNesting, "uml has no virtualization to hand on")
	return report
}

func (e *Engine) probe(ctx context.Context) (version string, err error) {
	if _, err := os.Stat(e.Kernel); errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s is missing: install the package user-mode-linux", e.Kernel)
	}
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	// What a daemon that was killed in a probe left is removed by the next one.
	dir := filepath.Join(e.RunDir, "uml-probe")
	memory := dir + "-memory"
	remove := func() error {
		killProcesses("uml_dir=" + dir)
		return errors.Join(unmountMemory(memory), os.RemoveAll(dir))
	}
	if err := remove(); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, remove()) }()
	if err := mountMemory(memory, probeMem, probeUser); err != nil {
		return "", err
	}
	if err := errors.Join(os.Chmod(dir, 0o711), os.Lchown(dir, probeUser, probeUser)); err != nil {
		return "", err
	}
	c := e.base(e.Kernel, memory, []string{fmt.Sprintf("mem=%dK", probeMem/api.KiB), "uml_dir=" + dir, "umid=" + umid, "con=none", "con0=null,fd:1", "ssl=none", "noreboot"})
	c.WriteBelow = append(c.WriteBelow, dir)
	limits, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	if err := e.trial(ctx, dir, memory, string(limits)); err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, e.Kernel, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", e.Kernel, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// killProcesses kills those that have an argument: the kernel's stand-ins for processes, which have its arguments, don't
// all end with it.
func killProcesses(argument string) {
	list, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range list {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		fd, err := unix.PidfdOpen(pid, 0) // first: what is read is about this process
		if err != nil {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if slices.Contains(strings.Split(string(cmdline), "\x00"), argument) {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		_ = unix.Close(fd)
	}
}

// trial runs the kernel until it has made its pid file below dir, and kills it with its helpers. It ends with the daemon.
func (e *Engine) trial(ctx context.Context, dir, memory, limits string) error {
	log, err := os.Create(filepath.Join(e.RunDir, "uml-probe.log"))
	if err != nil {
		return err
	}
	defer os.Remove(log.Name())
	defer log.Close()
	cmd := exec.Command(e.Confine[0], append(e.Confine[1:len(e.Confine):len(e.Confine)], limits)...)
	cmd.Env = []string{"TMPDIR=" + memory, "HOME=" + dir}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:    true,
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Credential: &syscall.Credential{Uid: probeUser, Gid: probeUser},
		Pdeathsig:  unix.SIGKILL,
	}
	runtime.LockOSThread() // the signal is sent when the thread that forked ends (PR_SET_PDEATHSIG(2const))
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", filepath.Base(cmd.Path), err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait() // its status is the kill's; why it ended by itself is in the log
	}()
	err = appears(ctx, filepath.Join(dir, umid, "pid"), ended)
	unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	<-ended
	switch {
	case errors.Is(err, errEnded):
		return fmt.Errorf("the kernel does not start: %s", lastLines(log.Name()))
	case err != nil:
		return fmt.Errorf("the kernel does not start: %w: %s", err, lastLines(log.Name()))
	}
	return nil
}
