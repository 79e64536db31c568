package accel

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"
)

func TestProbeAnswersInTimeAndGivesItsReason(t *testing.T) {
	start := time.Now()
	r := Probe(context.Background())
	t.Logf("%+v in %v", r, time.Since(start))
	if time.Since(start) > prepareTime+2*patience {
		t.Errorf("the probe took %v", time.Since(start))
	}
	switch r.Kind {
	case KVM:
		if r.Reason != "" || r.Took > 2*Limit { // the limit's alarm may come late, and the guest end before it
			t.Errorf("KVM was found, with reason %q after %v", r.Reason, r.Took)
		}
	case TCG:
		if !strings.HasSuffix(r.Reason, "using tcg") {
			t.Errorf("the reason says %q", r.Reason)
		}
	default:
		t.Errorf("unknown accelerator %q", r.Kind)
	}
	if again := Probe(context.Background()); again != r {
		t.Errorf("the second answer differs: %+v", again)
	}
}

func TestProbeTellsWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "kvm")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ device, want string }{
		"absent":  {filepath.Join(dir, "none"), "has no KVM"},
		"a file":  {file, "does not speak version 12"},
		"another": {"/dev/null", "does not speak version 12"},
	} {
		if r := probe(test.device); r.Kind != TCG || !strings.Contains(r.Reason, test.want) {
			t.Errorf("%s: %+v, want %q", name, r, test.want)
		}
	}
}

// A guest that never ends must not hold the probe up, whether KVM runs it or emulates it.
func TestEndlessGuestIsInterrupted(t *testing.T) {
	v, err := newVM(Device)
	if errors.Is(err, errDevice) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	v.close()
	kept := program
	defer func() { program = kept }()
	program = []byte{0xEB, 0xFE} // jmp to itself
	const limit = 30 * time.Millisecond
	if took, err := runTestGuest(Device, limit); !errors.Is(err, errSlow) {
		t.Errorf("an endless guest: %v", err)
	} else if took < limit {
		t.Errorf("it was interrupted after %v of CPU time, and has %v", took, limit)
	}
}

func TestNestedIsReadFromTheModule(t *testing.T) {
	for name, test := range map[string]struct {
		module, value string
		want          bool
	}{
		"amd on": {"kvm_amd", "1\n", true}, "intel on": {"kvm_intel", "Y\n", true}, "intel off": {"kvm_intel", "N\n", false},
	} {
		dir := t.TempDir()
		parameters := filepath.Join(dir, test.module, "parameters")
		if err := os.MkdirAll(parameters, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(parameters, "nested"), []byte(test.value), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := nested(dir); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// The kernel's structures have these sizes; a field too many would shift all that follow.
func TestStructuresAreTheKernels(t *testing.T) {
	for name, pair := range map[string][2]uintptr{
		"kvm_sregs":                   {unsafe.Sizeof(sregs{}), 312},
		"kvm_regs":                    {unsafe.Sizeof(regs{}), 144},
		"kvm_userspace_memory_region": {unsafe.Sizeof(memoryRegion{}), 32},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s is %d bytes, want %d", name, pair[0], pair[1])
		}
	}
}
