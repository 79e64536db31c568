package e2e

import (
	"math"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
	"github.com/croftproject/croft/test/world"
)

// greedy is a server whose processes take all the CPU that they are let have.
func greedy(t *testing.T, w *world.World, name string, spec api.ServerSpec) {
	t.Helper()
	w.Run(t, name, spec)
	sh := attach(t, w, name)
	for range max(1, spec.CPU.Count) {
		sh.ok("spin & :")
	}
	sh.detach()
}

// measure tells the CPU that each server takes, in CPUs, over a span.
func measure(t *testing.T, w *world.World, span time.Duration, names ...string) []float64 {
	t.Helper()
	read := func() (map[string]time.Duration, time.Time) {
		usage, err := w.Usage(t.Context(), world.Tenant)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]time.Duration{}
		for _, u := range usage {
			out[u.Server] = time.Duration(u.CPUTime)
		}
		return out, time.Now()
	}
	before, began := read()
	<-time.After(span) // the measured span itself
	after, ended := read()
	out := make([]float64, len(names))
	for i, name := range names {
		out[i] = float64(after[name]-before[name]) / float64(ended.Sub(began))
	}
	t.Logf("CPU of %v: %.3f", names, out)
	return out
}

func near(t *testing.T, what string, got, want, within float64) {
	t.Helper()
	if math.Abs(got/want-1) > within {
		t.Errorf("%s is %.3f, want %.3f within %.0f%%", what, got, want, within*100)
	}
}

// testCPU holds saturating servers to what they were promised.
func testCPU(t *testing.T, w *world.World) {
	host, err := w.Hosts().Get(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	all := int(host.Status.Capacity.CPU / api.CPU1)
	share := func(entitlement api.MilliCPU) api.ServerSpec {
		s := small(api.ModelOS, "runc")
		s.CPU = api.CPU{Count: all, Entitlement: entitlement}
		return s
	}
	greedy(t, w, "cpu-three", share(600))
	greedy(t, w, "cpu-one", share(200))
	used := measure(t, w, 10*time.Second, "cpu-three", "cpu-one")
	near(t, "the share of two saturating servers, entitled 3:1,", used[0]/used[1], 3, 0.05)
	// All guests together leave the host its reserve.
	if most := float64(host.Status.Capacity.CPU-host.Spec.Reserve.CPU) / 1000; used[0]+used[1] > most*1.02 {
		t.Errorf("they take %.2f CPUs, more than the %.2f that are not the host's own", used[0]+used[1], most)
	}
	w.Remove(t, "cpu-three")
	w.Remove(t, "cpu-one")

	capped := func(model api.Model, engine string) api.ServerSpec {
		s := small(model, engine)
		s.CPU = api.CPU{Count: 1, Entitlement: 100, Cap: 300}
		return s
	}
	greedy(t, w, "cap-os", capped(api.ModelOS, "runc"))
	greedy(t, w, "cap-uml", capped(api.ModelPara, "uml"))
	used = measure(t, w, 10*time.Second, "cap-os", "cap-uml")
	near(t, "model os, capped at 30% of a CPU,", used[0], 0.3, 0.03)
	near(t, "engine uml, capped at 30% of a CPU,", used[1], 0.3, 0.03)
	// The cap is changed while it runs.
	got, err := w.Servers(world.Tenant).Patch(t.Context(), "cap-os", map[string]any{"spec": map[string]any{"cpu": map[string]any{"cap": "600m"}}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.Wait(t, "cap-os", "changed", func(s *api.Server) bool { return s.Status.Observed >= got.Revision })
	used = measure(t, w, 5*time.Second, "cap-os")
	near(t, "model os, after its cap was raised to 60%,", used[0], 0.6, 0.03)
	w.Remove(t, "cap-os")
	w.Remove(t, "cap-uml")
}

// testLimits checks what a guest can't exceed.
func testLimits(t *testing.T, w *world.World) {
	spec := small(api.ModelOS, "runc")
	spec.PIDs = 20
	spec.Disk.Size = 128 * api.MiB
	s := w.Run(t, "limits", spec)
	code, out := w.Exec(t, s.Name, "sh", "-c", "for i in $(seq 40); do sleep 1000 & done; wait")
	if code == 0 {
		t.Errorf("40 processes ran within 20: %s", out)
	}
	w.Exec(t, s.Name, "killall", "sleep")
	code, out = w.Exec(t, s.Name, "dd", "if=/dev/zero", "of=/root/big", "bs=1M", "count=200")
	if code == 0 {
		t.Errorf("200 MiB were written to a disk of 128MiB: %s", out)
	}
	w.Output(t, s.Name, "rm", "/root/big")
	for _, where := range []string{"/sys/kernel/uevent_helper", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger"} {
		if code, _ := w.Exec(t, s.Name, "sh", "-c", "echo x >"+where); code == 0 {
			t.Errorf("the guest may write to %s", where)
		}
	}
	w.Remove(t, s.Name)
}

// testAdmission asks for more than there is.
func testAdmission(t *testing.T, w *world.World) {
	host, err := w.Hosts().Get(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		resource string
		ask      func(*api.ServerSpec)
	}{
		{"memory", func(s *api.ServerSpec) { s.Memory.Limit = host.Status.Capacity.Memory * 2 }},
		{"cpu", func(s *api.ServerSpec) {
			s.CPU = api.CPU{Count: int(host.Status.Capacity.CPU / api.CPU1), Entitlement: host.Status.Capacity.CPU}
		}},
		{"disk", func(s *api.ServerSpec) { s.Disk.Size = host.Status.Capacity.Disk * 3 }},
	} {
		t.Run(c.resource, func(t *testing.T) {
			spec := small(api.ModelOS, "runc")
			c.ask(&spec)
			_, err := w.Servers(world.Tenant).Create(t.Context(), client.Create[api.ServerSpec]{Name: "too-much", Spec: spec})
			p := wantCode(t, err, api.CodeCapacity, "")
			if len(p.Short) != 1 || p.Short[0].Resource != c.resource || p.Short[0].Where != "test" || p.Short[0].Short == "" || p.Short[0].Free == "" {
				t.Errorf("what is short is told as %+v", p.Short)
			}
		})
	}
}
