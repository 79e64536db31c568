package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
	"github.com/croftproject/croft/test/world"
)

// faultd builds the daemon with a fault in it.
var faultd = sync.OnceValues(func() (string, error) {
	if built := os.Getenv("CROFT_FAULTD"); built != "" {
		return built, nil
	}
	path := filepath.Join(os.TempDir(), "croft-faultd")
	build := exec.Command("go", "build", "-o", path, "github.com/croftproject/croft/test/faultd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		os.Stderr.Write(out)
		return "", err
	}
	return path, nil
})

// acts of a server's life, the phase that each begins in, and the steps that it takes, as internal/agent names them.
var acts = []struct {
	name  string
	from  api.Phase
	steps []string
}{
	{"create", "", []string{"prepare", "root", "ports", "cgroup", "launch", "remember"}},
	{"start", api.PhaseStopped, []string{"prepare", "root", "ports", "cgroup", "launch", "remember"}},
	{"stop", api.PhaseRunning, []string{"shutdown", "release", "detach ports", "close volume", "remove cgroup"}},
	{"delete", api.PhaseRunning, []string{"shutdown", "release", "clean up", "detach ports", "close volume", "remove cgroup", "delete volume", "finish deletion"}},
}

// TestFaults fails each step of each act once, and ends the daemon before each of them. What was begun is finished, and
// nothing is left.
func TestFaults(t *testing.T) {
	w := world.New(t, world.Options{})
	binary, err := faultd()
	if err != nil {
		t.Fatalf("build the daemon with a fault: %v", err)
	}
	w.BuildMicro(t)
	w.Network(t, "lan", "10.9.0.0/24")
	for _, k := range kinds {
		for _, a := range acts {
			for _, step := range a.steps {
				whole := k.engine == "runc"
				// The other steps are the same for every engine, and microvm is qemu's code.
				own := a.name == "create" && (step == "launch" || step == "remember") || a.name == "stop" && (step == "shutdown" || step == "release")
				if !whole && (!own || k.engine == "microvm") {
					continue
				}
				for _, how := range []string{"kill", "fail"} {
					if !whole && how == "fail" {
						continue
					}
					t.Run(k.engine+"/"+a.name+"/"+step+"/"+how, func(t *testing.T) {
						testFault(t, w, binary, fault{k.engine, k.model, a.name, a.from, how, step})
					})
				}
			}
		}
	}
}

// fault is one of the table: how a step of an act goes wrong.
type fault struct {
	engine string
	model  api.Model
	act    string
	from   api.Phase
	how    string
	step   string
}

func testFault(t *testing.T, w *world.World, binary string, f fault) {
	began := len(w.Log())
	t.Cleanup(func() { // the next test begins on a clean host, whatever became of this one
		if t.Failed() {
			t.Logf("log of the daemon:\n%s", w.Log()[began:])
			w.Kill(t)
			w.Use("")
			w.Start(t)
			ctx, cancel := context.WithTimeout(context.Background(), world.Patience)
			defer cancel()
			w.DeleteAll(t, ctx)
		}
	})
	spec := onLAN(small(f.model, f.engine))
	spec.StopTimeout = api.Duration(5 * time.Second)
	if f.from != "" {
		w.Run(t, "fault", spec)
	}
	if f.from == api.PhaseStopped {
		power(t, w, "fault", api.PowerStop)
		w.Phase(t, "fault", api.PhaseStopped)
	}
	w.Stop(t)
	w.Use(binary, "CROFT_FAULT="+f.how+":"+f.step)
	w.Start(t)
	died := w.Died()
	// What counts is what becomes of the server, not whether there is an answer: the daemon may end before it has given one.
	ctx, cancel := context.WithTimeout(t.Context(), world.Patience)
	defer cancel()
	switch f.act {
	case "create":
		w.Servers(world.Tenant).Create(ctx, client.Create[api.ServerSpec]{Name: "fault", Spec: spec})
	case "start":
		w.Power(ctx, world.Tenant, "fault", api.PowerStart, false)
	case "stop":
		w.Power(ctx, world.Tenant, "fault", api.PowerStop, false)
	case "delete":
		w.Servers(world.Tenant).Delete(ctx, "fault", client.DeleteOptions{Force: true})
	}
	if f.how == "kill" {
		select {
		case <-died:
		case <-ctx.Done():
			t.Fatal("the step was never reached")
		}
		w.Kill(t)
		w.Use("")
		w.Start(t)
	}
	switch f.act {
	case "create", "start":
		w.Ready(t, "fault")
	case "stop":
		w.Phase(t, "fault", api.PhaseStopped)
	}
	w.Remove(t, "fault")
	w.NoTrace(t)
	if f.how == "fail" && !strings.Contains(w.Log()[began:], "a fault was put before "+f.step) {
		t.Error("the step was never reached")
	}
	w.Use("")
}
