// Package pooltest is the contract suite of pool.Pool: every implementation passes it.
package pooltest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/pool"
)

// Factory opens the pool under test. Called again in one test, it opens the same pool as a daemon does after a restart.
type Factory func(t *testing.T) pool.Pool

const (
	owner    = 700000
	idCount  = 65536
	treeSize = 32 * api.MiB
)

// Run checks a pool against the contract. make is called once for each test with a fresh place.
func Run(t *testing.T, make func(t *testing.T) Factory) {
	for name, test := range map[string]func(*testing.T, Factory){
		"RawFile":             rawFile,
		"Qcow2File":           qcow2File,
		"EmptyFile":           emptyFile,
		"FileTooSmall":        fileTooSmall,
		"BadSpecs":            badSpecs,
		"Missing":             missing,
		"DeleteIsIdempotent":  deleteIsIdempotent,
		"CreateIsIdempotent":  createIsIdempotent,
		"GrowFile":            growFile,
		"Info":                info,
		"OthersAreKeptOut":    othersAreKeptOut,
		"TreeIsShifted":       treeIsShifted,
		"TreeLeavesBase":      treeLeavesBase,
		"TreeSurvivesReopen":  treeSurvivesReopen,
		"TreeSurvivesRestart": treeSurvivesRestart,
		"TreeSizeIsEnforced":  treeSizeIsEnforced,
		"TreeGrowsOpen":       treeGrowsOpen,
		"TreeGrowsClosed":     treeGrowsClosed,
		"TreesShareBase":      treesShareBase,
		"ManyAtOnce":          manyAtOnce,
	} {
		t.Run(name, func(t *testing.T) { test(t, make(t)) })
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounts and ownership of volumes need root")
	}
}

// must takes the error of a step that a test needs.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t *testing.T, p pool.Pool, s pool.Spec) {
	t.Helper()
	t.Cleanup(func() {
		if err := p.Delete(t.Context(), s.ID); err != nil && t.Context().Err() == nil {
			t.Errorf("clean up: %v", err)
		}
	})
	must(t, p.Create(t.Context(), s))
}

func open(t *testing.T, p pool.Pool, s pool.Spec) string {
	t.Helper()
	opened, err := p.Open(t.Context(), s)
	must(t, err)
	return opened.Path
}

// baseFile makes a file of the given size with data at both ends.
func baseFile(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(publicDir(t), "base.raw")
	must(t, os.WriteFile(path, []byte("begin"), 0o644))
	must(t, os.Truncate(path, size))
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte("end"), size-3)
	must(t, err)
	return path
}

// baseTree makes a tree with a file of two owners, a link, and 8 MiB of data.
func baseTree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(publicDir(t), "tree")
	must(t, os.MkdirAll(filepath.Join(dir, "etc"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "etc/hostname"), []byte("base\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "etc/user"), []byte("mine\n"), 0o600))
	must(t, os.Chown(filepath.Join(dir, "etc/user"), 1000, 1000))
	must(t, os.Symlink("etc", filepath.Join(dir, "link")))
	must(t, os.WriteFile(filepath.Join(dir, "big"), bytes.Repeat([]byte("croft"), 8<<20/5), 0o644))
	return dir
}

// publicDir is a directory that other users may pass through, as an image store's is.
func publicDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	return dir
}

func rawSpec(t *testing.T, id string) pool.Spec {
	return pool.Spec{ID: id, Kind: pool.File, Size: 4 * api.MiB, Base: baseFile(t, 1<<20), BaseFormat: "raw", Format: "raw", Owner: owner}
}

func treeSpec(id, base string) pool.Spec {
	return pool.Spec{ID: id, Kind: pool.Tree, Size: treeSize, Base: base, Owner: owner, Size32: idCount}
}

func rawFile(t *testing.T, factory Factory) {
	needRoot(t)
	p, s := factory(t), rawSpec(t, "raw")
	create(t, p, s)
	path := open(t, p, s)
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	if st.Size != int64(s.Size) || st.Uid != owner || st.Gid != owner || st.Mode&0o777 != 0o600 {
		t.Errorf("size %d, owner %d:%d, mode %o; want %d, %d:%d, 600", st.Size, st.Uid, st.Gid, st.Mode&0o777, s.Size, owner, owner)
	}
	got, err := os.ReadFile(path)
	must(t, err)
	want, err := os.ReadFile(s.Base)
	must(t, err)
	if !bytes.Equal(got[:len(want)], want) || len(bytes.Trim(got[len(want):], "\x00")) != 0 {
		t.Error("the copy differs from its base")
	}
}

func qcow2File(t *testing.T, factory Factory) {
	needRoot(t)
	p, s := factory(t), rawSpec(t, "overlay")
	s.Format = "qcow2"
	create(t, p, s)
	opened, err := p.Open(t.Context(), s)
	must(t, err)
	if opened.Format != "qcow2" {
		t.Errorf("format is %q", opened.Format)
	}
	head, err := os.ReadFile(opened.Path)
	must(t, err)
	if !bytes.HasPrefix(head, []byte("QFI\xfb")) || !bytes.Contains(head, []byte(s.Base)) {
		t.Error("the volume is no qcow2 over its base")
	}
	// An overlay may be the base of the next one.
	above := pool.Spec{ID: "above", Kind: pool.File, Size: 8 * api.MiB, Base: opened.Path, BaseFormat: "qcow2", Format: "raw", Owner: owner}
	create(t, p, above)
	got, err := os.ReadFile(open(t, p, above))
	must(t, err)
	if len(got) != 8<<20 || !bytes.HasPrefix(got, []byte("begin")) {
		t.Errorf("raw copy of an overlay has %d bytes, begins %q", len(got), got[:5])
	}
}

func emptyFile(t *testing.T, factory Factory) {
	needRoot(t)
	p := factory(t)
	for _, format := range []string{"raw", "qcow2"} {
		s := pool.Spec{ID: "empty-" + format, Kind: pool.File, Size: api.GiB, Format: format, Owner: owner}
		create(t, p, s)
		var st unix.Stat_t
		must(t, unix.Stat(open(t, p, s), &st))
		if st.Blocks*512 > 1<<20 {
			t.Errorf("an empty %s takes %d bytes", format, st.Blocks*512)
		}
	}
}

func fileTooSmall(t *testing.T, factory Factory) {
	p, s := factory(t), rawSpec(t, "small")
	s.Size = s.Size / 8
	if err := p.Create(t.Context(), s); err == nil {
		t.Error("a volume smaller than its base was made")
	}
	wantNone(t, p)
}

func badSpecs(t *testing.T, factory Factory) {
	p := factory(t)
	for name, change := range map[string]func(*pool.Spec){
		"no id":          func(s *pool.Spec) { s.ID = "" },
		"path":           func(s *pool.Spec) { s.ID = "../x" },
		"hidden":         func(s *pool.Spec) { s.ID = ".x" },
		"negative":       func(s *pool.Spec) { s.Size = -1 },
		"unknown format": func(s *pool.Spec) { s.Format = "vmdk" },
		"missing base":   func(s *pool.Spec) { s.Base += ".gone" },
		"unknown kind":   func(s *pool.Spec) { s.Kind = 7 },
		"tree of file":   func(s *pool.Spec) { s.Kind = pool.Tree; s.Size = treeSize; s.Size32 = idCount },
	} {
		s := rawSpec(t, "bad")
		change(&s)
		if err := p.Create(t.Context(), s); err == nil {
			t.Errorf("%s: a volume was made", name)
		}
	}
	wantNone(t, p)
}

func missing(t *testing.T, factory Factory) {
	p := factory(t)
	if _, err := p.Open(t.Context(), rawSpec(t, "none")); !errors.Is(err, pool.ErrNotFound) {
		t.Errorf("open: %v", err)
	}
	if err := p.Grow(t.Context(), "none", api.GiB); !errors.Is(err, pool.ErrNotFound) {
		t.Errorf("grow: %v", err)
	}
	must(t, p.Close(t.Context(), "none"))
}

func deleteIsIdempotent(t *testing.T, factory Factory) {
	needRoot(t)
	p, s := factory(t), rawSpec(t, "gone")
	create(t, p, s)
	must(t, p.Delete(t.Context(), s.ID))
	must(t, p.Delete(t.Context(), s.ID))
	wantNone(t, p)
}

func createIsIdempotent(t *testing.T, factory Factory) {
	needRoot(t)
	p, s := factory(t), rawSpec(t, "twice")
	create(t, p, s)
	path := open(t, p, s)
	must(t, os.WriteFile(path, []byte("the guest's"), 0o600))
	must(t, p.Create(t.Context(), s))
	got, err := os.ReadFile(path)
	must(t, err)
	if string(got) != "the guest's" {
		t.Error("the second create changed the volume")
	}
}

func growFile(t *testing.T, factory Factory) {
	needRoot(t)
	p := factory(t)
	for _, format := range []string{"raw", "qcow2"} {
		s := rawSpec(t, "grow-"+format)
		s.Format = format
		create(t, p, s)
		must(t, p.Grow(t.Context(), s.ID, 16*api.MiB))
		must(t, p.Grow(t.Context(), s.ID, 16*api.MiB))
		if err := p.Grow(t.Context(), s.ID, 8*api.MiB); err == nil {
			t.Errorf("%s: a volume was shrunk", format)
		}
	}
}

func info(t *testing.T, factory Factory) {
	i, err := factory(t).Info(t.Context())
	must(t, err)
	if i.Driver == "" || i.Capacity <= 0 || i.Free <= 0 || i.Free > i.Capacity || i.Enforced == "" {
		t.Errorf("info is %+v", i)
	}
}

func othersAreKeptOut(t *testing.T, factory Factory) {
	needRoot(t)
	p, tree, file := factory(t), treeSpec("tree", baseTree(t)), rawSpec(t, "file")
	for s, inside := range map[pool.Spec]string{tree: "etc/hostname", file: ""} {
		create(t, p, s)
		place := open(t, p, s)
		path := filepath.Join(place, inside)
		as(t, owner, func() {
			if _, err := os.ReadFile(path); err != nil {
				t.Errorf("the owner of %s: %v", s.ID, err)
			}
			if err := os.Rename(place, place+".mine"); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("the owner of %s moved it: %v", s.ID, err)
			}
			if err := os.WriteFile(filepath.Join(filepath.Dir(place), "beside"), nil, 0o600); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("the owner of %s wrote beside it: %v", s.ID, err)
			}
		})
		as(t, owner+idCount, func() {
			if _, err := os.Stat(path); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("another user reached %s: %v", s.ID, err)
			}
		})
	}
}

func treeIsShifted(t *testing.T, factory Factory) {
	needRoot(t)
	p, s := factory(t), treeSpec("shifted", baseTree(t))
	create(t, p, s)
	root := open(t, p, s)
	wantOwner(t, root, owner)
	wantOwner(t, filepath.Join(root, "etc/hostname"), owner)
	wantOwner(t, filepath.Join(root, "etc/user"), owner+1000)
	as(t, owner, func() {
		must(t, os.WriteFile(filepath.Join(root, "etc/new"), nil, 0o644))
		must(t, os.WriteFile(filepath.Join(root, "etc/hostname"), []byte("guest\n"), 0o644))
		must(t, os.Remove(filepath.Join(root, "link")))
	})
	wantOwner(t, filepath.Join(root, "etc/new"), owner)
	as(t, owner+70000, func() {
		if err := os.WriteFile(filepath.Join(root, "etc/foreign"), nil, 0o644); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("a user of another server wrote: %v", err)
		}
	})
}

func treeLeavesBase(t *testing.T, factory Factory) {
	needRoot(t)
	base := baseTree(t)
	p, s := factory(t), treeSpec("base", base)
	before := listing(t, base)
	create(t, p, s)
	root := open(t, p, s)
	must(t, os.WriteFile(filepath.Join(root, "etc/hostname"), []byte("changed"), 0o644))
	must(t, os.RemoveAll(filepath.Join(root, "big")))
	must(t, os.Chmod(filepath.Join(root, "etc"), 0o700))
	must(t, p.Delete(t.Context(), s.ID))
	if after := listing(t, base); after != before {
		t.Errorf("the base changed:\n%s\nwas\n%s", after, before)
	}
	wantNoMounts(t, root)
}

func treeSurvivesReopen(t *testing.T, factory Factory) {
	needRoot(t)
	p, s := factory(t), treeSpec("reopen", baseTree(t))
	create(t, p, s)
	for round := range 3 {
		root := open(t, p, s)
		if again := open(t, p, s); again != root {
			t.Errorf("opened at %s, then at %s", root, again)
		}
		mark := filepath.Join(root, "round")
		if round > 0 {
			got, err := os.ReadFile(mark)
			must(t, err)
			if string(got) != fmt.Sprint(round-1) {
				t.Errorf("round %d read %q", round, got)
			}
		}
		must(t, os.WriteFile(mark, fmt.Append(nil, round), 0o644))
		must(t, p.Close(t.Context(), s.ID))
		must(t, p.Close(t.Context(), s.ID))
		wantNoMounts(t, root)
	}
}

func treeSurvivesRestart(t *testing.T, factory Factory) {
	needRoot(t)
	p, s := factory(t), treeSpec("restart", baseTree(t))
	create(t, p, s)
	mark := filepath.Join(open(t, p, s), "mark")
	must(t, os.WriteFile(mark, nil, 0o644))
	p = factory(t)
	open(t, p, s)
	if _, err := os.Stat(mark); err != nil {
		t.Error(err)
	}
	must(t, p.Delete(t.Context(), s.ID))
	wantNone(t, p)
}

func treeSizeIsEnforced(t *testing.T, factory Factory) {
	needRoot(t)
	p, s := factory(t), treeSpec("size", baseTree(t))
	create(t, p, s)
	if err := fill(open(t, p, s), int64(2*treeSize)); !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		t.Errorf("writing twice the size: %v", err)
	}
}

func treeGrowsOpen(t *testing.T, factory Factory) {
	needRoot(t)
	p, s := factory(t), treeSpec("grow", baseTree(t))
	create(t, p, s)
	root := open(t, p, s)
	err := p.Grow(t.Context(), s.ID, 40*treeSize)
	if errors.Is(err, pool.ErrBusy) && !capable(t, unix.CAP_SYS_RESOURCE) {
		must(t, p.Close(t.Context(), s.ID))
		must(t, p.Grow(t.Context(), s.ID, 40*treeSize))
		root = open(t, p, s)
		err = nil
	}
	must(t, err)
	must(t, fill(root, int64(3*treeSize)))
	if err := p.Grow(t.Context(), s.ID, treeSize); err == nil {
		t.Error("a volume was shrunk")
	}
}

func treeGrowsClosed(t *testing.T, factory Factory) {
	needRoot(t)
	p, s := factory(t), treeSpec("grow", baseTree(t))
	create(t, p, s)
	must(t, p.Grow(t.Context(), s.ID, 4*treeSize))
	must(t, fill(open(t, p, s), int64(2*treeSize)))
}

func treesShareBase(t *testing.T, factory Factory) {
	needRoot(t)
	const count = 50
	p, base := factory(t), baseTree(t)
	before, err := p.Info(t.Context())
	must(t, err)
	used := int64(0)
	for i := range count {
		s := treeSpec(fmt.Sprint("share-", i), base)
		s.Owner += uint32(i) * idCount
		create(t, p, s)
		root := open(t, p, s)
		used += usage(t, filepath.Dir(root))
	}
	// Each base is 8 MiB; what fifty volumes take together is small change.
	if limit := int64(count * api.MiB); used > limit {
		t.Errorf("%d volumes take %d bytes, more than %d", count, used, limit)
	}
	t.Logf("%d volumes take %d KiB on %s", count, used>>10, before.Enforced)
}

func manyAtOnce(t *testing.T, factory Factory) {
	needRoot(t)
	const count = 100
	p, base := factory(t), baseTree(t)
	var wait sync.WaitGroup
	for i := range count {
		s := treeSpec(fmt.Sprint("many-", i), base)
		wait.Go(func() {
			if err := p.Create(t.Context(), s); err != nil {
				t.Error(err)
				return
			}
			opened, err := p.Open(t.Context(), s)
			if err != nil {
				t.Error(err)
			} else if err := os.WriteFile(filepath.Join(opened.Path, "me"), []byte(s.ID), 0o644); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	ids, err := p.List(t.Context())
	must(t, err)
	if len(ids) != count {
		t.Errorf("%d volumes are listed", len(ids))
	}
	for _, id := range ids {
		wait.Go(func() {
			if err := p.Delete(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	wantNone(t, p)
}

func wantNone(t *testing.T, p pool.Pool) {
	t.Helper()
	ids, err := p.List(t.Context())
	must(t, err)
	if len(ids) != 0 {
		t.Errorf("left behind: %s", strings.Join(ids, ", "))
	}
}
