package dir

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/pool"
	"github.com/croftproject/croft/internal/pool/pooltest"
)

func TestContract(t *testing.T) {
	pooltest.Run(t, func(t *testing.T) pooltest.Factory {
		place := t.TempDir()
		// Guests' users pass through, as through a state directory.
		if err := os.Chmod(filepath.Dir(place), 0o711); err != nil {
			t.Fatal(err)
		}
		return func(t *testing.T) pool.Pool { return open(t, place) }
	})
}

func open(t testing.TB, place string) *Pool {
	t.Helper()
	p, err := New(Options{Dir: place})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func BenchmarkTree(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("mounts need root")
	}
	p, base := open(b, b.TempDir()), b.TempDir()
	for i := 0; b.Loop(); i++ {
		s := pool.Spec{ID: fmt.Sprint("t", i), Kind: pool.Tree, Size: 10 * api.GiB, Base: base, Owner: 700000, Size32: 65536}
		if err := p.Create(b.Context(), s); err != nil {
			b.Fatal(err)
		}
		if _, err := p.Open(b.Context(), s); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := p.Delete(b.Context(), s.ID); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
