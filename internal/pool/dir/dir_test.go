package dir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

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

// A loss of power can leave a volume's name without its content.
func TestVolumeWithoutARecordIsMadeAnew(t *testing.T) {
	for name, record := range map[string][]byte{"empty": {}, "zeros": make([]byte, 300)} {
		t.Run(name, func(t *testing.T) {
			p, s, disk := disk(t, "raw")
			if err := os.WriteFile(p.path(s.ID, recordName), record, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(disk, 0); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Open(t.Context(), s); !errors.Is(err, pool.ErrNotFound) {
				t.Errorf("open: %v", err)
			}
			if err := p.Create(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			if st, err := os.Stat(disk); err != nil || st.Size() != int64(s.Size) {
				t.Errorf("the disk made anew: %v, %v", st, err)
			}
		})
	}
}

// A record that says something, but not what, is a damage that a human looks at: there may be a guest's data.
func TestDamagedRecordLosesNothing(t *testing.T) {
	p, s, _ := disk(t, "raw")
	if err := os.WriteFile(p.path(s.ID, recordName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.Create(t.Context(), s); err == nil {
		t.Error("the volume was made anew")
	}
}

// A quota of blocks alone would let a guest fill the file system with empty files.
func TestQuotaCountsFiles(t *testing.T) {
	got := limits(10 * api.GiB)
	if got.hardBlocks != 10<<20 || got.hardInodes != 10<<16 || got.valid != 5 {
		t.Errorf("limits of 10 GiB: %+v", got)
	}
	if none := limits(0); none.hardBlocks != 0 || none.hardInodes != 0 || none.valid != got.valid {
		t.Errorf("no limits: %+v", none)
	}
}

// What volumes can have is what they take and what is free, whatever else is on the file system.
func TestCapacity(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	place := t.TempDir()
	if err := unix.Mount("tmpfs", place, "tmpfs", 0, "size=64m"); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { unix.Unmount(place, unix.MNT_DETACH) })
	p := open(t, filepath.Join(place, "volumes"))
	s := pool.Spec{ID: "one", Kind: pool.File, Size: 16 * api.MiB, Format: "raw", Owner: 700000}
	if err := p.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	capacity := func() api.Bytes {
		info, err := p.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return info.Capacity / api.MiB
	}
	write := func(path string) {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(make([]byte, 8*api.MiB)); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	before := capacity()
	write(p.path(s.ID, "disk.raw"))
	if got := capacity(); got != before {
		t.Errorf("with a disk's content it is %d MiB, before %d", got, before)
	}
	write(filepath.Join(place, "image"))
	if got := capacity(); got != before-8 {
		t.Errorf("with 8 MiB of another's it is %d MiB, before %d", got, before)
	}
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
