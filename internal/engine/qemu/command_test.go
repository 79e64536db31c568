package qemu

import (
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/qemu/accel"
)

var update = flag.Bool("update", false, "write the golden files")

// TestCommandLine compares whole command lines, one argument or option a line. Run with -update to write them.
func TestCommandLine(t *testing.T) {
	tcg := Facts{Binary: "/usr/bin/qemu-system-x86_64", MachineType: "pc-q35-7.2", Accel: accel.TCG, TSC: 2596148, Firmware: "/usr/share/OVMF/OVMF_CODE_4M.fd"}
	kvm := tcg
	kvm.Accel = accel.KVM
	micro := func(f Facts) Facts { f.MachineType = "microvm"; return f }
	direct := tcg
	direct.DirectIO = true
	unsteady := micro(tcg)
	unsteady.TSC = 0

	for name, test := range map[string]struct {
		facts  Facts
		model  api.Model
		change func(*engine.Machine)
	}{
		"full-bios-virtio-tcg": {tcg, api.ModelFull, nil},
		"full-uefi-virtio-kvm": {kvm, api.ModelFull, func(m *engine.Machine) { m.Spec.Firmware = api.FirmwareUEFI }},
		"full-emulated-cdrom-seed": {tcg, api.ModelFull, func(m *engine.Machine) {
			m.Spec.Devices, m.CDROM, m.Seed = api.DevicesEmulated, "/isos/install, disc 1.iso", "/machines/web/seed.iso"
			m.Root.Format = "raw"
		}},
		"full-direct-io": {direct, api.ModelFull, nil},
		"full-grants": {kvm, api.ModelFull, func(m *engine.Machine) {
			m.Spec.Memory.HugePages = true
			m.Grants = []api.Grant{
				{Kind: api.GrantDirectory, Source: "/srv/a,b", Target: "data"},
				{Kind: api.GrantDirectory, Source: "/srv/ro", ReadOnly: true},
				{Kind: api.GrantDevice, Source: "0000:01:00.0"},
				{Kind: api.GrantNesting},
			}
		}},
		"para-tcg": {micro(tcg), api.ModelPara, func(m *engine.Machine) { m.Seed = "/machines/web/seed.iso" }},
		"para-kvm-grants": {micro(kvm), api.ModelPara, func(m *engine.Machine) {
			m.Spec.Memory.HugePages = true
			m.Grants = []api.Grant{{Kind: api.GrantDirectory, Source: "/srv/data"}}
		}},
		"para-tcg-unsteady-clock": {unsteady, api.ModelPara, nil},
	} {
		t.Run(name, func(t *testing.T) {
			m := goldenMachine(test.model)
			if test.change != nil {
				test.change(m)
			}
			got := render(CommandLine(m, test.facts))
			path := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("differs from %s (-want +got):\n%s", path, diff)
			}
		})
	}
}

func goldenMachine(model api.Model) *engine.Machine {
	m := &engine.Machine{
		ID: "01kaz3v0q3b7d8", Name: "web", Dir: "/machines/web", RunDir: "/run/croft/web", IDs: engine.IDRange{Base: 500000},
		Spec: &api.ServerSpec{
			Model: model, CPU: api.CPU{Count: 2}, Memory: api.Memory{Limit: 512 * api.MiB},
			Firmware: api.FirmwareBIOS, Devices: api.DevicesVirtio,
		},
		Root: engine.Root{Path: "/pool/web", Format: "qcow2"},
		NICs: []engine.NIC{{Name: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Tap: engine.Tap{NetNS: "/run/netns/n", Device: "tap0"}}},
	}
	if model == api.ModelPara {
		m.Root.Format = "raw"
		m.Boot = engine.Boot{Kernel: "/images/vmlinuz", Initrd: "/images/initrd", Cmdline: "quiet init=/sbin/init"}
	}
	return m
}

// render writes one option a line.
func render(args []string) string {
	var b strings.Builder
	for i, arg := range args {
		switch {
		case i == 0:
		case strings.HasPrefix(arg, "-"):
			b.WriteString("\n")
		default:
			b.WriteString(" ")
		}
		b.WriteString(arg)
	}
	return b.String() + "\n"
}
