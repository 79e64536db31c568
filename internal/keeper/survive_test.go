package keeper_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/cgroup"
	"github.com/croftproject/croft/internal/keeper"
)

func TestDaemonKilled(t *testing.T) {
	c, dir := open(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command(exe, "connect", dir)
	daemon.Stderr = os.Stderr
	out, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "started\n" {
		t.Fatalf("%q, %v", line, err)
	}
	daemon.Process.Kill()
	daemon.Wait()
	again := connect(t, dir)
	s, err := again.Get(t.Context(), "survivor")
	if err != nil || !s.Ended.IsZero() || unix.Kill(s.PID, 0) != nil {
		t.Fatalf("after the daemon was killed: %+v, %v", s, err)
	}
	if err := c.Shutdown(t.Context()); !errors.Is(err, keeper.ErrRunning) {
		t.Errorf("Shutdown with a running process: %v", err)
	}
}

// keeperPID finds the keeper: it is its processes' parent.
func keeperPID(t *testing.T, child int) (pid int) {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(string(stat[strings.LastIndexByte(string(stat), ')')+4:]), "%d", &pid); err != nil {
		t.Fatal(err)
	}
	return pid
}

// killKeeper kills the keeper of a process and waits until it is gone.
func killKeeper(t *testing.T, child int) {
	t.Helper()
	pid := keeperPID(t, child)
	if pid == os.Getpid() {
		t.Fatal("the keeper is not the parent")
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
}

func TestKeeperKilled(t *testing.T) {
	c, dir := open(t)
	tty := shell("tty", "echo first; read x; echo second $x; read y; exit 5")
	tty.Terminal, tty.Log, tty.Ready = true, filepath.Join(dir, "tty.log"), "second"
	pipe := shell("pipe", "while :; do echo tick; read x < "+filepath.Join(dir, "fifo")+" || exit; done")
	pipe.Log = filepath.Join(dir, "pipe.log")
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	running := start(t, c, tty)
	start(t, c, pipe)
	start(t, c, shell("ended", "exit 6"))
	wait(t, c, "ended")
	expect(t, attach(t, c, "tty", nil), "first")
	done, ready := c.Done("tty"), c.Ready("tty")

	killKeeper(t, running.PID)

	// The client finds, or starts, another by itself.
	if s, err := c.Get(t.Context(), "ended"); err != nil || s.Code != 6 {
		t.Errorf("an end that was recorded: %+v, %v", s, err)
	}
	if s, err := c.Get(t.Context(), "tty"); err != nil || s.PID != running.PID || !s.Ended.IsZero() {
		t.Errorf("a process that lives: %+v, %v", s, err)
	}
	console := attach(t, c, "tty", nil)
	fmt.Fprintln(console, "line")
	expect(t, console, "second line")
	select {
	case <-ready:
	case <-time.After(10 * time.Second):
		t.Error("readiness is not told by the new keeper")
	}
	fmt.Fprintln(console, "")
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the end is not told by the new keeper")
	}
	if s, err := c.Get(t.Context(), "tty"); err != nil || s.Code != -1 {
		t.Errorf("ended under another keeper: %+v, %v", s, err)
	}
	if log, err := os.ReadFile(tty.Log); err != nil || string(log) != "first\nsecond line\n" {
		t.Errorf("log %q, %v", log, err)
	}
	// One that prints to a pipe is not killed by SIGPIPE.
	fifo, err := os.OpenFile(filepath.Join(dir, "fifo"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer fifo.Close()
	view := attach(t, c, "pipe", nil)
	fmt.Fprintln(fifo, "go")
	expect(t, view, "tick")
	if err := c.Signal(t.Context(), "pipe", unix.SIGKILL); err != nil {
		t.Error(err)
	}
	wait(t, c, "pipe")
	if err := c.Signal(t.Context(), "pipe", unix.SIGKILL); !errors.Is(err, keeper.ErrEnded) {
		t.Errorf("Signal to an ended process: %v", err)
	}
}

func TestConcurrentStarts(t *testing.T) {
	c, _ := open(t)
	const n = 100
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() {
			id := fmt.Sprint("p", i)
			if _, err := c.Start(t.Context(), shell(id, fmt.Sprintf("exit %d", i))); err != nil {
				t.Error(err)
				return
			}
			<-c.Done(id)
			if s, err := c.Get(t.Context(), id); err != nil || s.Code != i {
				t.Errorf("%s: %+v, %v", id, s, err)
			}
		})
	}
	group.Wait()
}

func TestStartIsIdempotent(t *testing.T) {
	c, dir := open(t)
	count := filepath.Join(dir, "count")
	var group sync.WaitGroup
	var pids sync.Map
	for range 10 {
		group.Go(func() {
			s, err := c.Start(t.Context(), shell("one", "echo >> "+count+"; cat; read x < /dev/tty"))
			if err != nil {
				t.Error(err)
			}
			pids.Store(s.PID, true)
		})
	}
	group.Wait()
	got := 0
	pids.Range(func(any, any) bool { got++; return true })
	if got != 1 {
		t.Errorf("10 starts of one ID gave %d processes", got)
	}
	wait(t, c, "one")
	if s := start(t, c, shell("one", "exit 0")); s.Ended.IsZero() {
		t.Error("an ended process was started again without being forgotten")
	}
	for range 2 {
		if err := c.Forget(t.Context(), "one"); err != nil {
			t.Fatal(err)
		}
	}
	if s := start(t, c, shell("one", "exit 3")); !s.Ended.IsZero() {
		t.Error("a forgotten process is still known")
	}
	if s := wait(t, c, "one"); s.Code != 3 {
		t.Errorf("the second of that ID ended as %+v", s)
	}
}

func TestRefusals(t *testing.T) {
	c, dir := open(t)
	for name, s := range map[string]keeper.Spec{
		"no id":         {Args: []string{"/bin/true"}},
		"relative path": {ID: "x", Args: []string{"true"}},
		"no program":    {ID: "x", Args: []string{"/nonexistent"}},
		"no log dir":    {ID: "x", Args: []string{"/bin/true"}, Log: dir + "/none/log"},
		"no file":       {ID: "x", Args: []string{"/bin/true"}, Files: []keeper.File{{Path: dir + "/none"}}},
		"no cgroup":     {ID: "x", Args: []string{"/bin/true"}, Cgroup: "croft-test-none/x/guest"},
		"no tap":        {ID: "x", Args: []string{"/bin/true"}, Files: []keeper.File{{Tap: "none0"}}},
		"bad pid file":  {ID: "x", Args: []string{"/bin/true"}, PIDFile: dir + "/pid"},
	} {
		t.Run(name, func(t *testing.T) {
			if st, err := c.Start(t.Context(), s); err == nil {
				t.Errorf("started: %+v", st)
			}
			if _, err := c.Get(t.Context(), "x"); !errors.Is(err, keeper.ErrUnknown) {
				t.Errorf("Get: %v", err)
			}
		})
	}
	if err := c.Signal(t.Context(), "x", unix.SIGTERM); !errors.Is(err, keeper.ErrUnknown) {
		t.Errorf("Signal: %v", err)
	}
	if _, err := c.Attach(t.Context(), "x", nil); !errors.Is(err, keeper.ErrUnknown) {
		t.Errorf("Attach: %v", err)
	}
	select {
	case <-c.Done("x"):
	case <-time.After(10 * time.Second):
		t.Error("Done of an unknown process stays open")
	}
	start(t, c, shell("running", "exec tail -f /dev/null"))
	if err := c.Forget(t.Context(), "running"); !errors.Is(err, keeper.ErrRunning) {
		t.Errorf("Forget of a running process: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	hung := shell("hung", "exec tail -f /dev/null")
	hung.PIDFile = filepath.Join(dir, "hung.pid")
	if _, err := c.Start(ctx, hung); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("start of a command that hangs: %v", err)
	}
	if _, err := c.Get(t.Context(), "hung"); !errors.Is(err, keeper.ErrUnknown) {
		t.Errorf("Get after the command was ended: %v", err)
	}
}

func TestLogIsBounded(t *testing.T) {
	c, dir := open(t)
	s := shell("log", "i=0; while [ $i -lt 5000 ]; do i=$((i+1)); echo line $i; done")
	s.Log, s.LogLimit = filepath.Join(dir, "log"), 10_000
	start(t, c, s)
	wait(t, c, "log")
	var all string
	for _, path := range []string{s.Log + ".1", s.Log} {
		b, err := os.ReadFile(path)
		if err != nil || int64(len(b)) > s.LogLimit {
			t.Errorf("%s holds %d bytes, %v", path, len(b), err)
		}
		all += string(b)
	}
	if !strings.HasSuffix(all, "line 4999\nline 5000\n") || !strings.Contains(all, "line 4500\n") {
		t.Errorf("the logs end with %q", all[max(0, len(all)-100):])
	}
	// An ended process' last output can still be seen.
	if rest, err := io.ReadAll(attach(t, c, "log", nil)); err != nil || !strings.HasSuffix(string(rest), "line 5000\n") {
		t.Errorf("attached after the end: %d bytes, %v", len(rest), err)
	}
}

// Standard error that goes to a file leaves the last of it, never much, and goes on under the next keeper.
func TestStderrIsBounded(t *testing.T) {
	c, dir := open(t)
	gate := []string{filepath.Join(dir, "gate0"), filepath.Join(dir, "gate1")}
	for _, fifo := range gate {
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log := filepath.Join(dir, "stderr")
	s := shell("stderr", "until [ -s "+log+".1 ]; do head -c 300000 /dev/zero >&2; done; until grep -q mark "+log+"; do echo mark >&2; done; echo flooded; "+
		"read x < "+gate[0]+"; echo alone >&2; echo said; read x < "+gate[1]+"; echo last >&2")
	s.Terminal, s.Stderr = true, log
	running := start(t, c, s)
	expect(t, attach(t, c, "stderr", nil), "flooded")
	for _, path := range []string{log, log + ".1"} {
		if info, err := os.Stat(path); err != nil || info.Size() > keeper.StderrLimit {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}

	killKeeper(t, running.PID)
	open := func(fifo string) {
		if err := os.WriteFile(fifo, []byte("\n"), 0); err != nil {
			t.Error(err)
		}
	}
	open(gate[0])
	if _, err := c.Get(t.Context(), "stderr"); err != nil { // there is another keeper
		t.Fatal(err)
	}
	expect(t, attach(t, c, "stderr", nil), "said")
	open(gate[1])
	wait(t, c, "stderr")
	if text, err := os.ReadFile(log); !strings.HasSuffix(string(text), "alone\nlast\n") {
		t.Errorf("it ends with %q, %v", text[max(0, len(text)-20):], err)
	}
}

func TestSlowClientDoesNotBlock(t *testing.T) {
	c, _ := open(t)
	s := shell("flood", "read x; head -c 20000000 /dev/zero; echo; echo end")
	s.Terminal = true
	start(t, c, s)
	slow := attach(t, c, "flood", nil) // never read until the process has ended
	fmt.Fprintln(slow, "")
	if got := wait(t, c, "flood"); got.Code != 0 {
		t.Errorf("status %+v", got)
	}
	if n, _ := io.Copy(io.Discard, slow); n > 2<<20 {
		t.Errorf("%d bytes were kept for a client that did not read", n)
	}
}

func TestScore(t *testing.T) {
	c, _ := open(t)
	s := shell("scored", "exec cat")
	s.Terminal, s.OOMScore = true, 700
	pid := start(t, c, s).PID
	if got, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid)); string(got) != "700\n" {
		t.Errorf("its score is %q, %v", got, err)
	}
}

func TestStreams(t *testing.T) {
	c, dir := open(t)
	input := filepath.Join(dir, "input")
	if err := os.WriteFile(input, []byte("inherited"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := shell("streams", "cat; echo out; echo err >&2; cat <&3; echo $FOO; pwd; id -u; id -G; hostname >/dev/null; ls /sys/class/net | wc -l; cat /proc/self/oom_score_adj")
	s.Env = append(s.Env, "FOO=bar")
	s.Dir, s.User, s.Group, s.Groups, s.Isolate = "/usr", 70001, 70002, []uint32{70003}, true
	s.Stderr, s.Log = filepath.Join(dir, "stderr"), filepath.Join(dir, "log")
	s.Files = []keeper.File{{Path: input}}
	s.Args[2] = strings.Replace(s.Args[2], "ls /sys/class/net | wc -l", "grep -c : /proc/net/dev", 1)
	start(t, c, s)
	if got := wait(t, c, "streams"); got.Code != 0 {
		t.Errorf("status %+v", got)
	}
	score, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	want := "out\ninheritedbar\n/usr\n70001\n70002 70003\n1\n" + string(score)
	if log, err := os.ReadFile(s.Log); string(log) != want {
		t.Errorf("log %q, %v, want %q", log, err, want)
	}
	if log, err := os.ReadFile(s.Stderr); string(log) != "err\n" {
		t.Errorf("stderr %q, %v", log, err)
	}
}

// What a process inherits blocks: the keeper's own ends alone do not.
func TestInheritedFilesBlock(t *testing.T) {
	c, dir := open(t)
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, terminal := range []bool{false, true} {
		s := shell(fmt.Sprint("blocks", terminal), "for fd in 0 1 2 3; do grep flags /proc/self/fdinfo/$fd; done")
		s.Terminal, s.Log = terminal, filepath.Join(dir, fmt.Sprint(terminal))
		s.Files = []keeper.File{{Path: filepath.Join(dir, "fifo")}}
		start(t, c, s)
		wait(t, c, s.ID)
		log, err := os.ReadFile(s.Log)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(string(log)), "\n")
		if len(lines) != 4 {
			t.Fatalf("log %q", log)
		}
		for fd, line := range lines {
			var flags int
			if _, err := fmt.Sscanf(line, "flags: %o", &flags); err != nil || flags&unix.O_NONBLOCK != 0 {
				t.Errorf("terminal %v: descriptor %d has %q, %v", terminal, fd, line, err)
			}
		}
	}
}

func TestCgroup(t *testing.T) {
	c, dir := open(t)
	if _, err := cgroup.Detect(); err != nil {
		t.Skip(err)
	}
	tree, err := cgroup.New(fmt.Sprintf("croft-test-%08x", rand.Uint32()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(tree.Kill(ctx, ""), tree.Remove(ctx, "")); err != nil {
			t.Error(err)
		}
	})
	if err := tree.Set("server", cgroup.Limits{PIDs: 50}); err != nil {
		t.Fatal(err)
	}
	s := shell("in", "cat /proc/self/cgroup; exec tail -f /dev/null")
	s.Cgroup, s.Log = tree.Path("server")+"/guest", filepath.Join(dir, "log")
	s.Ready = "0::/"
	status := start(t, c, s)
	if out, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", status.PID)); err != nil || !strings.Contains(string(out), "/"+s.Cgroup) {
		t.Errorf("started in %s, %v", out, err)
	}
	// The keeper's own threads are all where they were.
	own, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", keeperPID(t, status.PID)))
	if err != nil || strings.Contains(string(own), "croft-test") {
		t.Errorf("the keeper is in %s, %v", own, err)
	}
	if err := tree.Kill(t.Context(), "server"); err != nil {
		t.Fatal(err)
	}
	if got := wait(t, c, "in"); got.Signal != int(unix.SIGKILL) {
		t.Errorf("killed with its cgroup: %+v", got)
	}
	// Killing a server's group again and again while processes start in it never hits the keeper.
	stop := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				tree.Kill(t.Context(), "server")
			}
		}
	})
	before := keeperOf(t, c)
	for i := range 30 {
		s := shell(fmt.Sprint("n", i), "exit 0")
		s.Cgroup = tree.Path("server") + "/guest"
		for {
			_, err := c.Start(t.Context(), s)
			if err == nil {
				break
			}
			if !strings.Contains(err.Error(), "is frozen") { // Kill freezes what it can't catch otherwise
				t.Fatal(err)
			}
		}
		wait(t, c, s.ID)
	}
	close(stop)
	group.Wait()
	if after := keeperOf(t, c); after != before {
		t.Error("the keeper was killed with a group that it started something in")
	}
	if err := tree.Remove(t.Context(), "server"); err != nil {
		t.Error(err)
	}
}

// A keeper that has a group of its own is in it in every hierarchy: no service manager ends it with its daemon.
func TestKeeperInItsOwnCgroup(t *testing.T) {
	if _, err := cgroup.Detect(); err != nil || os.Geteuid() != 0 {
		t.Skipf("needs root and cgroups: %v", err)
	}
	dir, err := os.MkdirTemp("/tmp", "ck")
	if err != nil {
		t.Fatal(err)
	}
	parent := fmt.Sprintf("croft-test-%08x", rand.Uint32())
	tree, err := cgroup.New(parent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		closeAll(t, dir)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(tree.Kill(ctx, ""), tree.Remove(ctx, ""), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	c, err := keeper.Connect(t.Context(), dir, keeper.Options{CgroupPath: tree.Path("keeper")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := start(t, c, shell("x", "exec tail -f /dev/null"))
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", keeperPID(t, s.PID)))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(groups)) {
		if !strings.HasSuffix(line, ":/"+tree.Path("keeper")+"\n") {
			t.Errorf("the keeper is in %q", line)
		}
	}
}

func keeperOf(t *testing.T, c *keeper.Client) int {
	id := fmt.Sprint("probe", rand.Uint64())
	s := start(t, c, shell(id, "exec tail -f /dev/null"))
	pid := keeperPID(t, s.PID)
	if err := c.Signal(t.Context(), id, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wait(t, c, id)
	return pid
}

func TestTapInNamespace(t *testing.T) {
	c, dir := open(t)
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip(err)
	}
	namespace := filepath.Join(dir, "netns")
	if err := os.WriteFile(namespace, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	done := make(chan struct{})
	go func() { // ends with its thread, whose namespace it has changed
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return
		}
		if err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), namespace, "", unix.MS_BIND, ""); err != nil {
			return
		}
		err = netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap7"}, Mode: netlink.TUNTAP_MODE_TAP, Owner: 0})
	}()
	<-done
	t.Cleanup(func() { unix.Unmount(namespace, unix.MNT_DETACH) })
	if err != nil {
		t.Fatal(err)
	}
	s := shell("tap", "cat /proc/self/fdinfo/3; grep -c : /proc/net/dev")
	s.Isolate, s.User, s.Group, s.Log = true, 70001, 70001, filepath.Join(dir, "log")
	s.Files = []keeper.File{{NetNS: namespace, Tap: "tap7", VnetHdr: true}}
	start(t, c, s)
	wait(t, c, "tap")
	log, err := os.ReadFile(s.Log)
	if err != nil || !strings.Contains(string(log), "iff:\ttap7\n") || !strings.HasSuffix(string(log), "\n1\n") {
		t.Errorf("inherited %q, %v", log, err)
	}
	s.ID, s.Files[0].Tap = "other", "tap8"
	if _, err := c.Start(t.Context(), s); err == nil {
		t.Error("a tap was made that did not exist")
	}
}

func TestShutdown(t *testing.T) {
	c, dir := open(t)
	start(t, c, shell("x", "exit 4"))
	wait(t, c, "x")
	if err := c.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s, err := connect(t, dir).Get(t.Context(), "x"); err != nil || s.Code != 4 {
		t.Errorf("after a restart: %+v, %v", s, err)
	}
}

// A keeper whose directory is removed can't be reached: it ends with its last process.
func TestDirectoryRemoved(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "ck")
	if err != nil {
		t.Fatal(err)
	}
	c, err := keeper.Connect(t.Context(), dir, keeper.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, c, shell("last", "exec tail -f /dev/null"))
	fd, err := unix.PidfdOpen(keeperPID(t, s.PID), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	c.Close()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(s.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); n != 1 {
		t.Errorf("the keeper lives on: %v", err)
	}
}

// BenchmarkStart is a process started by the keeper, and waited for, in ways that engines use; BenchmarkFork is the
// same without a keeper. start-ns/op is the time until Start returns.
func BenchmarkStart(b *testing.B) {
	c, _ := open(b)
	tree, err := cgroup.New(fmt.Sprintf("croft-test-%08x", rand.Uint32()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { tree.Remove(context.Background(), "") })
	if err := tree.Set("s", cgroup.Limits{}); err != nil {
		b.Fatal(err)
	}
	i := 0
	for _, bench := range []struct {
		name string
		spec keeper.Spec
	}{
		{"plain", keeper.Spec{}},
		{"cgroup", keeper.Spec{Cgroup: tree.Path("s") + "/guest"}},
		{"terminal", keeper.Spec{Terminal: true}},
		{"isolated", keeper.Spec{Isolate: true}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			var starting time.Duration
			for b.Loop() {
				s := bench.spec
				s.ID, s.Args = fmt.Sprint("p", i), []string{"/bin/true"}
				i++
				began := time.Now()
				start(b, c, s)
				starting += time.Since(began)
				<-c.Done(s.ID)
			}
			b.ReportMetric(float64(starting)/float64(b.N), "start-ns/op")
		})
	}
}

// BenchmarkGet is a request that costs the keeper nothing.
func BenchmarkGet(b *testing.B) {
	c, _ := open(b)
	start(b, c, shell("x", "exit 0"))
	for b.Loop() {
		if _, err := c.Get(b.Context(), "x"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFork(b *testing.B) {
	for b.Loop() {
		pid, err := syscall.ForkExec("/bin/true", []string{"/bin/true"}, &syscall.ProcAttr{})
		if err != nil {
			b.Fatal(err)
		}
		var w syscall.WaitStatus
		syscall.Wait4(pid, &w, 0, nil)
	}
}
