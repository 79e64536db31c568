package daemon

import (
	"errors"
	"testing"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/store"
)

func TestHostSpecIsAppliedUntilItIs(t *testing.T) {
	var f followed
	for i, test := range []struct {
		reserve api.MilliCPU
		done    bool
		err     error
		applied bool
	}{
		{reserve: 100, err: errors.New("busy"), applied: true},
		{reserve: 100, applied: true}, // in part
		{reserve: 100, done: true, applied: true},
		{reserve: 100, done: true},
		{reserve: 500, done: true, applied: true},
		{reserve: 500, done: true},
	} {
		applied := false
		err := f.carry(api.HostSpec{Reserve: api.Reserve{CPU: test.reserve}}, func(s api.HostSpec) (bool, error) {
			applied = true
			return test.done, test.err
		})
		if !errors.Is(err, test.err) || applied != test.applied || f.done != test.done {
			t.Errorf("%d: applied %v, done %v, %v", i, applied, f.done, err)
		}
	}
}

func TestAnswers(t *testing.T) {
	s, err := store.Open(t.Context(), store.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := answers(t.Context(), s); err != nil {
		t.Error(err)
	}
	s.Close()
	if err := answers(t.Context(), s); err == nil {
		t.Error("a store that is closed answers")
	}
}
