package e2e

import (
	"testing"

	"github.com/croftproject/croft/test/world"
)

// TestRefused sends bad input to a host on which nothing else happens, so that every trace is that of a refusal.
func TestRefused(t *testing.T) {
	w := world.New(t, world.Options{})
	w.BuildMicro(t)
	w.Network(t, "lan", "10.9.0.0/24")
	testInput(t, w)
}
