package lab

import (
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
	"github.com/croftproject/croft/test/world"
)

// server is one of the story, and the engine that it must get.
type server struct {
	name   string
	engine string
	spec   api.ServerSpec
}

func micro(model api.Model, memory api.Bytes, order int) api.ServerSpec {
	return api.ServerSpec{
		Model: model, Image: "micro", Memory: api.Memory{Limit: memory}, Disk: api.Disk{Size: 256 * api.MiB},
		Ports: []api.Port{{Network: "corp"}}, Autostart: api.Autostart{Order: order},
	}
}

// servers of the story, one of each engine: para's is left to the host, which has KVM. The one of order 1 starts first.
func servers() []server {
	uml := micro(api.ModelPara, 64*api.MiB, 2)
	uml.Engine = "uml"
	return []server{
		{"box", "runc", micro(api.ModelOS, 64*api.MiB, 1)},
		{"para", "microvm", micro(api.ModelPara, 128*api.MiB, 2)},
		{"user", "uml", uml},
		{"full", "qemu", micro(api.ModelFull, 256*api.MiB, 2)},
	}
}

// TestInstalled installs the package, and runs servers that outlive what happens to the daemon.
func TestInstalled(t *testing.T) {
	w := host(t)
	step(t, "install", func(t *testing.T) {
		run(t, "dpkg", "-i", deb)
		serves(t)
		t.Logf("%s", run(t, "croft", "version"))
	})
	step(t, "probes", func(t *testing.T) { probes(t, w) })
	step(t, "image", func(t *testing.T) { run(t, "croft", "image", "build", "micro") })
	step(t, "network", func(t *testing.T) { run(t, "croft", "network", "create", "corp") })
	for _, s := range servers() {
		step(t, "start "+s.name, func(t *testing.T) {
			began := time.Now()
			got := w.Run(t, s.name, s.spec)
			t.Logf("%s to userspace: %.1f s", s.engine, time.Since(began).Seconds())
			if got.Status.Engine != s.engine {
				t.Errorf("engine %s, want %s", got.Status.Engine, s.engine)
			}
			if want := map[string]string{"qemu": "kvm", "microvm": "kvm"}[s.engine]; got.Status.Accelerator != want {
				t.Errorf("accelerator %q, want %q", got.Status.Accelerator, want)
			}
		})
	}
	step(t, "reach by name", func(t *testing.T) { reach(t, w) })
	step(t, "limits", func(t *testing.T) { limits(t, w) })
	for _, act := range []struct {
		name string
		do   func(t *testing.T)
	}{
		{"restart", func(t *testing.T) { run(t, "systemctl", "restart", unit) }},
		{"kill -9", crash},
		{"upgrade", func(t *testing.T) { run(t, "dpkg", "-i", deb) }},
		{"removal", refusedRemoval},
	} {
		step(t, act.name+" leaves guests running", func(t *testing.T) { survive(t, w, act.do) })
	}
	step(t, "before the reboot", func(t *testing.T) {
		w.Output(t, "box", "sh", "-c", "echo kept >/root/kept; sync")
		never := micro(api.ModelOS, 32*api.MiB, 0)
		never.Autostart.Policy = api.AutostartNever
		w.Run(t, "never", never)
		w.Run(t, "stopped", micro(api.ModelOS, 32*api.MiB, 0))
		run(t, "croft", "server", "stop", "stopped")
	})
}

// step is a part of the story; what follows a failed one makes no sense.
func step(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	if !t.Run(name, f) {
		t.FailNow()
	}
}

// probes waits for the daemon's report of its engines.
func probes(t *testing.T, w *world.World) {
	all := engines(t, w)
	for _, name := range []string{"runc", "microvm", "uml", "qemu"} {
		if e := all[name]; !e.Available {
			t.Errorf("%s is not available: %s", name, e.Reason)
		}
	}
	for _, name := range []string{"microvm", "qemu"} {
		if e := all[name]; e.Accelerator != "kvm" {
			t.Errorf("accelerator of %s is %q, want kvm: %s", name, e.Accelerator, e.Reason)
		}
	}
}

// reach asks each server's web server for its name, from the os server.
func reach(t *testing.T, w *world.World) {
	for _, s := range servers() {
		if got := w.Output(t, "box", "timeout", "60", "wget", "-qO-", "http://"+s.name+"/"); !strings.Contains(got, s.name) {
			t.Errorf("%s answers %q", s.name, got)
		}
	}
}

// limits looks for the servers' limits in the v2 hierarchy.
func limits(t *testing.T, w *world.World) {
	for _, s := range servers() {
		got, err := w.Servers(world.Tenant).Get(t.Context(), s.name)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{"memory.max", "pids.max"} {
			value, err := os.ReadFile(groups + "/" + got.ID + "/" + file)
			if err != nil || strings.TrimSpace(string(value)) == "max" {
				t.Errorf("%s of %s is %q, %v", file, s.name, value, err)
			}
		}
	}
}

// crash kills the daemon, and waits until systemd has the next one up.
func crash(t *testing.T) {
	before := mainPID(t)
	run(t, "systemctl", "kill", "-s", "KILL", unit)
	look := time.NewTicker(200 * time.Millisecond)
	defer look.Stop()
	for deadline := time.Now().Add(world.Patience); time.Now().Before(deadline); <-look.C {
		if out, err := try("systemctl", "is-active", unit); err == nil && out == "active" && mainPID(t) != before {
			return
		}
	}
	serves(t)
}

// refusedRemoval is what the package answers while servers run.
func refusedRemoval(t *testing.T) {
	out, err := try("dpkg", "-r", "croft")
	if err == nil {
		t.Fatalf("Croft was removed while servers ran:\n%s", out)
	}
	if !strings.Contains(out, "servers run on this host") {
		t.Errorf("the refusal does not say why:\n%s", out)
	}
}

// survive acts on the daemon, and then finds every guest as it was.
func survive(t *testing.T, w *world.World, act func(t *testing.T)) {
	before, daemon := first(t), mainPID(t)
	if len(before) != len(servers()) {
		t.Fatalf("groups of %d servers, want %d", len(before), len(servers()))
	}
	act(t)
	serves(t)
	if mainPID(t) == daemon {
		t.Error("the daemon is the same one")
	}
	if after := first(t); !maps.Equal(before, after) {
		t.Errorf("processes were %v, and are %v", before, after)
	}
	for _, s := range servers() {
		got, err := w.Servers(world.Tenant).Get(t.Context(), s.name)
		if err != nil {
			t.Fatal(err)
		}
		if got.Status.Phase != api.PhaseRunning {
			t.Errorf("%s is %s: %s", s.name, got.Status.Phase, got.Status.Message)
		}
	}
	reach(t, w)
}

// TestRebooted finds the servers up again that should be, in their order, with their data.
func TestRebooted(t *testing.T) {
	w := host(t)
	run(t, "systemctl", "start", unit) // returns once it is ready
	serves(t)
	var begun time.Time
	for _, s := range servers() {
		got := w.Ready(t, s.name)
		t.Logf("%s: started %s, ready %s", s.name, got.Status.Started.Format(time.TimeOnly), got.Status.Ready.Format(time.TimeOnly))
		if s.spec.Autostart.Order == 1 {
			begun = got.Status.Ready
		} else if got.Status.Started.Before(begun) {
			t.Errorf("%s was started before the servers of order 1 were up", s.name)
		}
	}
	if got := w.Output(t, "box", "cat", "/root/kept"); strings.TrimSpace(got) != "kept" {
		t.Errorf("the os server's file holds %q", got)
	}
	reach(t, w)
	for _, name := range []string{"never", "stopped"} {
		w.Phase(t, name, api.PhaseStopped)
	}
	run(t, "croft", "server", "start", "never")
	for s, err := range w.Servers(world.Tenant).List(t.Context(), client.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		if s.Name != "stopped" {
			run(t, "croft", "server", "stop", s.Name)
		}
	}
}
