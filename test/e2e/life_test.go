package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
	"github.com/croftproject/croft/test/world"
)

// kinds are the engines, with the spec of a server that each runs.
var kinds = []struct {
	engine string
	model  api.Model
}{{"runc", api.ModelOS}, {"uml", api.ModelPara}, {"microvm", api.ModelPara}, {"qemu", api.ModelFull}}

// small is a server that takes little of the host.
func small(model api.Model, engine string) api.ServerSpec {
	return api.ServerSpec{
		Model: model, Engine: engine, Image: world.Micro,
		Memory: api.Memory{Limit: 128 * api.MiB}, Disk: api.Disk{Size: 128 * api.MiB},
		StopTimeout: api.Duration(20 * time.Second),
	}
}

func onLAN(s api.ServerSpec) api.ServerSpec {
	s.Ports = []api.Port{{Network: "lan"}}
	return s
}

// testLife takes a server of each engine through its whole life; all reach each other by name meanwhile.
func testLife(t *testing.T, w *world.World) {
	for _, k := range kinds {
		w.Create(t, "life-"+k.engine, onLAN(small(k.model, k.engine)))
	}
	for _, k := range kinds {
		began := time.Now()
		s := w.Ready(t, "life-"+k.engine)
		t.Logf("%s: ready after %v, in its request's time %v", k.engine, time.Since(began), s.Status.Ready.Sub(s.Created))
		if s.Status.Engine != k.engine || s.Status.Message != "" {
			t.Errorf("%s runs on engine %q: %s", s.Name, s.Status.Engine, s.Status.Message)
		}
	}
	t.Run("names", func(t *testing.T) {
		for _, k := range kinds {
			t.Run(k.engine, func(t *testing.T) { testNames(t, w, "life-"+k.engine) })
		}
	})
	for _, k := range kinds {
		t.Run(k.engine, func(t *testing.T) {
			t.Parallel()
			testOne(t, w, "life-"+k.engine, k.engine)
		})
	}
}

// testNames asks every server by its name from one.
func testNames(t *testing.T, w *world.World, name string) {
	sh := attach(t, w, name)
	for _, k := range kinds {
		peer := "life-" + k.engine
		// A lease may come a moment after userspace is up.
		if got := sh.ok("until wget -q -O - http://" + peer + "/cgi-bin/index.cgi 2>/dev/null; do :; done"); got != peer {
			t.Errorf("%s asked %s who it is: %q", name, peer, got)
		}
	}
	testSpoofing(t, w, sh, name)
}

// testSpoofing has a guest send from an address that it was not given.
func testSpoofing(t *testing.T, w *world.World, sh *shell, name string) {
	peer := kinds[0].engine
	if name == "life-"+peer {
		peer = kinds[1].engine
	}
	own, other := w.Get(t, name).Status.Ports[0], w.Get(t, "life-"+peer).Status.Ports[0]
	free := other.Address.As4()
	free[3] = 250
	foreign := netip.AddrFrom4(free)
	sh.ok(fmt.Sprintf("ping -c 1 -W 5 -I %s %s", own.Address, other.Address))
	sh.ok(fmt.Sprintf("ip addr add %s/%d dev eth0", foreign, own.Prefix))
	sh.ok(fmt.Sprintf("! ping -c 1 -W 1 -I %s %s", foreign, other.Address))
	sh.ok(fmt.Sprintf("ip addr del %s/%d dev eth0", foreign, own.Prefix))
}

func testOne(t *testing.T, w *world.World, name, engine string) {
	testConsole(t, w, name)
	testStreams(t, w, name, engine)
	testPause(t, w, name)
	before := w.Get(t, name)
	testStop(t, w, name)
	testRename(t, w, name)
	power(t, w, name, api.PowerStart)
	s := w.Ready(t, name)
	if s.Status.Ports[0] != before.Status.Ports[0] {
		t.Errorf("the port was %+v, and after a stop and a start it is %+v", before.Status.Ports[0], s.Status.Ports[0])
	}
	if sh := attach(t, w, name); !strings.Contains(sh.ok("cat /root/kept"), "kept") {
		t.Error("what was written to the root disk is gone after a stop and a start")
	}
	power(t, w, name, api.PowerRestart)
	w.Wait(t, name, "restarted", func(n *api.Server) bool {
		return n.Status.Phase == api.PhaseRunning && n.Status.Started.After(s.Status.Started) && !n.Status.Ready.IsZero()
	})
	testDelete(t, w, name)
	events(t, w, before.ID, "Created", "Started", "Exited", "Deleted")
}

func power(t *testing.T, w *world.World, name string, a api.PowerAction) {
	t.Helper()
	if _, err := w.Power(t.Context(), world.Tenant, name, a, false); err != nil {
		t.Fatalf("%s %s: %v", a, name, err)
	}
}

func testConsole(t *testing.T, w *world.World, name string) {
	sh := attach(t, w, name)
	if got := sh.ok("hostname"); got != name {
		t.Errorf("the guest's host name is %q, want %q", got, name)
	}
	sh.ok("echo kept >/root/kept; sync; left=here")
	sh.detach()
	sh = attach(t, w, name)
	if got := sh.ok("echo $left"); got != "here" {
		t.Errorf("after it was detached from, the console's shell is another one: %q", got)
	}
	sh.detach()
	if log := w.Console(name); !strings.Contains(log, "croft: ready") || !strings.Contains(log, "mark-end") {
		t.Errorf("the console's log is %q", log)
	}
}

// testStreams checks exec and display: what the engine can, and the problem of what it can't.
func testStreams(t *testing.T, w *world.World, name, engine string) {
	if engine == "runc" {
		testExec(t, w, name)
	} else {
		_, err := w.Client.Exec(t.Context(), world.Tenant, name, client.Exec{Args: []string{"true"}})
		wantCode(t, err, api.CodeUnsupported, "")
	}
	display, err := w.Client.Display(t.Context(), world.Tenant, name)
	if engine != "qemu" {
		wantCode(t, err, api.CodeUnsupported, "")
		return
	}
	if err != nil {
		t.Fatalf("connect to the display: %v", err)
	}
	defer display.Close()
	hello := make([]byte, 12)
	if n, err := display.Read(hello); err != nil || !strings.HasPrefix(string(hello[:n]), "RFB 003.") {
		t.Errorf("the display says %q, %v", hello[:n], err)
	}
}

// testPause halts the guest: it makes no progress on its console until it is resumed.
func testPause(t *testing.T, w *world.World, name string) {
	power(t, w, name, api.PowerPause)
	w.Phase(t, name, api.PhasePaused)
	sh := attach(t, w, name)
	sh.send("echo progress-\"\"made\r")
	if sh.await("progress-made", 500*time.Millisecond) != nil {
		t.Error("a paused guest goes on")
	}
	power(t, w, name, api.PowerResume)
	w.Phase(t, name, api.PhaseRunning)
	if sh.await("progress-made", world.Patience) == nil {
		t.Errorf("a resumed guest does not go on:\n%s", sh.text())
	}
	sh.detach()
}

func testStop(t *testing.T, w *world.World, name string) {
	began := time.Now()
	power(t, w, name, api.PowerStop)
	s := w.Phase(t, name, api.PhaseStopped)
	took, limit := time.Since(began), time.Duration(s.Spec.StopTimeout)
	t.Logf("%s: stopped after %v", name, took)
	if s.Status.Exit == nil || s.Status.Exit.Reason != "asked" || took >= limit {
		t.Errorf("a stop took %v of %v, and ended with %+v", took, limit, s.Status.Exit)
	}
	_, err := w.Client.Console(t.Context(), world.Tenant, name)
	wantCode(t, err, api.CodeWrongState, "")
}

// testRename renames there and back.
func testRename(t *testing.T, w *world.World, name string) {
	servers := w.Servers(world.Tenant)
	s := w.Get(t, name)
	other := name + "-b"
	for _, to := range []string{other, name} {
		got, err := servers.Replace(t.Context(), s.ID, client.Update[api.ServerSpec]{Name: to, Spec: s.Spec})
		if err != nil {
			t.Fatalf("rename %s to %s: %v", name, to, err)
		}
		if got.Name != to || got.ID != s.ID {
			t.Errorf("renamed to %s it is %s, %s", to, got.Name, got.ID)
		}
	}
	if _, err := servers.Get(t.Context(), other); !client.IsNotFound(err) {
		t.Errorf("the name of before is still there: %v", err)
	}
}

func testDelete(t *testing.T, w *world.World, name string) {
	servers := w.Servers(world.Tenant)
	protect := func(on bool) {
		t.Helper()
		patch := map[string]any{"spec": map[string]any{"deleteProtection": on}}
		if _, err := servers.Patch(t.Context(), name, patch, 0); err != nil {
			t.Fatalf("set the delete protection of %s to %v: %v", name, on, err)
		}
	}
	protect(true)
	_, err := servers.Delete(t.Context(), name, client.DeleteOptions{Force: true})
	wantCode(t, err, api.CodeProtected, "")
	protect(false)
	dir := w.StateDir + "/servers/" + w.Get(t, name).ID
	w.Remove(t, name)
	if _, err := servers.Get(t.Context(), name); !client.IsNotFound(err) {
		t.Errorf("get after delete: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", dir, err)
	}
}

// events checks that a server's events tell its story in order.
func events(t *testing.T, w *world.World, id string, reasons ...string) {
	t.Helper()
	var told []string
	for e, err := range w.Events(world.Tenant).List(t.Context(), client.ListOptions{}) {
		if err != nil {
			t.Fatalf("list events: %v", err)
		}
		if e.ObjectID == id {
			told = append([]string{e.Reason}, told...) // the newest comes first
		}
	}
	at := 0
	for _, r := range told {
		if at < len(reasons) && r == reasons[at] {
			at++
		}
	}
	if at < len(reasons) {
		t.Errorf("events tell %v; %q is not there, in order", told, reasons[at])
	}
}

// wantCode checks that an error is a problem with a code and, if pointer is given, with the field at fault.
func wantCode(t testing.TB, err error, code api.Code, pointer string) *api.Problem {
	t.Helper()
	var p *api.Problem
	if !errors.As(err, &p) {
		t.Fatalf("the error is %v, want a problem of code %s", err, code)
	}
	if p.Code != code {
		t.Errorf("the problem is of code %s (%s), want %s", p.Code, p, code)
	}
	if pointer == "" {
		return p
	}
	for _, f := range p.Errors {
		if f.Pointer == pointer {
			return p
		}
	}
	t.Errorf("the problem points to %v, want %s", fmt.Sprint(p.Errors), pointer)
	return p
}
