package control

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/ledger"
	"github.com/croftproject/croft/internal/placement"
	"github.com/croftproject/croft/internal/state"
)

// hostSilence is how long another daemon's host may be silent before no server is placed on it.
const hostSilence = 2 * time.Minute

// resolveImages finds the images that a new server names. It returns the least size of its root disk.
func (d *draft) resolveImages(f *faults, s, old *state.Server) (minimum api.Bytes) {
	if old != nil {
		s.ImageID, s.Digest = old.ImageID, old.Digest
		if r, ok := d.ix.images[s.ImageID]; ok {
			minimum = r.v.Status.MinDisk
		}
	} else if s.Spec.Image != "" {
		r, ok := d.ix.image(s.Meta.Tenant, s.Spec.Image)
		switch {
		case !ok:
			f.add("/spec/image", "there is no image %s", quote(s.Spec.Image))
		case slices.Contains(api.Models, s.Spec.Model) && !slices.Contains(r.v.Status.Models, s.Spec.Model):
			f.add("/spec/image", "image %s boots under %v, not under %s", r.v.Meta.Name, r.v.Status.Models, s.Spec.Model)
		case s.Spec.App != nil && r.v.Status.App == nil:
			f.add("/spec/app", "image %s is a system, which starts its own init; applications are of OCI images", r.v.Meta.Name)
		}
		if ok {
			s.ImageID, s.Digest, minimum = r.v.Meta.ID, r.v.Status.Digest, r.v.Status.MinDisk
		}
	}
	s.CDROMID, s.CDROMDigest = "", ""
	if old != nil && s.Spec.CDROM == old.Spec.CDROM { // its name may be another image's by now
		s.CDROMID, s.CDROMDigest = old.CDROMID, old.CDROMDigest
	} else if s.Spec.CDROM != "" {
		r, ok := d.ix.image(s.Meta.Tenant, s.Spec.CDROM)
		switch {
		case s.Spec.Model != api.ModelFull:
			f.add("/spec/cdrom", "only full servers have a CD-ROM drive")
		case !ok:
			f.add("/spec/cdrom", "there is no image %s", quote(s.Spec.CDROM))
		case r.v.Status.Format != "iso":
			f.add("/spec/cdrom", "image %s is no ISO image", r.v.Meta.Name)
		default:
			s.CDROMID, s.CDROMDigest = r.v.Meta.ID, r.v.Status.Digest
		}
	}
	return minimum
}

// useImages counts a server in the ledgers of its images, and takes what it was before out of them.
func (d *draft) useImages(s, old *state.Server) {
	change := map[string]int{}
	for _, id := range []string{s.ImageID, s.CDROMID} {
		change[id]++
	}
	if old != nil {
		for _, id := range []string{old.ImageID, old.CDROMID} {
			change[id]--
		}
	}
	delete(change, "")
	for _, id := range slices.Sorted(maps.Keys(change)) {
		if change[id] != 0 {
			d.put(state.ImageLedger+id, state.ImageUse{Users: or(d.ix.imageLedgers[id]).Users + change[id]})
		}
		if change[id] > 0 {
			d.check(state.Images + id)
		}
	}
}

// checkAllowed checks that the operator allows the tenant what the spec wants of the host.
func checkAllowed(f *faults, t *api.TenantSpec, s *api.ServerSpec) {
	for i, g := range s.Grants {
		if !allows(t, g) {
			f.forbid(fmt.Sprintf("/spec/grants/%d", i), "the operator does not allow the tenant %s", strings.TrimSpace(string(g.Kind)+" "+g.Source))
		}
	}
	if s.CPU.Dedicated && !allows(t, api.Grant{Kind: api.GrantDedicatedCPU}) {
		f.forbid("/spec/cpu/dedicated", "the operator does not allow the tenant %s", api.GrantDedicatedCPU)
	}
	if s.Memory.HugePages && !allows(t, api.Grant{Kind: api.GrantHugePages}) {
		f.forbid("/spec/memory/hugePages", "the operator does not allow the tenant %s", api.GrantHugePages)
	}
}

// checkWithheld checks that the engine that a server has can hand over what the spec wants of the host, beyond what the
// server had before.
func checkWithheld(f *faults, s, old *state.Server, e api.EngineStatus) {
	had := placement.Grants(&old.Spec)
	for _, w := range placement.Withheld(&s.Spec, e) {
		if !slices.Contains(had, w.Kind) {
			*f = append(*f, api.FieldError{Pointer: grantAt(&s.Spec, w.Kind), Code: api.CodeUnsupported, Message: fmt.Sprintf(
				"engine %s on host %s can't hand over %s", s.Engine, s.Host, w)})
		}
	}
}

// grantAt points to where a spec asks for a kind of grant.
func grantAt(s *api.ServerSpec, kind api.GrantKind) string {
	switch kind {
	case api.GrantDedicatedCPU:
		return "/spec/cpu/dedicated"
	case api.GrantHugePages:
		return "/spec/memory/hugePages"
	}
	return fmt.Sprintf("/spec/grants/%d", slices.IndexFunc(s.Grants, func(g api.Grant) bool { return g.Kind == kind }))
}

func allows(t *api.TenantSpec, g api.Grant) bool {
	return slices.ContainsFunc(t.Grants, func(a api.AllowedGrant) bool {
		if a.Kind != g.Kind {
			return false
		}
		switch g.Kind {
		case api.GrantDirectory:
			within := a.Source == "/" || g.Source == a.Source || strings.HasPrefix(g.Source, a.Source+"/")
			return a.Source != "" && path.Clean(g.Source) == g.Source && within
		case api.GrantDevice, api.GrantCapability:
			return a.Source != "" && a.Source == g.Source
		}
		return true
	})
}

// engineRules holds the spec against the rules of the engines that could run it. One that takes it is enough; else the
// one that objects to the least tells why.
func (c *Control) engineRules(f *faults, s *state.Server) {
	var best []api.FieldError
	var known []string
	for _, e := range c.o.Engines {
		t := e.Traits()
		if t.Model != s.Spec.Model {
			continue
		}
		known = append(known, t.Name)
		if s.Engine != "" && s.Engine != t.Name { // it was chosen when the server was made
			continue
		}
		if s.Spec.Engine != api.EngineAuto && s.Spec.Engine != t.Name {
			continue
		}
		errs := e.Validate(&s.Spec)
		if len(errs) == 0 {
			return
		}
		if best == nil || len(errs) < len(best) {
			best = errs
		}
	}
	if best == nil {
		f.add("/spec/engine", "%s is no engine of model %s; there are %v", quote(s.Spec.Engine), s.Spec.Model, known)
	}
	for _, e := range best {
		if e.Code == "" {
			e.Code = api.CodeInvalid
		}
		*f = append(*f, e)
	}
}

func (c *Control) engine(name string) Engine {
	for _, e := range c.o.Engines {
		if e.Traits().Name == name {
			return e
		}
	}
	return nil
}

// place chooses host and engine for a new server, and takes what it needs there.
func (c *Control) place(d *draft, s *state.Server) error {
	var candidates []placement.Candidate
	var ids, engines []string
	for _, id := range slices.Sorted(maps.Keys(d.ix.hosts)) {
		h := d.ix.hosts[id].v
		if s.Spec.Host != "" && s.Spec.Host != h.Meta.Name && s.Spec.Host != id {
			continue
		}
		candidate := placement.Candidate{Name: h.Meta.Name, Room: room(h), Ledger: or(d.ix.hostLedgers[id])}
		var engine string
		engine, candidate.Refusal = c.fitness(d.ix, h, &s.Spec)
		if e := c.engine(engine); e != nil {
			candidate.Ask = askOf(s.Meta.ID, &s.Spec, e.Overhead(&s.Spec))
			up, err := d.uplinkOfServer(h, s, nil)
			if err != nil {
				return err
			}
			_, candidate.Short = candidate.Ledger.Commit(candidate.Room, up.lines, up.from, up.to)
		}
		candidates, ids, engines = append(candidates, candidate), append(ids, id), append(engines, engine)
	}
	i, reasons := placement.Choose(candidates)
	if i < 0 {
		return noRoom(&s.Spec, reasons)
	}
	s.HostID, s.Host, s.Engine = ids[i], candidates[i].Name, engines[i]
	return c.promise(d, s, nil, ledger.Ask{}, candidates[i].Ask)
}

// fitness chooses the engine of a server on a host, or tells why the host can't take it.
func (c *Control) fitness(ix *index, h *state.Host, spec *api.ServerSpec) (engine string, no placement.Refusal) {
	st, reported := ix.hostStatuses[h.Meta.ID]
	switch {
	case !reported:
		no.Why = "it has not reported yet"
	case st.v.Phase != "ready":
		no.Why = "it is " + st.v.Phase
	case h.Meta.ID != c.ownHost() && c.o.Now().Sub(st.v.Seen) > hostSilence:
		no.Why = "it has not reported since " + st.v.Seen.Format(time.RFC3339)
	case h.Spec.Unschedulable:
		no.Why = "it takes no new servers (unschedulable)"
	}
	if no.Why != "" {
		return "", no
	}
	return placement.Engine(spec, st.v.Engines, func(name string) string {
		e := c.engine(name)
		if e == nil {
			return "not known to this daemon"
		}
		if errs := e.Validate(spec); len(errs) > 0 {
			return errs[0].Pointer + " " + errs[0].Message
		}
		return ""
	})
}

// noRoom is the problem of a server that no host takes.
func noRoom(spec *api.ServerSpec, reasons []placement.Reason) error {
	code := api.CodeUnsupported
	var short []api.Shortage
	var text []string
	for _, r := range reasons {
		if len(r.Short) > 0 {
			code = api.CodeCapacity
			short = append(short, r.Short...)
			text = append(text, describe(r.Short))
		} else {
			text = append(text, "host "+r.Host+": "+r.Why)
			if !strings.Contains(r.Why, ": ") && !strings.HasPrefix(r.Why, "it has no engine") {
				code = api.CodeCapacity // the host can't now, but may later
			}
		}
	}
	if len(reasons) == 0 {
		return api.Errorf(api.CodeCapacity, "there is no host yet")
	}
	p := api.Errorf(code, "no host takes the server: %s", strings.Join(text, "; "))
	p.Short = short
	if code == api.CodeUnsupported {
		for _, at := range unfit(spec, reasons) {
			p.Errors = append(p.Errors, api.FieldError{Pointer: at, Code: code, Message: fmt.Sprintf("no engine of model %s can run this here", spec.Model)})
		}
	}
	return p
}

// unfit points to what no engine can run: the grants that one withholds, else the choice of engines.
func unfit(spec *api.ServerSpec, reasons []placement.Reason) []string {
	var at []string
	for _, r := range reasons {
		for _, kind := range r.Withheld {
			at = append(at, grantAt(spec, kind))
		}
	}
	if len(at) == 0 {
		return []string{"/spec/engine"}
	}
	slices.Sort(at)
	return slices.Compact(at)
}

// resize replaces what a server holds of its host.
func (c *Control) resize(d *draft, s, old *state.Server) error {
	e := c.engine(s.Engine)
	if e == nil {
		return api.Errorf(api.CodeUnsupported, "this daemon has no engine %s", s.Engine)
	}
	to := askOf(s.Meta.ID, &s.Spec, e.Overhead(&s.Spec))
	to.Held = old.CPUs
	return c.promise(d, s, old.Ports, ask(old), to)
}

// promise changes the host's ledger, and notes in the record what is promised. was are the ports that the server had.
func (c *Control) promise(d *draft, s *state.Server, was []state.Port, from, to ledger.Ask) error {
	h, ok := d.ix.hosts[s.HostID]
	if !ok {
		return api.Errorf(api.CodeUnavailable, "host %s is gone", s.Host)
	}
	next, cpus, short := or(d.ix.hostLedgers[s.HostID]).Change(room(h.v), from, to)
	if len(short) == 0 {
		up, err := d.uplinkOfServer(h.v, s, was)
		if err != nil {
			return err
		}
		next, short = up.commit(d, next)
	}
	if len(short) > 0 {
		p := api.Errorf(api.CodeCapacity, "host %s has no room: %s", s.Host, describe(short))
		p.Short = short
		return p
	}
	d.check(state.Hosts + s.HostID) // its reserve and overcommit
	d.put(state.HostLedger+s.HostID, next)
	s.CPUs = cpus
	ordinary, _ := memoryOf(&s.Spec)
	s.Overhead = to.Memory - ordinary
	s.Reserved = api.Resources{Servers: 1, CPU: to.CPU, Memory: to.Memory, HugePages: to.HugePages, Disk: to.Disk}
	return nil
}

// checkNetworks checks that the networks of the ports are there.
func (d *draft) checkNetworks(f *faults, s *state.Server) {
	for i, p := range s.Spec.Ports {
		if p.Network != "" && d.ix.tables[kindNetwork].named(s.Meta.Tenant, p.Network) == nil {
			f.add(fmt.Sprintf("/spec/ports/%d/network", i), "tenant %s has no network %s", s.Meta.Tenant, quote(p.Network))
		}
	}
}

// addresses gives the ports of a server their addresses and MACs. Ports that the server had already keep theirs, unless
// the spec names others; addresses that it no longer has are released.
func (d *draft) addresses(s, old *state.Server) error {
	ledgers := map[string]ledger.Network{}
	of := func(id string) ledger.Network {
		if l, ok := ledgers[id]; ok {
			return l
		}
		return or(d.ix.networkLedgers[id])
	}
	kept := map[string]state.Port{}
	if old != nil {
		for _, p := range old.Ports {
			if n, ok := d.ix.networks[p.NetworkID]; ok {
				ledgers[p.NetworkID] = of(p.NetworkID).Give(n.v.Spec.Subnets[0], p.Address)
			}
			kept[p.NetworkID] = p
		}
	}
	s.Ports = nil
	for i, p := range s.Spec.Ports {
		e := d.ix.tables[kindNetwork].named(s.Meta.Tenant, p.Network)
		n := d.ix.networks[e.meta.ID].v
		port := state.Port{
			ID: portID(s.Meta.ID, i), Network: n.Meta.Name, NetworkID: n.Meta.ID,
			MAC: strings.ToLower(p.MAC), Bits: n.Spec.Subnets[0].Prefix.Bits(),
		}
		was, had := kept[n.Meta.ID]
		want := p.Address
		if !want.IsValid() && had {
			want = was.Address
		}
		next, addr, err := of(n.Meta.ID).Take(n.Spec.Subnets[0], want)
		if err != nil {
			return noAddress(i, n, want, err)
		}
		ledgers[n.Meta.ID], port.Address = next, addr
		if port.MAC == "" {
			port.MAC = macOf(port.ID)
			if had {
				port.MAC = was.MAC
			}
		}
		if other := d.ix.macUser(n.Meta.ID, port.MAC, s.Meta.ID); other != "" {
			f := faults{}
			f.add(fmt.Sprintf("/spec/ports/%d/mac", i), "%s is server %s's in network %s", port.MAC, other, n.Meta.Name)
			return f.err()
		}
		d.check(state.Networks + n.Meta.ID) // its subnet
		s.Ports = append(s.Ports, port)
	}
	for _, id := range slices.Sorted(maps.Keys(ledgers)) {
		d.put(state.NetworkLedger+id, ledgers[id])
	}
	return nil
}

func noAddress(i int, n *state.Network, want netip.Addr, err error) error {
	if want.IsValid() {
		var f faults
		f.add(fmt.Sprintf("/spec/ports/%d/address", i), "%v", err)
		return f.err()
	}
	p := api.Errorf(api.CodeCapacity, "network %s: %v", n.Meta.Name, err)
	p.Short = []api.Shortage{{Resource: "address", Where: n.Meta.Name, Asked: "1", Free: "0", Short: "1"}}
	return p
}

// macUser names the other server that has a MAC in a network.
func (ix *index) macUser(networkID, mac, self string) string {
	for id, r := range ix.servers {
		for _, p := range r.v.Ports {
			if id != self && p.NetworkID == networkID && p.MAC == mac {
				return r.v.Meta.Name
			}
		}
	}
	return ""
}

// portID makes a port's id of its server's: a ULID's first character is 0 for the next five hundred years, so the number
// of the port can stand in its place.
func portID(server string, i int) string {
	if i == 0 || server == "" {
		return server
	}
	return string(rune('a'+i)) + server[1:]
}

// macOf makes a MAC of a port's id: locally administered, unicast (IEEE 802).
func macOf(port string) string {
	sum := sha256.Sum256([]byte(port))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac.String()
}
