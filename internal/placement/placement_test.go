package placement

import (
	"strings"
	"testing"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/ledger"
)

func host(name string, cpu api.MilliCPU, memory api.Bytes) Candidate {
	return Candidate{
		Name: name,
		Room: ledger.Room{
			Name: name, Capacity: api.Resources{CPU: cpu, Memory: memory, Disk: 100 * api.GiB},
			Overcommit: api.Overcommit{CPU: 100, Memory: 100, Disk: 100},
		},
		Ask: ledger.Ask{Server: "s", CPU: 1000, Memory: 4 * api.GiB, Disk: api.GiB},
	}
}

func TestChoose(t *testing.T) {
	strands := host("strands", 16000, 8*api.GiB)
	fits := host("fits", 8000, 32*api.GiB)
	away := host("away", 8000, 32*api.GiB)
	away.Why = "it is away"
	small := host("small", 500, 32*api.GiB)
	full := host("full", 8000, 32*api.GiB)
	full.Ledger = ledger.Host{Servers: 1, Memory: 30 * api.GiB}
	for name, tc := range map[string]struct {
		hosts []Candidate
		want  string
	}{
		"least stranded": {[]Candidate{strands, fits, away}, "fits"},
		"the only fit":   {[]Candidate{small, away, strands}, "strands"},
		"first by name":  {[]Candidate{host("b", 8000, 32*api.GiB), host("a", 8000, 32*api.GiB)}, "a"},
	} {
		i, reasons := Choose(tc.hosts)
		if i < 0 || tc.hosts[i].Name != tc.want {
			t.Errorf("%s: %d %v, want %s", name, i, reasons, tc.want)
		}
	}
	i, reasons := Choose([]Candidate{small, away, full})
	if i >= 0 || len(reasons) != 3 {
		t.Fatalf("%d %v", i, reasons)
	}
	if reasons[0].Short[0].Short != "500m" || reasons[1].Why != "it is away" || reasons[2].Short[0].Short != "2GiB" {
		t.Errorf("%+v", reasons)
	}
}

func TestEngine(t *testing.T) {
	found := func(accelerator string, uml bool) []api.EngineStatus {
		return []api.EngineStatus{
			{Name: "uml", Model: api.ModelPara, Available: uml, Reason: "no linux.uml"},
			{Name: "qemu", Model: api.ModelFull, Available: true, Accelerator: accelerator, Grants: []api.GrantKind{"huge-pages"}},
			{Name: "microvm", Model: api.ModelPara, Available: true, Accelerator: accelerator, Grants: []api.GrantKind{"huge-pages"}},
			{Name: "runc", Model: api.ModelOS, Available: true},
			{Name: "crun", Model: api.ModelOS, Available: true, Withheld: []api.WithheldGrant{{Kind: api.GrantDevice, Reason: "none here"}}},
		}
	}
	for name, tc := range map[string]struct {
		spec  api.ServerSpec
		found []api.EngineStatus
		want  string
		why   string
	}{
		"full":              {api.ServerSpec{Model: api.ModelFull}, found("tcg", true), "qemu", ""},
		"para with kvm":     {api.ServerSpec{Model: api.ModelPara, Engine: "auto"}, found("kvm", true), "microvm", ""},
		"para without kvm":  {api.ServerSpec{Model: api.ModelPara}, found("tcg", true), "uml", ""},
		"para without uml":  {api.ServerSpec{Model: api.ModelPara}, found("tcg", false), "microvm", ""},
		"asked":             {api.ServerSpec{Model: api.ModelPara, Engine: "microvm"}, found("tcg", true), "microvm", ""},
		"asked, not there":  {api.ServerSpec{Model: api.ModelPara, Engine: "uml"}, found("tcg", false), "", "no linux.uml"},
		"asked, not known":  {api.ServerSpec{Model: api.ModelPara, Engine: "lguest"}, found("tcg", false), "", "no engine lguest"},
		"of another model":  {api.ServerSpec{Model: api.ModelOS, Engine: "uml"}, found("tcg", true), "", "no engine uml"},
		"os":                {api.ServerSpec{Model: api.ModelOS}, found("tcg", true), "runc", ""},
		"another runtime":   {api.ServerSpec{Model: api.ModelOS, Engine: "crun"}, found("tcg", true), "crun", ""},
		"grant decides":     {api.ServerSpec{Model: api.ModelPara, Memory: api.Memory{HugePages: true}}, found("tcg", true), "microvm", ""},
		"grant nobody does": {api.ServerSpec{Model: api.ModelOS, Grants: []api.Grant{{Kind: api.GrantDevice}}}, found("tcg", true), "", "runc: can't hand over device; crun: can't hand over device: none here"},
		"nothing":           {api.ServerSpec{Model: api.ModelOS}, nil, "", "no engine for model os"},
	} {
		got, no := Engine(&tc.spec, tc.found, func(string) string { return "" })
		if got != tc.want || !strings.Contains(no.Why, tc.why) || (no.Withheld != nil) != (name == "grant nobody does") {
			t.Errorf("%s: %q, %+v; want %q, %q", name, got, no, tc.want, tc.why)
		}
	}
}
