package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/state"
)

// launch starts the guest, and has its end watched.
func (a *Agent) launch(ctx context.Context, m *machine, rec *state.Server) error {
	b, err := a.assemble(ctx, m, rec)
	if err != nil {
		return err
	}
	e, err := a.engine(rec.Engine)
	if err != nil {
		return err
	}
	if err := m.update(func(l *local) {
		l.BootID, l.Handle, l.Started, l.Rebooted = a.BootID, nil, a.Now(), a.BootID
	}); err != nil {
		return err
	}
	g, err := e.Launch(ctx, b)
	if err != nil {
		return err
	}
	if err := a.fault(m.id, "remember"); err != nil {
		return errors.Join(err, e.Clean(ctx, b))
	}
	m.setGuest(g, b)
	handle := g.Handle()
	if err := m.update(func(l *local) {
		l.Handle, l.Spec, l.Exit, l.NextStart, l.Failure = &handle, &rec.Spec, nil, time.Time{}, ""
	}); err != nil {
		return err
	}
	a.watchGuest(m, g)
	a.status.waiting(m.id, "")
	a.event(rec, "Started", "engine "+rec.Engine, false)
	return nil
}

// watchGuest wakes the server when its guest's userspace is up, and when the guest ends.
func (a *Agent) watchGuest(m *machine, g engine.Guest) {
	if m.watched == g {
		return
	}
	m.watched = g
	a.mu.Lock()
	ctx := a.ctx
	a.mu.Unlock()
	ready := a.Keeper.Ready(m.id)
	a.watchers.Go(func() {
		select {
		case <-ready:
			a.loop.Wake(m.id)
		case <-g.Done():
		case <-ctx.Done():
			return
		}
		select {
		case <-g.Done():
			a.loop.Wake(m.id)
		case <-ctx.Done():
		}
	})
}

// assemble describes the machine to its engine: everything that the steps before made.
func (a *Agent) assemble(ctx context.Context, m *machine, rec *state.Server) (*engine.Machine, error) {
	e, err := a.engine(rec.Engine)
	if err != nil {
		return nil, err
	}
	content, err := a.Images.Get(ctx, rec.Digest)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", rec.Spec.Image, err)
	}
	l := m.remembered()
	spec, err := a.volume(m, rec, e, content)
	if err != nil {
		return nil, err
	}
	opened, err := a.Pool.Open(ctx, spec)
	if err != nil {
		return nil, err
	}
	b := a.bare(m, rec)
	b.IDs = engine.IDRange{Base: l.IDBase, Size: idRange}
	b.Root = engine.Root{Path: opened.Path, Format: opened.Format, Size: spec.Size}
	b.Boot = engine.Boot{Modules: content.Modules, Ready: content.Ready}
	if e.Traits().ImageKernel {
		b.Boot.Kernel, b.Boot.Initrd, b.Boot.Cmdline = content.Kernel, content.Initrd, content.Cmdline
	}
	b.CDROM = content.ISO
	if rec.CDROMDigest != "" {
		cd, err := a.Images.Get(ctx, rec.CDROMDigest)
		if err != nil {
			return nil, fmt.Errorf("CD-ROM %s: %w", rec.Spec.CDROM, err)
		}
		b.CDROM = cd.ISO
	}
	if e.Traits().Seed && content.CloudInit {
		b.Seed = m.seedPath()
	}
	b.App = resolveApp(content.App, rec.Spec.App)
	if b.App != nil {
		if err := a.writeHosts(m, rec, b); err != nil {
			return nil, err
		}
	}
	return b, a.attachments(m, rec, e, b)
}

// bare is the machine without what the start makes: enough to clean up, or to find a guest again.
func (a *Agent) bare(m *machine, rec *state.Server) *engine.Machine {
	b := &engine.Machine{
		ID: m.id, Dir: m.dir, RunDir: m.run, Cgroup: a.Cgroups.Path(m.id),
		IDs: engine.IDRange{Base: m.remembered().IDBase, Size: idRange}, Spec: &api.ServerSpec{},
	}
	if rec == nil {
		return b
	}
	b.Name, b.Tenant, b.Spec, b.CPUs, b.Grants = rec.Meta.Name, rec.Meta.Tenant, &rec.Spec, rec.CPUs, rec.Spec.Grants
	b.Host = rec.Meta.Name
	if rec.Spec.Guest != nil && rec.Spec.Guest.Hostname != "" {
		b.Host = rec.Spec.Guest.Hostname
	}
	return b
}

// attachments tells the machine where its ports are.
func (a *Agent) attachments(m *machine, rec *state.Server, e engine.Engine, b *engine.Machine) error {
	for i, p := range rec.Ports {
		port, n, err := a.nets.port(m.id, rec, i, e.Traits().NIC)
		if err != nil {
			return err
		}
		at := a.Net.Attachment(p.NetworkID, port)
		nic := engine.NIC{Name: port.Guest, MAC: port.MAC, MTU: n.MTU, Prefix: port.Addrs[0]}
		for _, s := range n.Subnets {
			if s.Prefix.Contains(p.Address) {
				nic.Router = s.Gateway
			}
		}
		if e.Traits().NIC == engine.NICTap {
			nic.Tap = engine.Tap{NetNS: at.NetNS, Device: at.Device}
		} else {
			b.NetNS = at.NetNS
		}
		b.NICs = append(b.NICs, nic)
	}
	return nil
}

// resolveApp lays what the spec says of an application's process over what the image says.
func resolveApp(fromImage, asked *api.App) *api.App {
	if fromImage == nil {
		return nil
	}
	out := *fromImage
	if asked == nil {
		return &out
	}
	if asked.Entrypoint != nil { // as in OCI runtimes: a new entrypoint drops the image's arguments
		out.Entrypoint, out.Args = asked.Entrypoint, nil
	}
	if asked.Args != nil {
		out.Args = asked.Args
	}
	if asked.User != "" {
		out.User = asked.User
	}
	if asked.WorkingDir != "" {
		out.WorkingDir = asked.WorkingDir
	}
	out.Env = map[string]string{}
	for _, env := range []map[string]string{fromImage.Env, asked.Env} {
		for k, v := range env {
			out.Env[k] = v
		}
	}
	return &out
}

// writeHosts writes the files that an application guest, which configures nothing itself, gets for its names.
func (a *Agent) writeHosts(m *machine, rec *state.Server, b *engine.Machine) error {
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost\n"
	for _, p := range rec.Ports {
		hosts += fmt.Sprintf("%s\t%s\n", p.Address, b.Host)
	}
	b.Hosts, b.Resolv = filepath.Join(m.dir, "hosts"), filepath.Join(m.dir, "resolv.conf")
	if err := os.WriteFile(b.Hosts, []byte(hosts), 0o644); err != nil {
		return err
	}
	return os.WriteFile(b.Resolv, []byte(a.resolv(rec)), 0o644)
}

// resolv is the resolv.conf(5) of a guest whose network the host sets up: the routers of its networks answer.
func (a *Agent) resolv(rec *state.Server) string {
	out := ""
	for _, p := range rec.Ports {
		n, ok := a.nets.wanted(p.NetworkID)
		if !ok {
			continue
		}
		for _, s := range n.Subnets {
			out += fmt.Sprintf("nameserver %s\n", s.Gateway)
		}
		if n.Domain != "" {
			out += fmt.Sprintf("search %s\n", n.Domain)
		}
	}
	return out
}
