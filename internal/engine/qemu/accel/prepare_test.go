package accel

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A host that has just booted: KVM's module is not loaded, or udev has not given the device to its group yet.
func TestPrepare(t *testing.T) {
	const amd, none = "processor\t: 0\nflags\t\t: fpu vme svm nx\n", "processor\t: 0\nflags\t\t: fpu vme nx\n"
	for name, test := range map[string]struct {
		cpuinfo string
		mode    os.FileMode // of the device; 0: it is not there
		loads   os.FileMode // what modprobe makes; 0: nothing
		udev    bool
		want    []string
	}{
		"all is well":           {amd, 0o660, 0, true, nil},
		"module not loaded":     {amd, 0, 0o660, true, []string{"modprobe -q kvm_amd"}},
		"udev is behind":        {amd, 0o600, 0, true, []string{"udevadm settle"}},
		"both":                  {amd, 0, 0o600, true, []string{"modprobe -q kvm_amd", "udevadm settle"}},
		"no udev":               {amd, 0o600, 0, false, nil},
		"module can't be had":   {amd, 0, 0, true, []string{"modprobe -q kvm_amd"}},
		"another vendor's":      {strings.ReplaceAll(amd, "svm", "vmx"), 0, 0, true, []string{"modprobe -q kvm_intel"}},
		"a CPU without it":      {none, 0, 0, true, nil},
		"a cpuinfo of no flags": {"", 0, 0, true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			device, cpuinfo, udev := filepath.Join(dir, "kvm"), filepath.Join(dir, "cpuinfo"), filepath.Join(dir, "control")
			make := func(path, text string, mode os.FileMode) {
				if err := os.WriteFile(path, []byte(text), mode); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(path, mode); err != nil {
					t.Fatal(err)
				}
			}
			make(cpuinfo, test.cpuinfo, 0o600)
			if test.mode != 0 {
				make(device, "", test.mode)
			}
			if test.udev {
				make(udev, "", 0o600)
			}
			var got []string
			prepare(t.Context(), device, cpuinfo, udev, func(_ context.Context, name string, args ...string) {
				got = append(got, strings.Join(append([]string{name}, args...), " "))
				if name == "modprobe" && test.loads != 0 {
					make(device, "", test.loads)
				}
			})
			if !slices.Equal(got, test.want) {
				t.Errorf("it ran %q, want %q", got, test.want)
			}
		})
	}
}
