package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
	"github.com/croftproject/croft/internal/keeper"
	"github.com/croftproject/croft/test/world"
)

const (
	tenant  = "default"
	network = "bench"
	image   = "micro"
	// patience is how long anything may take.
	patience = 2 * time.Minute
)

// host is a host of this run's own: a network namespace, directories, and a daemon process.
type host struct {
	*client.Client
	StateDir, RunDir string

	l       *lab
	name    string // of the network namespace
	binary  string
	command string // of the binary, that is the daemon

	mu     sync.Mutex
	log    bytes.Buffer
	daemon *exec.Cmd
	ended  chan struct{}
}

func (h *host) socket() string { return filepath.Join(h.RunDir, "croft.sock") }

func (h *host) open(ctx context.Context) error {
	if err := makeNetNS(h.name, uplink); err != nil {
		return err
	}
	if err := os.Mkdir(h.StateDir, 0o711); err != nil {
		return err
	}
	if _, err := os.Stat(h.l.o.Cache); err == nil {
		if err := os.CopyFS(filepath.Join(h.StateDir, "cache"), os.DirFS(h.l.o.Cache)); err != nil {
			return err
		}
	}
	var err error
	if h.Client, err = client.New(client.Options{Address: h.socket()}); err != nil {
		return err
	}
	_, err = h.Start(ctx)
	return err
}

// Start starts the daemon, and returns how long it was from exec to the first request that it answered.
func (h *host) Start(ctx context.Context) (time.Duration, error) {
	c := exec.Command(h.binary, h.command, "--state-dir", h.StateDir, "--run-dir", h.RunDir, "--netns", h.name, "--host", "bench")
	c.Stdout, c.Stderr = h, h
	c.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // ^C is for this program, which ends the daemon in order
	began := time.Now()
	if err := c.Start(); err != nil {
		return 0, err
	}
	ended := make(chan struct{})
	go func() { _ = c.Wait(); close(ended) }()
	h.mu.Lock()
	h.daemon, h.ended = c, ended
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for poll := time.NewTicker(2 * time.Millisecond); ; {
		if _, err := h.Version(ctx); err == nil {
			poll.Stop()
			return time.Since(began), nil
		}
		select {
		case <-poll.C:
		case <-ended:
			return 0, fmt.Errorf("the daemon ended: %s\n%s", c.ProcessState, h.tail())
		case <-ctx.Done():
			return 0, fmt.Errorf("the daemon does not answer\n%s", h.tail())
		}
	}
}

// Write takes the daemon's log.
func (h *host) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.log.Write(p)
}

func (h *host) tail() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	log := h.log.Bytes()
	return string(log[max(0, len(log)-4096):])
}

// PID of the daemon.
func (h *host) PID() int { return h.daemon.Process.Pid }

// End ends the daemon by a signal.
func (h *host) End(s unix.Signal) error {
	if h.daemon == nil {
		return nil
	}
	if err := h.daemon.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-h.ended:
	case <-time.After(patience):
		return errors.Join(fmt.Errorf("the daemon did not end on %s", s), h.daemon.Process.Kill())
	}
	h.daemon = nil
	return nil
}

// furnish builds the image and makes the network.
func (h *host) furnish(ctx context.Context) error {
	h.l.say("building the image %s", image)
	if _, err := h.Build(ctx, tenant, image, image, false); err != nil {
		return err
	}
	built := false
	for c, err := range h.Jobs(tenant).Watch(ctx, client.ListOptions{}, 0) {
		if err != nil {
			return err
		}
		if s := c.Object.Status; s.Phase == api.JobFailed {
			return fmt.Errorf("build %s: %s", image, s.Error)
		} else if built = s.Phase == api.JobDone; built {
			break
		}
	}
	if !built {
		return fmt.Errorf("build %s: %w", image, ctx.Err())
	}
	if _, err := os.Stat(h.l.o.Cache); errors.Is(err, fs.ErrNotExist) {
		if err := os.CopyFS(h.l.o.Cache, os.DirFS(filepath.Join(h.StateDir, "cache"))); err != nil {
			return err
		}
	}
	spec := api.NetworkSpec{Subnets: []api.Subnet{{Prefix: subnet}}}
	if _, err := h.Networks(tenant).Create(ctx, client.Create[api.NetworkSpec]{Name: network, Spec: spec}); err != nil {
		return err
	}
	_, err := h.Hosts().Patch(ctx, "bench", map[string]any{"spec": map[string]any{
		"overcommit": map[string]any{"cpu": 1000, "memory": 1000, "disk": 10000},
	}}, 0)
	return err
}

// close deletes the servers, ends the daemon and its keeper, and complains of whatever is left on the machine.
func (h *host) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var errs []error
	if h.Client != nil {
		if h.daemon == nil {
			_, err := h.Start(ctx)
			errs = append(errs, err)
		}
		_, err := h.DeleteAll(ctx)
		errs = append(errs, err, h.End(unix.SIGTERM), h.endKeeper(ctx))
		h.Client.Close()
	}
	w := &world.World{StateDir: h.StateDir, RunDir: h.RunDir, NetNS: "/run/netns/" + h.name}
	w.DropGroups()
	for _, left := range w.Leaks() {
		if left != "network device out0" {
			errs = append(errs, fmt.Errorf("left on the machine: %s", left))
		}
	}
	return errors.Join(append(errs, netns.DeleteNamed(h.name), os.RemoveAll(h.RunDir))...)
}

func (h *host) endKeeper(ctx context.Context) error {
	k, err := keeper.Connect(ctx, filepath.Join(h.RunDir, "keeper"), keeper.Options{Executable: h.binary})
	if err != nil {
		return fmt.Errorf("end the keeper: %w", err)
	}
	defer k.Close()
	if err := k.Shutdown(ctx); err != nil {
		return err
	}
	for poll := time.NewTicker(10 * time.Millisecond); ; {
		if _, _, err := find("keeper", h.RunDir); err != nil {
			poll.Stop()
			return nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return errors.New("the keeper did not end")
		}
	}
}
