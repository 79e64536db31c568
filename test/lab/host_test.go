package lab

import (
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
	"github.com/croftproject/croft/test/world"
)

const (
	unit     = "croft.service"
	deb      = "/lab/croft.deb"
	stateDir = "/var/lib/croft"
	runDir   = "/run/croft"
	groups   = "/sys/fs/cgroup/croft"
)

// host is the machine that the tests run on, with a client of its daemon.
func host(t *testing.T) *world.World {
	t.Helper()
	if os.Getenv("CROFT_LAB") == "" {
		t.Skip("runs in the lab guest: make test-lab")
	}
	c, err := client.New(client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return &world.World{Client: c, StateDir: stateDir, RunDir: runDir}
}

// run runs a command that must succeed, and returns what it prints.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := try(name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func try(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// serves fails the test where systemd does not have the daemon up and ready.
func serves(t *testing.T) {
	t.Helper()
	if out, err := try("systemctl", "is-active", unit); err != nil {
		log, _ := try("journalctl", "-u", unit, "-n", "50", "--no-pager", "-o", "cat")
		t.Fatalf("%s is %s\n%s", unit, out, log)
	}
}

func mainPID(t *testing.T) string {
	t.Helper()
	return run(t, "systemctl", "show", "-P", "MainPID", unit)
}

// processes of each server's groups, by server id.
func processes(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	files, err := filepath.Glob(filepath.Join(groups, "*", "guest", "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		pids, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		id := filepath.Base(filepath.Dir(filepath.Dir(file)))
		all[id] = strings.Fields(string(pids))
		slices.SortFunc(all[id], func(a, b string) int { // as numbers
			return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
		})
	}
	return all
}

// first is the process of each server that was started first: its init, or its engine.
func first(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for id, pids := range processes(t) {
		if len(pids) == 0 {
			t.Fatalf("server %s has no process", id)
		}
		out[id] = pids[0]
	}
	return out
}

func engines(t *testing.T, w *world.World) map[string]api.EngineStatus {
	t.Helper()
	hosts, err := w.Hosts().Page(t.Context(), client.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(hosts.Items) != 1 {
		t.Fatalf("%d hosts, want this one", len(hosts.Items))
	}
	if got := hosts.Items[0].Status.Cgroups; got != "v2" {
		t.Errorf("control groups are %s, want v2", got)
	}
	all := map[string]api.EngineStatus{}
	for _, e := range hosts.Items[0].Status.Engines {
		all[e.Name] = e
	}
	return all
}
