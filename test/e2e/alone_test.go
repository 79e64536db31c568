package e2e

import (
	"testing"

	"github.com/croftproject/croft/test/world"
)

// TestAlone holds the tests that need a host on which nothing else happens.
func TestAlone(t *testing.T) {
	w := world.New(t, world.Options{})
	w.BuildMicro(t)
	w.Network(t, "lan", "10.9.0.0/24")
	t.Run("crowd", func(t *testing.T) { testCrowd(t, w) })
	t.Run("bandwidth", func(t *testing.T) { testBandwidth(t, w) })
	t.Run("input", func(t *testing.T) { testInput(t, w) }) // every trace is that of a refusal
}
