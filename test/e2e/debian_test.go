package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/test/world"
)

// debianPatience is how long building the image may take, and booting it where each instruction is emulated.
const debianPatience = 10 * time.Minute

// TestDebian boots Debian 12 to a login under each of the three models, from specs that differ in the model only.
func TestDebian(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes: not in short mode")
	}
	usual := world.Patience
	world.Patience = debianPatience
	t.Cleanup(func() { world.Patience = usual })
	w := world.New(t, world.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), debianPatience)
	defer cancel()
	job, err := w.Client.Build(ctx, world.Tenant, "debian-12", "debian-12", true)
	if err != nil {
		t.Fatalf("build debian-12: %v", err)
	}
	if job = w.Job(t, job); job.Status.Phase != api.JobDone {
		t.Fatalf("build debian-12: %s", job.Status.Error)
	}
	w.Network(t, "lan", "10.9.0.0/24")
	for _, model := range api.Models {
		spec := onLAN(api.ServerSpec{
			Model: model, Image: "debian-12", CPU: api.CPU{Entitlement: 500}, Memory: api.Memory{Limit: 512 * api.MiB},
			Guest: &api.Guest{Users: []api.GuestUser{{
				Name: "ada", Sudo: true, // the password is "croft"
				PasswordHash: "$6$croftcroft$UqLl2smHU2RYnJYQjyvsUvnWXNPV5mct/7GQkFfx7YW5Spy1b4MNk7nfJINY21WvsjcMJLyinCYw.W9WRdDJo1",
			}}},
		})
		w.Create(t, "deb-"+string(model), spec)
	}
	shells := map[api.Model]*shell{}
	for _, model := range api.Models { // they boot at the same time
		shells[model] = logIn(t, w, "deb-"+string(model))
	}
	for from, s := range shells {
		if host := s.ok("hostname"); host != "deb-"+string(from) {
			t.Errorf("model %s: its hostname is %q", from, host)
		}
		if release := s.ok("grep VERSION_ID /etc/os-release"); !strings.Contains(release, `"12"`) {
			t.Errorf("model %s: release %q", from, release)
		}
		for to := range shells {
			s.ok(fmt.Sprintf("exec 3<>/dev/tcp/deb-%s/22 && head -c 4 <&3 | grep SSH-", to))
		}
	}
}

// logIn waits for a server's login prompt, logs in there, and returns the shell.
func logIn(t *testing.T, w *world.World, name string) *shell {
	t.Helper()
	up := w.Ready(t, name)
	t.Logf("%s, engine %s: login prompt %.1f s after its start", name, up.Status.Engine, up.Status.Ready.Sub(up.Status.Started).Seconds())
	s := attachTo(t, w, name)
	for _, step := range []struct{ prompt, answer string }{
		{`login: `, "ada\r"}, {`Password: `, "croft\r"}, {`ada@` + name + `:.*\$ `, "bind 'set enable-bracketed-paste off'\r"},
	} {
		if s.await(step.prompt, world.Patience) == nil {
			t.Fatalf("the console of %s shows no %q:\n%s", name, step.prompt, s.text())
		}
		s.send(step.answer)
	}
	return s
}
