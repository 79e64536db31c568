package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// bareRunc is the OCI runtime alone, on an overlay over the image's tree, with the runtime's own default configuration,
// a user namespace and limits: the least that a server of model os asks of it.
type bareRunc struct{ dir, binary string }

func newBareRunc(l *lab, h *host) (*bareRunc, error) {
	binary, err := exec.LookPath("runc")
	if err != nil {
		return nil, err
	}
	r := &bareRunc{dir: filepath.Join(l.dir, "runc"), binary: binary}
	root := filepath.Join(r.dir, "rootfs")
	for _, d := range []string{"", "rootfs", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(r.dir, d), 0o755); err != nil { // upper is what the guest's users see as "/"
			return nil, err
		}
	}
	tree, err := h.imageFile("private/tree")
	if err != nil {
		return nil, err
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", tree, filepath.Join(r.dir, "upper"), filepath.Join(r.dir, "work"))
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		return nil, fmt.Errorf("mount overlay: %w", err)
	}
	l.later(func() error { return unix.Unmount(root, 0) })
	if out, err := exec.Command(binary, "spec", "--bundle", r.dir).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("runc spec: %w: %s", err, out)
	}
	return r, r.configure()
}

func (r *bareRunc) configure() error {
	path := filepath.Join(r.dir, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var s specs.Spec
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	s.Process.Terminal, s.Process.Args = false, []string{"/bin/true"}
	s.Root.Path, s.Root.Readonly = filepath.Join(r.dir, "rootfs"), false
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1 << 24, Size: 65536}}
	s.Linux.UIDMappings, s.Linux.GIDMappings = ids, ids
	memory, pids, period, quota := int64(128<<20), int64(512), uint64(100000), int64(100000)
	s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &memory}
	s.Linux.Resources.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
	s.Linux.Resources.Pids = &specs.LinuxPids{Limit: &pids}
	s.Linux.CgroupsPath = "/" + filepath.Base(filepath.Dir(r.dir)) + "-runc"
	if data, err = json.Marshal(s); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// Run runs /bin/true to its end.
func (r *bareRunc) Run(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	out, err := exec.CommandContext(ctx, r.binary, "--root", filepath.Join(r.dir, "state"), "run", "--bundle", r.dir, "bare").CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("runc run: %w: %s", err, bytes.TrimSpace(out))
	}
	return time.Since(began), nil
}

// imageFile is a file of the image that the host built.
func (h *host) imageFile(name string) (string, error) {
	found, err := filepath.Glob(filepath.Join(h.StateDir, "images", "[0-9a-f]*", name))
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("%d images have a %s", len(found), name)
	}
	if err != nil {
		return "", err
	}
	return found[0], nil
}
