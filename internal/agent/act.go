package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/image"
	"github.com/croftproject/croft/internal/pool"
	"github.com/croftproject/croft/internal/seed"
	"github.com/croftproject/croft/internal/state"
)

// prepare makes the server's directories and gives it an id range of its own.
func (a *Agent) prepare(m *machine, rec *state.Server) error {
	m.torn = false
	for _, dir := range []string{m.dir, m.run} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	base := m.remembered().IDBase
	if base == 0 {
		var err error
		if base, err = a.ids.take(m.id, m.dir); err != nil {
			return fmt.Errorf("find an id range: %w", err)
		}
	}
	return m.update(func(l *local) { l.Engine, l.IDBase, l.Torn = rec.Engine, base, false })
}

// volume describes the root volume of a server.
func (a *Agent) volume(m *machine, rec *state.Server, e engine.Engine, c image.Content) (pool.Spec, error) {
	s := pool.Spec{ID: m.id, Size: rec.Spec.Disk.Size, Owner: m.remembered().IDBase, Size32: idRange}
	switch e.Traits().Root {
	case engine.RootTree:
		s.Kind, s.Base = pool.Tree, c.Tree
	case engine.RootFS:
		s.Kind, s.Base, s.Format, s.BaseFormat = pool.File, c.RootFS, "raw", "raw"
		if e.Traits().ImageKernel { // QEMU's: it reads what it needs of the image, where uml takes a whole copy
			s.Format = "qcow2"
		}
	case engine.RootDisk:
		s.Kind, s.Base, s.Format, s.BaseFormat = pool.File, c.Disk, "qcow2", c.DiskFormat
		if c.Disk == "" && c.ISO != "" { // an empty disk, for the installer on the image's CD-ROM
			s.Format, s.BaseFormat = "raw", ""
			return s, nil
		}
	}
	if s.Base == "" {
		return s, fmt.Errorf("%w: it has no root for engine %s", image.ErrBad, e.Traits().Name)
	}
	return s, nil
}

// makeRoot makes and opens the server's volume, and puts the first-boot configuration where the guest looks for it.
func (a *Agent) makeRoot(ctx context.Context, m *machine, rec *state.Server) error {
	content, err := a.Images.Get(ctx, rec.Digest)
	if err != nil {
		return fmt.Errorf("image %s: %w", rec.Spec.Image, err)
	}
	e, err := a.engine(rec.Engine)
	if err != nil {
		return err
	}
	spec, err := a.volume(m, rec, e, content)
	if err != nil {
		return err
	}
	if err := a.Pool.Create(ctx, spec); err != nil {
		return fmt.Errorf("make the root volume: %w", err)
	}
	if err := a.Pool.Grow(ctx, m.id, spec.Size); err != nil { // it may have been made smaller
		return fmt.Errorf("grow the root volume: %w", err)
	}
	opened, err := a.Pool.Open(ctx, spec)
	if err != nil {
		return fmt.Errorf("open the root volume: %w", err)
	}
	if content.App != nil {
		return nil
	}
	macs := make([]string, len(rec.Ports))
	for i, p := range rec.Ports {
		macs[i] = p.MAC
	}
	s := seed.Render(rec.Meta, rec.Spec.Guest, macs)
	if e.Traits().Seed {
		if !content.CloudInit {
			return nil
		}
		return s.WriteISO(m.seedPath(), int(spec.Owner))
	}
	if spec.Kind == pool.Tree {
		s.Resolv = a.resolv(rec)
		return s.WriteTree(opened.Path, int(spec.Owner), content.CloudInit)
	}
	return nil
}

func (m *machine) seedPath() string { return filepath.Join(m.dir, "seed.iso") }

// hardwareAddr parses a MAC that admission has checked.
func hardwareAddr(s string) net.HardwareAddr {
	mac, _ := net.ParseMAC(s)
	return mac
}

func prefixOf(p state.Port) netip.Prefix { return netip.PrefixFrom(p.Address, p.Bits) }

// portGuest is the name of the i-th port's device in the guest.
func portGuest(i int) string { return fmt.Sprintf("eth%d", i) }

// label makes a DNS label of a server's name, which is one already.
func label(name string) string { return strings.ToLower(name) }
