// Package e2e tests Croft as its users meet it: through the public API of a daemon process, on real guests of all three
// models. Each test has a host of its own, made by test/world; what a host is left with fails the test.
package e2e

import (
	"testing"

	"github.com/croftproject/croft/test/world"
)

// TestHost holds the tests that disturb no other on the same host.
func TestHost(t *testing.T) {
	w := world.New(t, world.Options{})
	w.BuildMicro(t)
	w.Network(t, "lan", "10.9.0.0/24")
	t.Run("shares", func(t *testing.T) { testShares(t, w) }) // these two measure: alone
	t.Run("caps", func(t *testing.T) { testCaps(t, w) })
	t.Run("life", func(t *testing.T) { testLife(t, w) })
	for name, test := range map[string]func(*testing.T, *world.World){
		"ends": testEnds, "live": testLive, "idempotency": testIdempotency, "limits": testLimits, "admission": testAdmission,
		"network": testNetwork, "tenants": testTenants, "grants": testGrants, "images": testImages,
		"firmware": testFirmware,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, w)
		})
	}
}
