package store_test

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/store"
	"github.com/croftproject/croft/internal/store/storetest"
)

func open(t testing.TB, o store.Options) *store.Etcd {
	t.Helper()
	s, err := store.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestEmbedded(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, store.Options{Dir: t.TempDir()}) })
}

func TestCluster(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg := embed.NewConfig()
	cfg.Dir, cfg.LogLevel = filepath.Join(dir, "d"), "fatal"
	client, peer := url.URL{Scheme: "unix", Path: dir + "/c:1"}, url.URL{Scheme: "unix", Path: dir + "/p:1"}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.MaxTxnOps = 1024
	cfg.MaxRequestBytes = 4 << 20
	cluster, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	<-cluster.Server.ReadyNotify()
	n := 0
	storetest.Run(t, func(t *testing.T) store.Store {
		n++
		return open(t, store.Options{Endpoints: []string{client.String()}, Prefix: fmt.Sprintf("test%d/", n)})
	})
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	begun := time.Now()
	s := open(t, store.Options{Dir: dir})
	t.Logf("new store ready in %v", time.Since(begun))
	revision, err := s.Commit(t.Context(), store.Tx{Puts: []store.Put{{Key: "k", Value: []byte("v")}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(t.Context(), store.Options{Dir: dir}); err == nil {
		t.Fatal("the same store was opened twice")
	}
	s.Close()
	begun = time.Now()
	s = open(t, store.Options{Dir: dir})
	t.Logf("old store ready in %v", time.Since(begun))
	if r, err := s.Get(t.Context(), "k"); err != nil || r.Revision != revision {
		t.Fatalf("%+v, %v", r, err)
	}
}

func TestFullDisk(t *testing.T) {
	s := open(t, store.Options{Dir: t.TempDir(), MinFree: math.MaxInt64})
	_, err := s.Commit(t.Context(), store.Tx{Puts: []store.Put{{Key: "k", Value: []byte("v")}}})
	if !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("%v, want ErrUnavailable", err)
	}
	if _, _, err := s.List(t.Context(), ""); err != nil {
		t.Fatalf("reads go on: %v", err)
	}
}

// On a disk that is nearly full nothing new is taken, and what frees space still is.
func TestNearlyFullDisk(t *testing.T) {
	dir := disk(t)
	s := open(t, store.Options{Dir: dir})
	put := store.Tx{Puts: []store.Put{{Key: "k", Value: []byte("v")}}}
	if _, err := s.Commit(t.Context(), put); err != nil {
		t.Fatal(err)
	}
	frees := put
	frees.Frees = true
	fill(t, dir, 40<<20)
	if _, err := s.Commit(t.Context(), put); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a write on a nearly full disk: %v", err)
	}
	if _, err := s.Commit(t.Context(), frees); err != nil {
		t.Errorf("a write that frees space: %v", err)
	}
	if _, err := s.Commit(t.Context(), store.Tx{Deletes: []string{"k"}}); err != nil {
		t.Errorf("a deletion: %v", err)
	}
}

// On a full disk what frees space is taken for a long while yet, and what reports for a shorter one: else nothing could be
// deleted. Room gives that while back.
func TestFreeingOnAFullDisk(t *testing.T) {
	dir := disk(t)
	s := open(t, store.Options{Dir: dir})
	tx := store.Tx{Puts: []store.Put{{Key: "k", Value: make([]byte, 4<<10)}}}
	if _, err := s.Commit(t.Context(), tx); err != nil {
		t.Fatal(err)
	}
	count := func(tx store.Tx) (n int) {
		t.Helper()
		for {
			fill(t, dir, 0) // whatever is given up is taken at once
			_, err := s.Commit(t.Context(), tx)
			if errors.Is(err, store.ErrUnavailable) {
				return n
			}
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
	}
	reports, frees := tx, tx
	reports.Reports, frees.Frees = true, true
	for range 2 {
		if n := count(tx); n != 0 {
			t.Errorf("%d writes on a full disk", n)
		}
		if n := count(reports); n < 100 || n > 300 {
			t.Errorf("%d reports on a full disk", n)
		}
		if n := count(frees); n < 100 || n > 300 {
			t.Errorf("%d writes that free space on a full disk", n)
		}
		if err := os.Remove(filepath.Join(dir, "full")); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Commit(t.Context(), tx); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	fill(t, dir, 0) // what the end gave back, too
	s = open(t, store.Options{Dir: dir})
	if n := count(frees); n < 100 {
		t.Errorf("after a start, %d writes that free space on a full disk", n)
	}
}

// What was taken before something else filled the disk is written all the same: its blocks are the store's already.
func TestDiskFilledBySomethingElse(t *testing.T) {
	dir := disk(t)
	s := open(t, store.Options{Dir: dir, MinFree: -1}) // as if the disk were filled after each look at it
	value := make([]byte, 8<<10)
	put := func(i int) {
		t.Helper()
		if _, err := s.Commit(t.Context(), store.Tx{Puts: []store.Put{{Key: fmt.Sprintf("k/%d", i), Value: value}}}); err != nil {
			t.Fatal(err)
		}
	}
	put(0)
	fill(t, dir, 0)
	for i := range 1000 {
		put(i)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, store.Options{Dir: dir})
	if r, _, err := s.List(t.Context(), "k/"); err != nil || len(r) != 1000 {
		t.Fatalf("%d records are left, %v", len(r), err)
	}
}

// disk makes a small disk, for the time of the test.
func disk(t *testing.T) string {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256m"); err != nil {
		t.Skip("mount a tmpfs:", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill fills the disk of dir but for the given number of bytes.
func fill(t *testing.T, dir string, left int64) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "full"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for {
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err != nil {
			t.Fatal(err)
		}
		at, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			t.Fatal(err)
		}
		more := int64(fs.Bavail)*fs.Bsize - left
		if more <= 0 {
			return
		}
		err = unix.Fallocate(int(f.Fd()), 0, at, more)
		if err != nil && !errors.Is(err, unix.ENOSPC) { // the member takes some meanwhile, for its log
			t.Fatal(err)
		}
	}
}

// A disk that stops answering while the store writes holds none of its callers for longer than the store's timeout.
func TestFrozenDisk(t *testing.T) {
	const freeze, thaw = 0xc0045877, 0xc0045878 // FIFREEZE, FITHAW (linux/fs.h)
	dir := t.TempDir()
	image, mount := filepath.Join(dir, "image"), filepath.Join(dir, "mount")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 256<<20), os.Mkdir(mount, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, mount}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("%v: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, 0); err != nil {
			t.Error("unmount:", err)
		}
	})
	top, err := os.Open(mount)
	if err != nil {
		t.Fatal(err)
	}
	defer top.Close()
	s := open(t, store.Options{Dir: mount, Timeout: time.Second})
	put := store.Tx{Puts: []store.Put{{Key: "k", Value: []byte("v")}}}
	frozen := false
	answer := func() {
		if frozen {
			frozen = false
			if err := unix.IoctlSetInt(int(top.Fd()), thaw, 0); err != nil {
				t.Error("thaw:", err)
			}
		}
	}
	defer answer()
	// The database gets a record a tenth of a second after the log. It is written by then where the host is busy: once more.
	for end := time.Now().Add(30 * time.Second); err == nil && time.Now().Before(end); answer() {
		if _, err := s.Commit(t.Context(), put); err != nil {
			t.Fatal(err)
		}
		if err := unix.IoctlSetInt(int(top.Fd()), freeze, 0); err != nil {
			t.Skip("freeze the file system:", err)
		}
		frozen = true
		begun := time.Now()
		for err == nil && time.Since(begun) < time.Second {
			_, err = s.Get(t.Context(), "k")
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("a read while the database is written: %v", err)
		}
		if _, err := s.Commit(t.Context(), put); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("a write: %v", err)
		}
		if took := time.Since(begun); took > 15*time.Second {
			t.Errorf("they took %v", took)
		}
	}
	if err == nil {
		t.Error("no read ever waited for the disk")
	}
	answer()
	if _, err := s.Commit(t.Context(), put); err != nil {
		t.Errorf("a write when the disk answers again: %v", err)
	}
}

func TestClosed(t *testing.T) {
	s := open(t, store.Options{Dir: t.TempDir(), Timeout: time.Second})
	ch := s.Watch(t.Context(), "", 1)
	s.Close()
	if _, err := s.Commit(t.Context(), store.Tx{Puts: []store.Put{{Key: "k"}}}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a write to a closed store: %v", err)
	}
	for range ch { // ends
	}
}

func BenchmarkCommitSerial(b *testing.B) {
	s := open(b, store.Options{Dir: b.TempDir()})
	value := make([]byte, 2048)
	for i := 0; b.Loop(); i++ {
		if _, err := s.Commit(b.Context(), store.Tx{Puts: []store.Put{{Key: fmt.Sprintf("k/%d", i%1000), Value: value}}}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCommitParallel(b *testing.B) {
	s := open(b, store.Options{Dir: b.TempDir()})
	value := make([]byte, 2048)
	var wg sync.WaitGroup
	each := b.N/16 + 1
	b.ResetTimer()
	for w := range 16 {
		wg.Go(func() {
			for i := range each {
				if _, err := s.Commit(b.Context(), store.Tx{Puts: []store.Put{{Key: fmt.Sprintf("k/%d/%d", w, i%100), Value: value}}}); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
