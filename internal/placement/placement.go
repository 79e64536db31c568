// Package placement chooses the host and the engine for a server. It is pure.
package placement

import (
	"fmt"
	"slices"
	"strings"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/ledger"
)

// Candidate is a host as the choice sees it.
type Candidate struct {
	Name   string
	Room   ledger.Room
	Ledger ledger.Host
	Ask    ledger.Ask     // depends on the host: engines differ in overhead
	Short  []api.Shortage // what else it has too little of
	Refusal
}

// Refusal is why a host can't take a server at all; without a Why it may.
type Refusal struct {
	Why      string
	Withheld []api.GrantKind // what the server needs of it and its engines can't hand over
}

// Reason is why a host was not chosen.
type Reason struct {
	Host string
	Refusal
	Short []api.Shortage // what it has too little of
}

// Choose names the candidate that takes the server: the one that has room, and of several the one on which least is
// stranded, that is, whose free processors, memory and disk stay in the closest proportion; then the emptiest; then the
// first by name. It returns -1, with a reason for each candidate, where none does.
func Choose(candidates []Candidate) (int, []Reason) {
	best, bestScore := -1, score{}
	var reasons []Reason
	for i, c := range candidates {
		if c.Why != "" {
			reasons = append(reasons, Reason{Host: c.Name, Refusal: c.Refusal})
			continue
		}
		after, _, short := c.Ledger.Change(c.Room, ledger.Ask{}, c.Ask)
		short = append(short, c.Short...)
		if len(short) > 0 {
			reasons = append(reasons, Reason{Host: c.Name, Short: short})
			continue
		}
		s := rate(c, after)
		if best < 0 || s.before(bestScore) {
			best, bestScore = i, s
		}
	}
	if best >= 0 {
		return best, nil
	}
	return -1, reasons
}

type score struct {
	stranded float64 // 0 to 1
	free     float64 // 0 to 1
	name     string
}

// before compares with some tolerance, so that a difference that nobody would notice does not pile servers up.
func (s score) before(o score) bool {
	const noticed = 0.01
	if d := s.stranded - o.stranded; d < -noticed || d > noticed {
		return d < 0
	}
	if d := s.free - o.free; d < -noticed || d > noticed {
		return d > 0
	}
	return s.name < o.name
}

func rate(c Candidate, after ledger.Host) score {
	all, left := c.Room.Allocatable(), after.Free(c.Room)
	shares := []float64{
		share(int64(left.CPU), int64(all.CPU)), share(int64(left.Memory), int64(all.Memory)), share(int64(left.Disk), int64(all.Disk)),
	}
	low, high := slices.Min(shares), slices.Max(shares)
	return score{stranded: high - low, free: low, name: c.Name}
}

func share(part, whole int64) float64 {
	if whole <= 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

// Order of the engines that a model may run on, when the choice is left to the host. An entry with an accelerator counts
// where the engine has it.
var order = map[api.Model][]struct{ engine, accelerator string }{
	api.ModelFull: {{"qemu", ""}},
	api.ModelPara: {{"xen", ""}, {"microvm", "kvm"}, {"uml", ""}, {"microvm", ""}},
	api.ModelOS:   {{"runc", ""}},
}

// Engine chooses the engine of a server on a host, out of what the host's probes found. usable further restricts them
// by the engines' own rules; it returns why an engine can't run the server, or nothing. Where none can, the refusal tells
// why.
func Engine(spec *api.ServerSpec, found []api.EngineStatus, usable func(engine string) string) (engine string, no Refusal) {
	var whys []string
	tried := map[string]bool{}
	try := func(e api.EngineStatus) bool {
		if tried[e.Name] {
			return false
		}
		tried[e.Name] = true
		reason, withheld := refused(spec, e)
		if reason == "" {
			reason = usable(e.Name)
		}
		if reason == "" {
			return true
		}
		whys = append(whys, e.Name+": "+reason)
		for _, w := range withheld {
			if !slices.Contains(no.Withheld, w.Kind) {
				no.Withheld = append(no.Withheld, w.Kind)
			}
		}
		return false
	}
	auto := spec.Engine == "" || spec.Engine == api.EngineAuto
	for _, want := range order[spec.Model] {
		for _, e := range found {
			if auto && e.Model == spec.Model && e.Name == want.engine && (want.accelerator == "" || e.Accelerator == want.accelerator) && try(e) {
				return e.Name, Refusal{}
			}
		}
	}
	for _, e := range found {
		if e.Model == spec.Model && (auto || e.Name == spec.Engine) && try(e) {
			return e.Name, Refusal{}
		}
	}
	switch no.Why = strings.Join(whys, "; "); {
	case no.Why != "":
	case auto:
		no.Why = fmt.Sprintf("it has no engine for model %s", spec.Model)
	default:
		no.Why = fmt.Sprintf("it has no engine %s", spec.Engine)
	}
	return "", no
}

// refused tells why the host's engine can't run the server, as far as its probe found.
func refused(spec *api.ServerSpec, e api.EngineStatus) (why string, withheld []api.WithheldGrant) {
	if !e.Available {
		return "not available: " + e.Reason, nil
	}
	withheld = Withheld(spec, e)
	var whys []string
	for _, w := range withheld {
		whys = append(whys, fmt.Sprintf("can't hand over %s", w))
	}
	return strings.Join(whys, ", "), withheld
}

// Withheld are the kinds of grants that a server needs and the host's engine can't hand over, as far as its probe found.
func Withheld(spec *api.ServerSpec, e api.EngineStatus) []api.WithheldGrant {
	var out []api.WithheldGrant
	for _, kind := range Grants(spec) {
		if slices.Contains(e.Grants, kind) {
			continue
		}
		w := api.WithheldGrant{Kind: kind}
		if i := slices.IndexFunc(e.Withheld, func(w api.WithheldGrant) bool { return w.Kind == kind }); i >= 0 {
			w = e.Withheld[i]
		}
		out = append(out, w)
	}
	return out
}

// Grants are the kinds of grants that a server needs, each once.
func Grants(spec *api.ServerSpec) []api.GrantKind {
	var kinds []api.GrantKind
	for _, g := range spec.Grants {
		kinds = append(kinds, g.Kind)
	}
	if spec.CPU.Dedicated {
		kinds = append(kinds, api.GrantDedicatedCPU)
	}
	if spec.Memory.HugePages {
		kinds = append(kinds, api.GrantHugePages)
	}
	slices.Sort(kinds)
	return slices.Compact(kinds)
}
