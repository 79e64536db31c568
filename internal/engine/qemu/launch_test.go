package qemu

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
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
		if want := engine.OOMScore(m.Spec); s.OOMScore != want {
			t.Errorf("score %d, want %d", s.OOMScore, want)
		}
	}
}

// silent is a keeper whose processes run and say nothing.
type silent struct{ engine.Keeper }

func (silent) Done(string) <-chan struct{} { return nil }

// A QEMU that never answers is not waited for for ever; the caller's own end is told as such.
func TestAnswersInTime(t *testing.T) {
	before := startLimit
	startLimit = 50 * time.Millisecond
	t.Cleanup(func() { startLimit = before })
	m := &engine.Machine{ID: "silent", RunDir: t.TempDir()}
	e := NewMicroVM(silent{}, Options{})
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.answers(over, m, pathsOf(m), &watcher{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := e.answers(t.Context(), m, pathsOf(m), &watcher{}); err == nil || !strings.Contains(err.Error(), "within 50ms") {
		t.Errorf("got %v", err)
	}
}
