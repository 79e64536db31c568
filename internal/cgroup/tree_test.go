package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
)

// TestMain makes the test binary what runs in the groups.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 {
		n, _ := strconv.Atoi(os.Args[2])
		switch os.Args[1] {
		case "spin": // for n milliseconds of CPU time; 0 is for ever
			runtime.GOMAXPROCS(1)
			fmt.Println("up")
			var used unix.Timespec
			for n == 0 || time.Duration(used.Nano()) < time.Duration(n)*time.Millisecond {
				unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &used)
			}
			fmt.Println("spun")
			os.Exit(0)
		case "take": // n MiB of memory
			fmt.Println("up")
			b := make([]byte, n<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			fmt.Println("took")
			io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		case "fork": // n children that wait; says how many there could be
			var children []*exec.Cmd
			for range n {
				c := exec.Command("/bin/sh", "-c", "read x")
				c.Stdin = os.Stdin
				if c.Start() == nil {
					children = append(children, c)
				}
			}
			fmt.Println(len(children))
			io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		case "stubborn": // n levels of processes that take no signal
			signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
			if n > 0 {
				c := exec.Command("/proc/self/exe", "stubborn", strconv.Itoa(n-1))
				c.Stdin, c.Stdout = os.Stdin, os.Stdout
				c.Start()
			} else {
				fmt.Println("up")
			}
			for {
				unix.Pause()
			}
		}
	}
	os.Exit(m.Run())
}

// program is one that runs in a group.
type program struct {
	t    testing.TB
	pid  int
	in   *os.File
	out  *bufio.Reader
	done chan syscall.WaitStatus
}

func run(t testing.TB, p *Place, args ...string) *program {
	t.Helper()
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer inR.Close()
	defer outW.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	pid, err := p.Start(exe, append([]string{exe}, args...), &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{inR.Fd(), outW.Fd(), 2},
	})
	if err != nil {
		t.Fatal(err)
	}
	r := &program{t: t, pid: pid, in: inW, out: bufio.NewReader(outR), done: make(chan syscall.WaitStatus, 1)}
	go func() {
		var w syscall.WaitStatus
		syscall.Wait4(pid, &w, 0, nil)
		r.done <- w
	}()
	t.Cleanup(func() { inW.Close(); outR.Close() })
	return r
}

func (p *program) line() string {
	p.t.Helper()
	s, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(s)
}

// needRoot skips where groups can't be made.
func needRoot(t testing.TB) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes control groups")
	}
	if _, err := Detect(); err != nil {
		t.Skip(err)
	}
}

// tree makes a tree of the test's own, with more weight than whatever else runs on the host.
func tree(t testing.TB) *Tree {
	t.Helper()
	needRoot(t)
	tr, err := New(fmt.Sprintf("croft-test-%08x", rand.Uint32()))
	if err != nil {
		t.Fatal(err)
	}
	clean(t, tr)
	if _, err := tr.SetParent(Limits{Shares: 100_000}); err != nil {
		t.Fatal(err)
	}
	return tr
}

func clean(t testing.TB, tr *Tree) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := tr.Kill(ctx, ""); err != nil {
			t.Error(err)
		}
		if err := tr.Remove(ctx, ""); err != nil {
			t.Error(err)
		}
		for _, h := range tr.mounts.all {
			if exists(h.dir(tr.parent)) {
				t.Errorf("%s is left", h.dir(tr.parent))
			}
		}
	})
}

func set(t testing.TB, tr *Tree, name string, l Limits) *Place {
	t.Helper()
	if err := tr.Set(name, l); err != nil {
		t.Fatal(err)
	}
	p, err := open(tr.mounts, tr.Path(name)+"/"+leaf, os.Mkdir)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func usage(t testing.TB, tr *Tree, name string) Usage {
	t.Helper()
	u, err := tr.Usage(name)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestCap(t *testing.T) {
	tr := tree(t)
	p := set(t, tr, "capped", Limits{CPUCap: 300})
	began := time.Now()
	r := run(t, p, "spin", "1500")
	r.line()
	r.line()
	share := float64(usage(t, tr, "capped").CPUTime) / float64(time.Since(began))
	t.Logf("capped at 30%%: %.2f%%", share*100)
	if share < 0.27 || share > 0.33 {
		t.Errorf("a group capped at 30%% of a CPU got %.1f%%", share*100)
	}
}

func TestShares(t *testing.T) {
	tr := tree(t)
	more := set(t, tr, "more", Limits{Shares: 1500, CPUSet: []int{0}})
	less := set(t, tr, "less", Limits{Shares: 500, CPUSet: []int{0}})
	a, b := run(t, more, "spin", "0"), run(t, less, "spin", "0")
	a.line()
	b.line()
	u, v := usage(t, tr, "more"), usage(t, tr, "less")
	// A third spinner's own CPU time is the clock: none of them can go without the others' turns.
	<-run(t, less, "spin", "10").done
	pace := run(t, set(t, tr, "pace", Limits{Shares: 200, CPUSet: []int{0}}), "spin", "200")
	<-pace.done
	ratio := float64(usage(t, tr, "more").CPUTime-u.CPUTime) / float64(usage(t, tr, "less").CPUTime-v.CPUTime)
	t.Logf("3:1 gave %.3f", ratio)
	if ratio < 2.85 || ratio > 3.15 {
		t.Errorf("shares of 3:1 gave %.3f", ratio)
	}
}

func TestMemoryLimit(t *testing.T) {
	tr := tree(t)
	p := set(t, tr, "m", Limits{MemoryLimit: 64 * api.MiB})
	r := run(t, p, "take", "20")
	r.line()
	r.line()
	if m := usage(t, tr, "m").Memory; m < 20*api.MiB || m > 64*api.MiB {
		t.Errorf("memory in use %d", m)
	}
	r.in.Close()
	<-r.done
	w := <-run(t, p, "take", "100").done
	if u := usage(t, tr, "m"); w.Signal() != unix.SIGKILL || u.OOMKills != 1 {
		t.Errorf("beyond the limit: ended by %v, %d OOM kills", w.Signal(), u.OOMKills)
	}
	set(t, tr, "m", Limits{MemoryLimit: 256 * api.MiB})
	r = run(t, p, "take", "100")
	r.line()
	if r.line() != "took" {
		t.Error("a raised limit does not hold")
	}
	r.in.Close()
	<-r.done
	set(t, tr, "m", Limits{MemoryLimit: 32 * api.MiB})
	set(t, tr, "m", Limits{})
}

func TestPIDs(t *testing.T) {
	tr := tree(t)
	p := set(t, tr, "p", Limits{PIDs: 40})
	r := run(t, p, "fork", "60")
	n, err := strconv.Atoi(r.line())
	if err != nil || n >= 40 || n < 10 {
		t.Errorf("of 60 processes %d were made under a limit of 40", n)
	}
	if got := usage(t, tr, "p").PIDs; got > 40 || got < int64(n) {
		t.Errorf("usage tells %d processes", got)
	}
}

func TestFreeze(t *testing.T) {
	tr := tree(t)
	p := set(t, tr, "f", Limits{})
	r := run(t, p, "spin", "0")
	r.line()
	freeze(t, tr, "f")
	if _, err := p.Start("/bin/true", []string{"true"}, &syscall.ProcAttr{}); err == nil {
		t.Error("a process was started in a frozen group")
	}
	if err := tr.Freeze("f"); err != nil {
		t.Errorf("second Freeze: %v", err)
	}
	kill(t, tr, "f", r)
	if err := tr.Freeze("none"); err == nil {
		t.Error("froze a group that is not there")
	}
}

// freeze checks that a frozen group uses no CPU, and a thawed one does.
func freeze(t *testing.T, tr *Tree, name string) {
	t.Helper()
	if err := tr.Freeze(name); err != nil {
		t.Fatal(err)
	}
	before := usage(t, tr, name).CPUTime
	clock := run(t, nil, "spin", "50")
	<-clock.done
	if after := usage(t, tr, name).CPUTime; after != before {
		t.Errorf("frozen, it used %v", after-before)
	}
	if err := tr.Thaw(name); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for usage(t, tr, name).CPUTime == before {
		if time.Now().After(deadline) {
			t.Fatal("thawed, it does not run")
		}
	}
	if err := tr.Freeze(name); err != nil {
		t.Fatal(err)
	}
}

// kill ends a group, which may be frozen.
func kill(t *testing.T, tr *Tree, name string, programs ...*program) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := tr.Kill(ctx, name); err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		if w := <-p.done; w.Signal() != unix.SIGKILL {
			t.Errorf("ended with %v", w)
		}
	}
	if err := tr.Remove(ctx, name); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := errors.Join(tr.Kill(ctx, name), tr.Remove(ctx, name)); err != nil {
			t.Errorf("of a group that has gone: %v", err)
		}
	}
}

func TestKillAndRemove(t *testing.T) {
	tr := tree(t)
	p := set(t, tr, "k", Limits{PIDs: 200})
	r := run(t, p, "stubborn", "5")
	r.line()
	if err := tr.Remove(t.Context(), "k"); !errors.Is(err, ErrBusy) {
		t.Errorf("Remove of a busy group: %v", err)
	}
	set(t, tr, "other", Limits{})
	if names, err := tr.List(); err != nil || fmt.Sprint(names) != "[k other]" {
		t.Errorf("List: %v, %v", names, err)
	}
	kill(t, tr, "k", r)
	if names, err := tr.List(); err != nil || fmt.Sprint(names) != "[other]" {
		t.Errorf("List: %v, %v", names, err)
	}
	for _, name := range []string{"", ".", "..", "a/b"} {
		if err := tr.Set(name, Limits{}); err == nil {
			t.Errorf("Set(%q) was taken", name)
		}
	}
}

// What hangs in the kernel is not waited for for ever. Here, processes of a group that stands with its parent do not end;
// v2's cgroup.kill ends those too, so there it is a group in files alone.
func TestKillThatHangs(t *testing.T) {
	check := func(t *testing.T, tr *Tree, pid int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		tr.killTime = 100 * time.Millisecond
		err := tr.Kill(ctx, "k")
		if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), fmt.Sprintf("processes [%d] did not end", pid)) {
			t.Errorf("kill: %v; the caller's time: %v", err, ctx.Err())
		}
	}
	t.Run("v1", func(t *testing.T) {
		tr := tree(t)
		if _, ok := tr.mounts.find("freezer"); !ok {
			t.Skip("has no freezer of v1")
		}
		r := run(t, set(t, tr, "k", Limits{}), "stubborn", "0")
		r.line()
		if err := tr.Freeze(""); err != nil {
			t.Fatal(err)
		}
		check(t, tr, r.pid)
		tr.killTime = killTime
		if err := tr.Thaw(""); err != nil {
			t.Fatal(err)
		}
		kill(t, tr, "k", r)
	})
	t.Run("v2", func(t *testing.T) {
		root := t.TempDir()
		tr := &Tree{mounts: mounts{V2, []hierarchy{{root: root, unified: true}}}, parent: "p"}
		dir := filepath.Join(root, "p", "k")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"cgroup.kill": "", "cgroup.events": "populated 1\n", "cgroup.procs": "4711\n"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		check(t, tr, 4711)
	})
}

func TestCPUSet(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("needs two CPUs to move between")
	}
	tr := tree(t)
	h, _ := tr.mounts.find("cpuset")
	for _, test := range []struct {
		cpus []int
		want string
	}{{[]int{0}, "0"}, {[]int{1}, "1"}, {[]int{0, 1}, "0-1"}, {[]int{0}, "0"}} {
		set(t, tr, "c", Limits{CPUSet: test.cpus})
		if h.unified {
			continue
		}
		for _, dir := range []string{"", leaf} {
			if got, err := read(h.dir(tr.Path("c"), dir, "cpuset.cpus")); err != nil || got != test.want {
				t.Errorf("CPUs of c/%s: %q, %v, want %q", dir, got, err, test.want)
			}
		}
	}
	set(t, tr, "c", Limits{})
}

func TestIO(t *testing.T) {
	tr := tree(t)
	if _, ok := tr.mounts.find("blkio"); !ok {
		t.Skip("has no blkio controller of v1, whose limits do not reach children")
	}
	var st unix.Stat_t
	if err := unix.Stat("/dev/loop0", &st); err != nil {
		t.Skipf("needs a block device to limit: %v", err)
	}
	limit := IOLimit{Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)), WriteRate: api.MiB}
	if err := tr.Set("io", Limits{IO: []IOLimit{limit}}); err != nil {
		t.Fatal(err)
	}
	h, _ := tr.mounts.find("blkio")
	file := func(dir string) string { return h.dir(tr.Path("io"), dir, "blkio.throttle.write_bps_device") }
	want := fmt.Sprintf("%d:%d 1048576", limit.Major, limit.Minor)
	for _, dir := range []string{"", leaf} {
		if got, err := read(file(dir)); err != nil || got != want {
			t.Errorf("limit of io/%s: %q, %v", dir, got, err)
		}
	}
	// A daemon that knows nothing of the group resets a device that has no limit any more.
	again, err := New(tr.parent)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Set("io", Limits{}); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"", leaf} {
		if got, err := read(file(dir)); err != nil || got != "" {
			t.Errorf("limit of io/%s after reset: %q, %v", dir, got, err)
		}
	}
}

// TestUnified drives the v2 code on a v2 hierarchy, where the host has one, whatever controllers that has.
func TestUnified(t *testing.T) {
	needRoot(t)
	m, err := host()
	if err != nil {
		t.Fatal(err)
	}
	h, ok := m.unified()
	if !ok {
		t.Skip("has no v2 hierarchy")
	}
	h.controllers = nil
	tr, err := newTree(mounts{V2, []hierarchy{h}}, fmt.Sprintf("croft-test-%08x", rand.Uint32()))
	if err != nil {
		t.Fatal(err)
	}
	clean(t, tr)
	p := set(t, tr, "u", Limits{})
	r := run(t, p, "stubborn", "3")
	r.line()
	if got, _ := read(fmt.Sprintf("/proc/%d/cgroup", r.pid)); !strings.Contains(got, "0::/"+tr.Path("u")+"/"+leaf) {
		t.Errorf("started in %s", got)
	}
	if err := tr.Freeze("u"); err != nil {
		t.Fatal(err)
	}
	if err := tr.Thaw("u"); err != nil {
		t.Fatal(err)
	}
	if err := tr.Freeze("u"); err != nil {
		t.Fatal(err)
	}
	kill(t, tr, "u", r)
	if err := tr.Set("u", Limits{MemoryLimit: api.MiB}); err == nil {
		t.Error("a limit was taken that no controller holds")
	}
}

// TestHugePages limits what only the v2 hierarchy of a hybrid host may have.
func TestHugePages(t *testing.T) {
	needRoot(t)
	m, err := host()
	if err != nil {
		t.Fatal(err)
	}
	h, ok := m.find("hugetlb")
	if !ok || hugePage() == "" {
		t.Skip("has no hugetlb controller")
	}
	control := h.dir("cgroup.subtree_control")
	if had, err := read(control); err == nil && !strings.Contains(had, "hugetlb") {
		t.Cleanup(func() { write(control, "-hugetlb") })
	}
	tr := tree(t)
	if err := tr.Set("h", Limits{HugePages: 8 * api.MiB}); err != nil {
		t.Fatal(err)
	}
	file := h.dir(tr.Path("h"), "hugetlb."+tr.layout.hugePage+".limit_in_bytes")
	if h.unified {
		file = h.dir(tr.Path("h"), "hugetlb."+tr.layout.hugePage+".max")
	}
	if got, err := read(file); err != nil || got != "8388608" {
		t.Errorf("limit %q, %v", got, err)
	}
	r := run(t, set(t, tr, "h", Limits{HugePages: 8 * api.MiB}), "stubborn", "0")
	r.line()
	if got, _ := read(fmt.Sprintf("/proc/%d/cgroup", r.pid)); h.unified && !strings.Contains(got, "0::/"+tr.Path("h")) {
		t.Errorf("started in %s", got)
	}
	set(t, tr, "h", Limits{})
	kill(t, tr, "h", r)
}

func BenchmarkSetNew(b *testing.B) {
	tr := tree(b)
	l := Limits{Shares: 1000, CPUCap: 500, MemoryLimit: 256 * api.MiB, PIDs: 100}
	i := 0
	for b.Loop() {
		i++
		if err := tr.Set(fmt.Sprint("s", i), l); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := tr.Remove(b.Context(), fmt.Sprint("s", i)); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkSetSame(b *testing.B) {
	tr := tree(b)
	l := Limits{Shares: 1000, CPUCap: 500, MemoryLimit: 256 * api.MiB, PIDs: 100}
	for b.Loop() {
		if err := tr.Set("s", l); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUsage(b *testing.B) {
	tr := tree(b)
	set(b, tr, "s", Limits{})
	for b.Loop() {
		usage(b, tr, "s")
	}
}

func BenchmarkStart(b *testing.B) {
	tr := tree(b)
	set(b, tr, "s", Limits{})
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			if _, err := Open(tr.Path("s") + "/" + leaf); err != nil {
				b.Fatal(err)
			}
		}
	})
	p, err := Open(tr.Path("s") + "/" + leaf)
	if err != nil {
		b.Fatal(err)
	}
	start := func(p *Place) func(*testing.B) {
		return func(b *testing.B) {
			for b.Loop() {
				pid, err := p.Start("/bin/true", []string{"true"}, &syscall.ProcAttr{})
				if err != nil {
					b.Fatal(err)
				}
				syscall.Wait4(pid, nil, 0, nil)
			}
		}
	}
	b.Run("here", start(nil))
	b.Run("there", start(p))
}
