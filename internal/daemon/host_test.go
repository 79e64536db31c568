package daemon

import (
	"errors"
	"testing"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/store"
)

func TestHostSpecIsAppliedUntilItIs(t *testing.T) {
	var last api.HostSpec
	now := last
	now.Reserve.CPU = 500
	tries, fails := 0, true
	apply := func() error {
		if tries++; fails {
			return errors.New("busy")
		}
		return nil
	}
	for i, want := range []struct {
		fails bool
		tries int
		last  api.MilliCPU
	}{{true, 1, 0}, {true, 2, 0}, {false, 3, 500}, {false, 3, 500}} {
		fails = want.fails
		var err error
		if last, err = changed(last, now, apply); (err != nil) != want.fails || tries != want.tries || last.Reserve.CPU != want.last {
			t.Errorf("%d: %d tries, %v, %v", i, tries, last.Reserve.CPU, err)
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
