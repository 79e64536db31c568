package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
	"github.com/croftproject/croft/test/world"
)

// testEnds checks what follows when a guest ends by itself, and what status, conditions and events say of it.
func testEnds(t *testing.T, w *world.World) {
	t.Run("crash", func(t *testing.T) {
		t.Parallel()
		s := w.Run(t, "end-crash", small(api.ModelOS, "runc"))
		kill(t, pids(t, w, s.ID)...)
		down := w.Phase(t, s.Name, api.PhaseBackoff)
		if down.Status.Exit == nil || down.Status.Exit.Code != 137 || down.Status.NextStart.IsZero() || down.Status.Message == "" {
			t.Errorf("after a crash its status is %+v", down.Status)
		}
		up := w.Ready(t, s.Name)
		if up.Status.Restarts != 1 {
			t.Errorf("restarts in a row: %d, want 1", up.Status.Restarts)
		}
		events(t, w, s.ID, "Started", "Exited", "Started")
		w.Remove(t, s.Name)
	})
	t.Run("never", func(t *testing.T) {
		t.Parallel()
		spec := small(api.ModelPara, "uml")
		spec.Restart.Policy = api.RestartNever
		s := w.Run(t, "end-never", spec)
		kill(t, pids(t, w, s.ID)...)
		w.Wait(t, s.Name, "held", func(s *api.Server) bool { return s.Status.Phase == api.PhaseFailed && s.Status.Exit != nil })
		power(t, w, s.Name, api.PowerStart)
		w.Ready(t, s.Name)
		w.Remove(t, s.Name)
	})
	for _, k := range kinds {
		t.Run("poweroff "+k.engine, func(t *testing.T) {
			t.Parallel()
			s := w.Run(t, "end-off-"+k.engine, small(k.model, k.engine))
			attach(t, w, s.Name).send("poweroff\r")
			off := w.Phase(t, s.Name, api.PhaseStopped)
			if off.Status.Exit == nil || off.Status.Exit.Reason != "poweroff" || off.Status.Exit.Code != 0 {
				t.Errorf("powered off inside, it ended with %+v", off.Status.Exit)
			}
			power(t, w, s.Name, api.PowerStart)
			up := w.Ready(t, s.Name)
			testReboot(t, w, up)
			w.Remove(t, s.Name)
		})
	}
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		spec := small(api.ModelOS, "runc")
		spec.Memory.Limit, spec.Restart.Policy = 32*api.MiB, api.RestartNever
		s := w.Run(t, "end-oom", spec)
		// One process that grows is ended; where it is the guest's first, so is the guest.
		code, out := w.Exec(t, s.Name, "sh", "-c", "tail /dev/zero")
		if code != 137 {
			t.Errorf("a process that grows beyond the limit ended with code %d: %s", code, out)
		}
		if n := w.Get(t, s.Name); n.Status.Phase != api.PhaseRunning {
			t.Errorf("with it the server is %s", n.Status.Phase)
		}
		w.Remove(t, s.Name)
	})
}

// testReboot reboots a guest from inside: by a new run of its engine, or, where the machine can be reset, in the same.
func testReboot(t *testing.T, w *world.World, s *api.Server) {
	t.Helper()
	sh := attach(t, w, s.Name)
	before := sh.ok("mount -t tmpfs none /mnt; ls -d /mnt; grep -c . /proc/mounts")
	sh.send("reboot\r")
	if s.Spec.Model == api.ModelFull || s.Status.Engine == "microvm" {
		if sh.await(`(?s)ready.*Requesting system reboot.*ready.*:~# `, world.Patience) == nil {
			t.Fatalf("it did not come up again:\n%s", sh.text())
		}
	} else {
		w.Wait(t, s.Name, "rebooted", func(n *api.Server) bool {
			return n.Status.Phase == api.PhaseRunning && n.Status.Ready.After(s.Status.Ready)
		})
		sh = attach(t, w, s.Name)
	}
	if after := sh.ok("ls -d /mnt; grep -c . /proc/mounts"); after == before {
		t.Errorf("what was mounted before the reboot still is: %s", after)
	}
	if again := w.Get(t, s.Name); again.Status.Phase != api.PhaseRunning || again.Status.Restarts > 1 { // a guest that reboots soon is counted
		t.Errorf("after a reboot it is %s, with %d restarts", again.Status.Phase, again.Status.Restarts)
	}
}

// testLive changes what a running server has.
func testLive(t *testing.T, w *world.World) {
	for _, k := range kinds {
		t.Run(k.engine, func(t *testing.T) {
			t.Parallel()
			s := w.Run(t, "live-"+k.engine, small(k.model, k.engine))
			servers := w.Servers(world.Tenant)
			got, err := servers.Patch(t.Context(), s.Name, map[string]any{"spec": map[string]any{
				"cpu": map[string]any{"cap": "250m", "weight": 50}, "pids": 500}}, s.Revision)
			if err != nil {
				t.Fatalf("change CPU and pids: %v", err)
			}
			_, err = servers.Patch(t.Context(), s.Name, map[string]any{"spec": map[string]any{"pids": 400}}, s.Revision)
			wantCode(t, err, api.CodeConflict, "")
			now := w.Wait(t, s.Name, "changed", func(n *api.Server) bool { return n.Status.Observed >= got.Revision })
			if !now.Status.Started.Equal(s.Status.Started) {
				t.Error("a change of CPU restarted the guest")
			}
			for file, want := range map[string]string{"cpu.cfs_quota_us": "25000", "pids.max": "500", "cpu.max": "25000 100000"} {
				for _, got := range groupFile(t, w, s.ID, file) {
					if got != want {
						t.Errorf("%s is %s, want %s", file, got, want)
					}
				}
			}
			_, err = servers.Patch(t.Context(), s.Name, map[string]any{"spec": map[string]any{"model": "full", "engine": "auto"}}, 0)
			if k.model != api.ModelFull {
				wantCode(t, err, api.CodeInvalid, "/spec/model")
			}
			_, err = servers.Patch(t.Context(), s.Name, map[string]any{"spec": map[string]any{"disk": map[string]any{"size": "64MiB"}}}, 0)
			if err == nil {
				t.Error("a disk became smaller")
			}
			testGrow(t, w, s, k.engine)
			testMemory(t, w, s, k.engine)
			w.Remove(t, s.Name)
		})
	}
}

// testGrow gives a running server a larger disk, where its engine can do that here.
func testGrow(t *testing.T, w *world.World, s *api.Server, engine string) {
	host, err := w.Hosts().Get(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	grows := false
	for _, e := range host.Status.Engines {
		grows = grows || e.Name == engine && slices.Contains(e.Abilities, "grow")
	}
	got, err := w.Servers(world.Tenant).Patch(t.Context(), s.Name, map[string]any{"spec": map[string]any{"disk": map[string]any{"size": "300MiB"}}}, 0)
	if !grows {
		wantCode(t, err, api.CodeWrongState, "/spec/disk/size")
		return
	}
	if err != nil {
		t.Fatalf("grow the disk: %v", err)
	}
	w.Wait(t, s.Name, "grown", func(n *api.Server) bool { return n.Status.Observed >= got.Revision })
	df := strings.Fields(w.Output(t, s.Name, "sh", "-c", "df -k / | tail -n 1"))
	if len(df) < 2 {
		t.Fatalf("df says %q", df)
	}
	if size, err := api.ParseBytes(df[1] + "KiB"); err != nil || size < 250*api.MiB {
		t.Errorf("the guest's root has %v, %v", df, err)
	}
}

// testMemory gives a running server more memory: at once where the engine can, else it is told to need a restart.
func testMemory(t *testing.T, w *world.World, s *api.Server, engine string) {
	got, err := w.Servers(world.Tenant).Patch(t.Context(), s.Name, map[string]any{"spec": map[string]any{
		"memory": map[string]any{"limit": "160MiB", "reservation": "160MiB"}}}, 0)
	if err != nil {
		t.Fatalf("change memory: %v", err)
	}
	now := w.Wait(t, s.Name, "changed", func(n *api.Server) bool { return n.Status.Observed >= got.Revision })
	waits := false
	for _, c := range now.Status.Conditions {
		waits = waits || c.Type == "RestartNeeded" && c.Status && c.Message != ""
	}
	if engine == "runc" {
		if waits {
			t.Error("model os needs a restart for more memory")
		}
		return
	}
	if !waits {
		t.Logf("%s took more memory live", engine)
	}
	power(t, w, s.Name, api.PowerRestart)
	w.Wait(t, s.Name, "restarted", func(n *api.Server) bool {
		return n.Status.Phase == api.PhaseRunning && n.Status.Started.After(now.Status.Started) && !n.Status.Ready.IsZero()
	})
	total := strings.Fields(attach(t, w, s.Name).ok("grep MemTotal /proc/meminfo"))
	if kib, err := api.ParseBytes(total[1] + "KiB"); err != nil || kib < 120*api.MiB || kib > 160*api.MiB {
		t.Errorf("with 160MiB the guest sees %v", total)
	}
}

// testIdempotency sends one create twice.
func testIdempotency(t *testing.T, w *world.World) {
	servers := w.Servers(world.Tenant)
	spec := small(api.ModelOS, "")
	first, err := servers.Create(t.Context(), client.Create[api.ServerSpec]{Name: "once", Spec: spec, Key: "key-1"})
	if err != nil {
		t.Fatal(err)
	}
	second, err := servers.Create(t.Context(), client.Create[api.ServerSpec]{Name: "once", Spec: spec, Key: "key-1"})
	if err != nil || second.ID != first.ID {
		t.Errorf("the same create again: %v, %v", second, err)
	}
	_, err = servers.Create(t.Context(), client.Create[api.ServerSpec]{Name: "twice", Spec: spec, Key: "key-1"})
	wantCode(t, err, api.CodeKeyReused, "")
	_, err = servers.Create(t.Context(), client.Create[api.ServerSpec]{Name: "once", Spec: spec})
	wantCode(t, err, api.CodeExists, "")
	w.Remove(t, "once")
}
