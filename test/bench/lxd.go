package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// lxd is the peer LXD: a daemon with a directory, a network namespace and a mount namespace of its own, a pool of kind
// dir, and a bridge. It is spoken to by its REST API, without its client's overhead.
type lxd struct {
	l      *lab
	dir    string
	daemon *exec.Cmd
	ended  chan struct{}
	log    bytes.Buffer
	http   *http.Client
}

const lxdBridge = "br0"

// LXD starts the peer. An error that wraps exec.ErrNotFound says that it is not installed.
func (l *lab) LXD(ctx context.Context) (*lxd, error) {
	if l.lxd != nil {
		return l.lxd, nil
	}
	binary, err := exec.LookPath("lxd")
	if err != nil {
		return nil, err
	}
	h, err := l.Host(ctx)
	if err != nil {
		return nil, err
	}
	l.say("starting LXD")
	x := &lxd{l: l, dir: filepath.Join(l.dir, "lxd")}
	socket := filepath.Join(x.dir, "unix.socket")
	x.http = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	pivots := lxdGroups()
	l.later(func() error { return errors.Join(x.close(), dropNewGroups(pivots)) })
	if err := x.start(ctx, binary); err != nil {
		return nil, fmt.Errorf("start LXD: %w", err)
	}
	if err := x.furnish(ctx, h); err != nil {
		return nil, fmt.Errorf("furnish LXD: %w", err)
	}
	l.lxd = x
	return x, nil
}

func (x *lxd) netns() string { return filepath.Base(x.l.dir) + "x" }

func (x *lxd) start(ctx context.Context, binary string) error {
	if err := makeNetNS(x.netns(), bridge(lxdBridge)); err != nil {
		return err
	}
	if err := os.Mkdir(x.dir, 0o711); err != nil {
		return err
	}
	c := exec.Command("/proc/self/exe", insideCommand, filepath.Join("/run/netns", x.netns()), binary, "--group", "root")
	c.Env = append(os.Environ(), "LXD_DIR="+x.dir)
	c.Stdout, c.Stderr = &x.log, &x.log
	c.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Setpgid: true}
	if err := c.Start(); err != nil {
		return err
	}
	x.daemon, x.ended = c, make(chan struct{})
	go func() { _ = c.Wait(); close(x.ended) }()
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for poll := time.NewTicker(50 * time.Millisecond); ; {
		if err := x.call(wait, http.MethodGet, "/internal/ready", nil, nil); err == nil {
			poll.Stop()
			return nil
		}
		select {
		case <-poll.C:
		case <-x.ended:
			return fmt.Errorf("it ended: %s", x.log.String())
		case <-wait.Done():
			return fmt.Errorf("it does not answer: %s", x.log.String())
		}
	}
}

// furnish makes the pool and imports the image: the same tree as ours.
func (x *lxd) furnish(ctx context.Context, h *host) error {
	if err := x.call(ctx, http.MethodPost, "/1.0/storage-pools", map[string]any{"name": "default", "driver": "dir"}, nil); err != nil {
		return err
	}
	tree, err := h.imageFile("private/tree")
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	if err := lxdImage(&archive, tree); err != nil {
		return err
	}
	var made struct{ Fingerprint string }
	if err := x.call(ctx, http.MethodPost, "/1.0/images", &archive, &made); err != nil {
		return err
	}
	return x.call(ctx, http.MethodPost, "/1.0/images/aliases", map[string]any{"name": image, "target": made.Fingerprint}, nil)
}

// lxdImage is LXD's unified image: metadata.yaml and rootfs/ (LXD documentation, "Image format").
func lxdImage(w io.Writer, tree string) error {
	t := tar.NewWriter(w)
	meta := []byte("architecture: x86_64\ncreation_date: 1700000000\nproperties: {os: micro, description: micro}\n")
	if err := t.WriteHeader(&tar.Header{Name: "metadata.yaml", Mode: 0o644, Size: int64(len(meta))}); err != nil {
		return err
	}
	if _, err := t.Write(meta); err != nil {
		return err
	}
	err := filepath.Walk(tree, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		link := ""
		if info.Mode()&os.ModeSymlink != 0 {
			if link, err = os.Readlink(path); err != nil {
				return err
			}
		}
		header, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(tree, path)
		if err != nil {
			return err
		}
		header.Name = filepath.Join("rootfs", rel)
		if err := t.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(t, f)
		return err
	})
	return errors.Join(err, t.Close())
}

// Launch creates and starts a container, as `lxc launch` does, and returns when it runs.
func (x *lxd) Launch(ctx context.Context, name string) (time.Duration, error) {
	began := time.Now()
	err := x.call(ctx, http.MethodPost, "/1.0/instances", map[string]any{
		"name": name, "type": "container", "profiles": []string{},
		"source": map[string]any{"type": "image", "alias": image},
		"config": map[string]any{"limits.memory": "128MiB", "limits.cpu.allowance": "100ms/100ms", "limits.processes": "512"},
		"devices": map[string]any{
			"root": map[string]any{"type": "disk", "path": "/", "pool": "default"},
			"eth0": map[string]any{"type": "nic", "nictype": "bridged", "parent": lxdBridge, "name": "eth0"},
		},
	}, nil)
	if err == nil {
		err = x.call(ctx, http.MethodPut, "/1.0/instances/"+name+"/state", map[string]any{"action": "start", "timeout": 30}, nil)
	}
	return time.Since(began), err
}

// Delete stops a container by force and deletes it, as `lxc delete --force` does.
func (x *lxd) Delete(ctx context.Context, name string) (time.Duration, error) {
	began := time.Now()
	err := x.call(ctx, http.MethodPut, "/1.0/instances/"+name+"/state", map[string]any{"action": "stop", "timeout": -1, "force": true}, nil)
	if err == nil {
		err = x.call(ctx, http.MethodDelete, "/1.0/instances/"+name, nil, nil)
	}
	return time.Since(began), err
}

// lxdAnswer is what LXD answers requests and operations with.
type lxdAnswer struct {
	Type, Operation, Error string
	Metadata               json.RawMessage
}

// call sends a request, and waits for the operation that it began. in is sent as JSON, or as it is where it is a Reader.
func (x *lxd) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	switch in := in.(type) {
	case nil:
	case io.Reader:
		body = in
	default:
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://lxd"+path, body)
	if err != nil {
		return err
	}
	if _, raw := in.(io.Reader); raw {
		request.Header.Set("Content-Type", "application/octet-stream")
	}
	got, err := x.http.Do(request)
	if err != nil {
		return err
	}
	defer got.Body.Close() //nolint:errcheck // it was only read
	var a lxdAnswer
	if err := json.NewDecoder(got.Body).Decode(&a); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if a.Type == "error" {
		return fmt.Errorf("%s %s: %s", method, path, a.Error)
	}
	if a.Type == "async" {
		var op struct {
			Err      string
			Metadata json.RawMessage
		}
		if err := x.call(ctx, http.MethodGet, a.Operation+"/wait?timeout=120", nil, &op); err != nil {
			return err
		}
		if op.Err != "" {
			return fmt.Errorf("%s %s: %s", method, path, op.Err)
		}
		a.Metadata = op.Metadata
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(a.Metadata, out)
}

// PIDs of the daemon and of its containers' monitors: what it runs on the host for them.
func (x *lxd) PIDs() (daemon int, monitors []int) {
	for pid, args := range processes() {
		if len(args) > 0 && strings.HasPrefix(args[0], "[lxc monitor] "+x.dir) {
			monitors = append(monitors, pid)
		}
	}
	return x.daemon.Process.Pid, monitors
}

// close deletes the containers and ends the daemon. Its mounts end with their namespace.
func (x *lxd) close() error {
	if x.daemon == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var names []string
	errs := []error{x.call(ctx, http.MethodGet, "/1.0/instances", nil, &names)}
	for _, name := range names {
		_, err := x.Delete(ctx, filepath.Base(name))
		errs = append(errs, err)
	}
	errs = append(errs, x.daemon.Process.Signal(unix.SIGTERM))
	select {
	case <-x.ended:
	case <-ctx.Done():
		errs = append(errs, errors.New("LXD did not end"), x.daemon.Process.Kill())
	}
	return errors.Join(append(errs, netns.DeleteNamed(x.netns()))...)
}

// lxdGroups are the control groups that LXC makes beside those of containers.
func lxdGroups() map[string]bool {
	out := map[string]bool{}
	for _, pattern := range []string{"/sys/fs/cgroup/lxc.pivot", "/sys/fs/cgroup/*/lxc.pivot"} {
		found, _ := filepath.Glob(pattern)
		for _, dir := range found {
			out[dir] = true
		}
	}
	return out
}

func dropNewGroups(before map[string]bool) error {
	var errs []error
	for dir := range lxdGroups() {
		if !before[dir] {
			errs = append(errs, os.Remove(dir))
		}
	}
	return errors.Join(errs...)
}
