package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
	"github.com/croftproject/croft/test/world"
)

// TestSurvival ends the daemon and the keeper in every way while guests of all models run: they go on, and the next
// daemon finds them.
func TestSurvival(t *testing.T) {
	w := world.New(t, world.Options{})
	w.BuildMicro(t)
	w.Network(t, "lan", "10.9.0.0/24")
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = "sur-" + k.engine
		w.Create(t, names[i], onLAN(small(k.model, k.engine)))
	}
	w.Create(t, "sur-victim", small(api.ModelOS, "runc"))
	before := map[string]*api.Server{}
	processes := map[string][]int{}
	for _, name := range append(names, "sur-victim") {
		before[name] = w.Ready(t, name)
		processes[name] = pids(t, w, before[name].ID)
	}
	ticks := tick(t, w, "sur-uml")

	t.Run("daemon killed", func(t *testing.T) {
		w.Kill(t)
		alive(t, names, processes)
		kill(t, processes["sur-victim"]...)
		hear(t, ticks)
		w.Start(t)
		hear(t, ticks)
		again := w.Wait(t, "sur-victim", "started again", func(s *api.Server) bool {
			return s.Status.Phase == api.PhaseRunning && s.Status.Started.After(before["sur-victim"].Status.Started)
		})
		if again.Status.Restarts != 1 {
			t.Errorf("what died meanwhile was restarted %d times", again.Status.Restarts)
		}
		same(t, w, names, before, processes)
	})
	t.Run("daemon restarted", func(t *testing.T) {
		told := streams(t, w, "sur-runc")
		w.Stop(t)
		told()
		alive(t, names, processes)
		hear(t, ticks)
		w.Start(t)
		same(t, w, names, before, processes)
	})
	// What the keeper held of a guest's console is lost with it, and the guest itself is not.
	t.Run("keeper killed", func(t *testing.T) {
		kill(t, keeper(t, w))
		hear(t, ticks)
		alive(t, names, processes)
		w.Stop(t)
		w.Start(t)
		hear(t, ticks)
		unchanged(t, w, names, before, processes)
		if got := w.Output(t, "sur-runc", "hostname"); got != "sur-runc\n" {
			t.Errorf("exec says %q", got)
		}
	})
	for _, name := range names {
		power(t, w, name, api.PowerStop)
	}
	for _, name := range names {
		if s := w.Phase(t, name, api.PhaseStopped); s.Status.Exit == nil || s.Status.Exit.Reason != "asked" {
			t.Errorf("%s ended with %+v", name, s.Status.Exit)
		}
	}
}

// streams runs a process in a server and attaches to its console. What it returns checks that both were told of the
// daemon's stop, and that the process went with it.
func streams(t *testing.T, w *world.World, name string) (told func()) {
	t.Helper()
	id := w.Get(t, name).ID
	before := pids(t, w, id)
	console, err := w.Client.Console(t.Context(), world.Tenant, name)
	if err != nil {
		t.Fatal(err)
	}
	printed, stdout := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, err := w.Client.Exec(t.Context(), world.Tenant, name, client.Exec{Args: []string{"sh", "-c", "echo up; exec sleep 1000"}, Stdout: stdout})
		stdout.CloseWithError(err)
		ended <- err
	}()
	if _, err := bufio.NewReader(printed).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		wantCode(t, <-ended, api.CodeUnavailable, "")
		_, err := io.ReadAll(console)
		wantCode(t, err, api.CodeUnavailable, "")
		if now := pids(t, w, id); !slices.Equal(now, before) {
			t.Errorf("%s has the processes %v, and had %v", name, now, before)
		}
	}
}

// tick has a guest say something ten times a second to a listener outside, over one connection.
func tick(t *testing.T, w *world.World, name string) *bufio.Scanner {
	t.Helper()
	l := w.ListenOutside(t)
	host, port, _ := net.SplitHostPort(l.Addr().String())
	sh := attach(t, w, name)
	sh.ok("until ip route | grep -q default; do usleep 100000; done") // a guest is ready before it has its address
	sh.ok(fmt.Sprintf("{ while usleep 100000; do echo tick; done | nc %s %s; } >/dev/null 2>&1 & :", host, port))
	sh.detach()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	return bufio.NewScanner(c)
}

// hear waits for some ticks.
func hear(t *testing.T, ticks *bufio.Scanner) {
	t.Helper()
	for range 5 {
		if !ticks.Scan() {
			t.Fatalf("the guest's connection broke: %v", ticks.Err())
		}
	}
}

func alive(t *testing.T, names []string, processes map[string][]int) {
	t.Helper()
	for _, name := range names {
		for _, pid := range processes[name][:1] {
			if err := unix.Kill(pid, 0); err != nil {
				t.Errorf("process %d of %s: %v", pid, name, err)
			}
		}
	}
}

// same checks that guests run on, and can be reached.
func same(t *testing.T, w *world.World, names []string, before map[string]*api.Server, processes map[string][]int) {
	t.Helper()
	unchanged(t, w, names, before, processes)
	for _, name := range names {
		sh := attach(t, w, name)
		if got := sh.ok("hostname"); got != name {
			t.Errorf("the console of %s says %q", name, got)
		}
		sh.detach()
	}
	if got := w.Output(t, "sur-runc", "hostname"); got != "sur-runc\n" {
		t.Errorf("exec says %q", got)
	}
}

// unchanged checks that guests run on.
func unchanged(t *testing.T, w *world.World, names []string, before map[string]*api.Server, processes map[string][]int) {
	t.Helper()
	for _, name := range names {
		s := w.Phase(t, name, api.PhaseRunning)
		if !s.Status.Started.Equal(before[name].Status.Started) || s.Status.Ports[0] != before[name].Status.Ports[0] {
			t.Errorf("%s was started %v, port %+v; before %v, %+v", name, s.Status.Started, s.Status.Ports, before[name].Status.Started, before[name].Status.Ports)
		}
		if now := pids(t, w, s.ID); !slices.Contains(now, processes[name][0]) {
			t.Errorf("%s has the processes %v, and had %v", name, now, processes[name])
		}
	}
}

// keeper is the process of the host's keeper.
func keeper(t *testing.T, w *world.World) int {
	t.Helper()
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range all {
		data, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(data), "keeper\x00--dir\x00"+w.RunDir) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			return pid
		}
	}
	t.Fatal("there is no keeper")
	return 0
}

// TestSideBySide runs two daemons on one machine: neither sees nor disturbs the other.
func TestSideBySide(t *testing.T) {
	a, b := world.New(t, world.Options{}), world.New(t, world.Options{})
	for _, w := range []*world.World{a, b} {
		w.BuildMicro(t)
		w.Network(t, "lan", "10.9.0.0/24")
		w.Create(t, "twin", onLAN(small(api.ModelOS, "runc")))
		w.Create(t, "twin-uml", onLAN(small(api.ModelPara, "uml")))
	}
	for _, w := range []*world.World{a, b} {
		w.Ready(t, "twin")
		w.Ready(t, "twin-uml")
	}
	left := b.Get(t, "twin")
	before := pids(t, b, left.ID)
	ticks := tick(t, b, "twin-uml")
	a.Kill(t)
	hear(t, ticks)
	a.Start(t)
	for _, name := range []string{"twin", "twin-uml"} {
		a.Remove(t, name)
	}
	a.NoTrace(t)
	hear(t, ticks)
	if s := b.Get(t, "twin"); s.Status.Phase != api.PhaseRunning || !s.Status.Started.Equal(left.Status.Started) {
		t.Errorf("the other's server is %+v", s.Status)
	}
	if now := pids(t, b, left.ID); !slices.Contains(now, before[0]) {
		t.Errorf("the other's processes are %v, and were %v", now, before)
	}
	if got := b.Output(t, "twin", "wget", "-q", "-O", "-", "http://twin-uml/cgi-bin/index.cgi"); got != "twin-uml\n" {
		t.Errorf("the other's network says %q", got)
	}
}
