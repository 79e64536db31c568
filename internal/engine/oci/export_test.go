package oci

import (
	"testing"
	"time"
)

// ShortenStart sets the limit of a start for the rest of a test.
func ShortenStart(t testing.TB, limit time.Duration) {
	before := startLimit
	startLimit = limit
	t.Cleanup(func() { startLimit = before })
}
