package cgroup

import (
	"io"
	"math"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
)

// capOf reads a group's cap; 0 is none.
func capOf(t *testing.T, tr *Tree, name string) api.MilliCPU {
	t.Helper()
	r := reader{mounts: tr.mounts, path: tr.Path(name)}
	quota, every := r.number("cpu", "cpu.cfs_quota_us"), r.number("cpu", "cpu.cfs_period_us")
	if r.err != nil {
		t.Fatal(r.err)
	}
	return api.MilliCPU(max(0, quota*1000/every))
}

func setParent(t *testing.T, tr *Tree, l Limits) Limits {
	t.Helper()
	got, err := tr.SetParent(l)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// Whatever the parent's cap becomes, every group has the cap that was asked for it, or the parent's holds it.
func TestParentCap(t *testing.T) {
	tr := tree(t)
	h, _ := tr.mounts.find("cpu")
	if h.unified {
		t.Skip("needs the cpu controller of v1, which refuses a cap below a child's")
	}
	set(t, tr, "small", Limits{CPUCap: 300})
	set(t, tr, "great", Limits{CPUCap: 1500})
	inner := h.dir(tr.Path("great"), leaf)
	if err := write(filepath.Join(inner, "cpu.cfs_quota_us"), "120000"); err != nil { // a guest's own
		t.Fatal(err)
	}
	for _, test := range []struct {
		name                 string
		parent, small, great api.MilliCPU
		daemon               bool // another one, which knows nothing of what was set
	}{
		{name: "lower", parent: 1000, small: 300},
		{name: "below all", parent: 200},
		{name: "above one", parent: 1000, small: 300},
		{name: "above both", parent: 1900, small: 300, great: 1500},
		{name: "above both, a new daemon", parent: 1900, small: 300, great: 1500, daemon: true},
		{name: "lower, a new daemon", parent: 250, daemon: true},
		{name: "none"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.daemon {
				again, err := New(tr.parent)
				if err != nil {
					t.Fatal(err)
				}
				tr = again
			}
			setParent(t, tr, Limits{Shares: 100_000, CPUCap: test.parent})
			for name, want := range map[string]api.MilliCPU{"": test.parent, "small": test.small, "great": test.great} {
				if got := capOf(t, tr, name); got != want {
					t.Errorf("cap of %q is %d, want %d", name, got, want)
				}
			}
		})
	}
	// Set by the last daemon, they are as asked again.
	set(t, tr, "small", Limits{CPUCap: 300})
	set(t, tr, "great", Limits{CPUCap: 1500})
	setParent(t, tr, Limits{Shares: 100_000, CPUCap: 1000})
	setParent(t, tr, Limits{Shares: 100_000, CPUCap: 1900})
	if small, great := capOf(t, tr, "small"), capOf(t, tr, "great"); small != 300 || great != 1500 {
		t.Errorf("caps are %d and %d", small, great)
	}
}

// The parent's memory is never less than groups use, and comes to what was asked once they use less.
func TestParentMemory(t *testing.T) {
	tr := tree(t)
	file := "memory.limit_in_bytes"
	h, _ := tr.mounts.find("memory")
	if h.unified {
		file = "memory.max"
	}
	limit := func() api.Bytes {
		text, err := read(h.dir(tr.parent, file))
		if err != nil {
			t.Fatal(err)
		}
		n, _ := strconv.ParseInt(text, 10, 64)
		return api.Bytes(n)
	}
	setParent(t, tr, Limits{MemoryLimit: 256 * api.MiB})
	r := run(t, set(t, tr, "m", Limits{MemoryLimit: 128 * api.MiB}), "take", "64")
	r.line()
	r.line()
	again, err := New(tr.parent)
	if err != nil {
		t.Fatal(err)
	}
	for name, tr := range map[string]*Tree{"the same daemon": tr, "another": again} {
		asked := Limits{MemoryLimit: 32 * api.MiB}
		got := setParent(t, tr, asked)
		if got.MemoryLimit < 64*api.MiB || got.MemoryLimit > 128*api.MiB {
			t.Errorf("%s: asked for %d where 64 MiB are in use, got %d", name, asked.MemoryLimit, got.MemoryLimit)
		}
		if l := limit(); l < got.MemoryLimit-4096 || l > got.MemoryLimit {
			t.Errorf("%s: the limit is %d, and said to be %d", name, l, got.MemoryLimit)
		}
	}
	if u := usage(t, tr, "m"); u.OOMKills != 0 {
		t.Errorf("%d processes were ended for it", u.OOMKills)
	}
	r.in.Close()
	<-r.done
	if got := setParent(t, tr, Limits{MemoryLimit: 32 * api.MiB}); got.MemoryLimit != 32*api.MiB || limit() != 32*api.MiB {
		t.Errorf("once the memory is free: %d, and the limit %d", got.MemoryLimit, limit())
	}
}

// The parent's weight is as asked, also where an earlier daemon made it with another.
func TestParentWeight(t *testing.T) {
	tr := tree(t)
	file, most := "cpu.shares", "262144"
	h, _ := tr.mounts.find("cpu")
	if h.unified {
		file, most = "cpu.weight", "10000"
	}
	again, err := New(tr.parent)
	if err != nil {
		t.Fatal(err)
	}
	for _, shares := range []int64{1000, math.MaxInt64} {
		setParent(t, tr, Limits{Shares: 1000})
		setParent(t, again, Limits{Shares: shares, CPUCap: 1000})
	}
	if got, err := read(h.dir(tr.parent, file)); got != most || err != nil {
		t.Errorf("it is %s, %v", got, err)
	}
}

// Where the parent's memory runs out, a group with a score is ended for a greater one without.
func TestOOMScore(t *testing.T) {
	tr := tree(t)
	setParent(t, tr, Limits{Shares: 100_000, MemoryLimit: 128 * api.MiB})
	scored := run(t, set(t, tr, "scored", Limits{MemoryLimit: api.GiB}), "take", "40")
	scored.line()
	scored.line()
	if err := tr.SetOOMScore("scored", 900); err != nil {
		t.Fatal(err)
	}
	reserved := run(t, set(t, tr, "reserved", Limits{MemoryLimit: api.GiB}), "take", "100")
	// It takes what it asks for, or is ended too: the kernel does not always wait until what it killed has given its memory
	// back. But never it alone, though it is the greater.
	_, _ = io.Copy(io.Discard, io.LimitReader(reserved.out, int64(len("up\ntook\n"))))
	select {
	case w := <-scored.done:
		if w.Signal() != unix.SIGKILL {
			t.Errorf("the scored one ended with %v", w)
		}
	case <-time.After(20 * time.Second):
		t.Error("the scored one goes on, where memory ran out")
		scored.in.Close()
		<-scored.done
	}
	reserved.in.Close()
	<-reserved.done
}

func TestOOMScoreIsOfEveryProcess(t *testing.T) {
	tr := tree(t)
	p := run(t, set(t, tr, "many", Limits{}), "fork", "3")
	p.line()
	for _, score := range []string{"700", "0"} {
		n, _ := strconv.Atoi(score)
		if err := tr.SetOOMScore("many", n); err != nil {
			t.Fatal(err)
		}
		members := tr.members("many")
		for _, pid := range members {
			if got, err := read("/proc/" + strconv.Itoa(pid) + "/oom_score_adj"); got != score || err != nil {
				t.Errorf("process %d has %s, %v, want %s", pid, got, err, score)
			}
		}
		if len(members) != 4 {
			t.Errorf("%d processes", len(members))
		}
	}
	p.in.Close()
	<-p.done
	if err := tr.SetOOMScore("gone", 5); err != nil {
		t.Error(err)
	}
}
