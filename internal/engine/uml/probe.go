package uml

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
)

const (
	probeLimit = 10 * time.Second
	probeUser  = 65534 // nobody: the probe's process owns nothing
	probeMem   = "mem=32M"
)

// Probe boots the kernel, confined as a guest is, until it has passed its own checks (that it can trace its processes'
// system calls, and execute from its memory file) and prints its banner; then it is killed.
func (e *Engine) Probe(ctx context.Context) engine.Report {
	version, err := e.probe(ctx)
	if err != nil {
		return engine.Report{Reason: err.Error()}
	}
	return engine.Report{
		Available: true,
		Version:   version,
		Abilities: []string{"console", "pause"},
		Grants:    []api.GrantKind{api.GrantDirectory, api.GrantDedicatedCPU},
	}
}

func (e *Engine) probe(ctx context.Context) (version string, err error) {
	if _, err := os.Stat(e.Kernel); errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s is missing: install the package user-mode-linux", e.Kernel)
	}
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	dir, err := os.MkdirTemp("", "croft-uml")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	if err := errors.Join(os.Chmod(dir, 0o711), os.Lchown(dir, probeUser, probeUser)); err != nil {
		return "", err
	}
	c := e.base(e.Kernel, []string{probeMem, "uml_dir=" + dir, "umid=" + umid, "con=none", "con0=null,fd:1", "ssl=none", "noreboot"})
	c.WriteBelow = append(c.WriteBelow, dir)
	limits, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	cmd := exec.Command(e.Confine[0], append(e.Confine[1:len(e.Confine):len(e.Confine)], string(limits))...)
	cmd.Env = []string{"TMPDIR=" + e.Memory, "HOME=" + dir}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:    true,
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Credential: &syscall.Credential{Uid: probeUser, Gid: probeUser},
	}
	return banner(ctx, cmd)
}

// banner runs the kernel until it tells its version and kills it with its helpers.
func banner(ctx context.Context, cmd *exec.Cmd) (string, error) {
	out, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Start()
	w.Close()
	if err != nil {
		return "", fmt.Errorf("start %s: %w", filepath.Base(cmd.Path), err)
	}
	kill := func() { unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	stop := context.AfterFunc(ctx, kill)
	var seen []string
	version := ""
	for lines := bufio.NewScanner(io.LimitReader(out, 1<<16)); version == "" && lines.Scan(); {
		seen = append(seen, lines.Text())
		if rest, ok := strings.CutPrefix(lines.Text(), "Linux version "); ok {
			version, _, _ = strings.Cut(rest, " ")
		}
	}
	stop()
	kill()
	cmd.Wait() // its status is the kill's
	if version != "" {
		return version, nil
	}
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("the kernel did not start: %w", err)
	}
	return "", fmt.Errorf("the kernel does not start: %s", strings.Join(seen[max(0, len(seen)-5):], "; "))
}
