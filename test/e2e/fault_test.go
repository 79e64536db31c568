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

// acts of a server's life, and the steps that they take, as internal/agent names them.
var acts = []struct {
	name  string
	steps []string
}{
	{"create", []string{"prepare", "root", "ports", "cgroup", "launch"}},
	{"stop", []string{"shutdown", "release", "detach ports", "close volume", "remove cgroup"}},
	{"delete", []string{"shutdown", "release", "clean up", "detach ports", "close volume", "remove cgroup", "delete volume", "finish deletion"}},
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
				if !whole && step != "launch" && step != "shutdown" && step != "release" || k.engine == "microvm" {
					continue // the other steps are the same for every engine, and microvm is qemu's code
				}
				for _, how := range []string{"kill", "fail"} {
					if !whole && (how == "fail" || a.name == "delete") {
						continue
					}
					t.Run(k.engine+"/"+a.name+"/"+step+"/"+how, func(t *testing.T) {
						testFault(t, w, binary, k.engine, k.model, a.name, how, step)
					})
				}
			}
		}
	}
}

func testFault(t *testing.T, w *world.World, binary, engine string, model api.Model, act, how, step string) {
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
	w.Stop(t)
	w.Use(binary, "CROFT_FAULT="+how+":"+step)
	w.Start(t)
	died := w.Died()
	spec := onLAN(small(model, engine))
	spec.StopTimeout = api.Duration(5 * time.Second)
	_, err := w.Servers(world.Tenant).Create(t.Context(), client.Create[api.ServerSpec]{Name: "fault", Spec: spec})
	if err != nil && (act != "create" || how != "kill") { // the daemon may end before it has answered
		t.Fatalf("create: %v", err)
	}
	if act != "create" {
		w.Ready(t, "fault")
	}
	// What counts is what becomes of the server, not whether there is an answer.
	ctx, cancel := context.WithTimeout(t.Context(), world.Patience)
	defer cancel()
	switch act {
	case "stop":
		w.Power(ctx, world.Tenant, "fault", api.PowerStop, false)
	case "delete":
		w.Servers(world.Tenant).Delete(ctx, "fault", client.DeleteOptions{Force: true})
	}
	if how == "kill" {
		select {
		case <-died:
		case <-ctx.Done():
			t.Fatal("the step was never reached")
		}
		w.Kill(t)
		w.Use("")
		w.Start(t)
	}
	switch act {
	case "create":
		w.Ready(t, "fault")
	case "stop":
		w.Phase(t, "fault", api.PhaseStopped)
	}
	w.Remove(t, "fault")
	w.NoTrace(t)
	if how == "fail" && !strings.Contains(w.Log()[began:], "a fault was put before "+step) {
		t.Error("the step was never reached")
	}
}
