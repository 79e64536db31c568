package qemu

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine/qemu/accel"
)

// QEMU's own group is the machine's; that of the accelerator's device comes on top, where there is one.
func TestProcessGroups(t *testing.T) {
	m := goldenMachine(api.ModelFull)
	facts := Facts{Binary: "/usr/bin/qemu", MachineType: "q35", Accel: accel.KVM}
	for group, want := range map[uint32][]uint32{0: nil, 108: {108}} {
		s := NewFull(nil, Options{}).process(m, pathsOf(m), facts, group)
		if diff := cmp.Diff(want, s.Groups); diff != "" || s.Group != m.IDs.Base {
			t.Errorf("group %d: runs as %d with %v", group, s.Group, s.Groups)
		}
	}
}
