package e2e

import (
	"math"
	"os"
	"strconv"
	"strings"
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

const (
	span  = 8 * time.Second // of a measurement
	tries = 8
	quiet = 0.25 // CPUs that the rest of the machine may take, for shares to be as promised
)

// measure tells the CPU that each server takes, in CPUs, over a span in which enough accepts it, or in which the machine
// does little else: what others take is not there to be divided. Where there is no such span it skips the test.
func measure(t *testing.T, w *world.World, enough func([]float64) bool, names ...string) []float64 {
	t.Helper()
	var others float64
	for range tries {
		out, all := measureOnce(t, w, names)
		others = all
		for _, used := range out {
			others -= used
		}
		t.Logf("CPU of %v: %.3f; of all else: %.3f", names, out, others)
		if others < quiet || enough(out) {
			return out
		}
	}
	t.Skipf("the machine is busy with %.2f CPUs of other work: what is left can't be measured", others)
	return nil
}

// measureOnce is one measurement; all is what everything on the machine takes.
func measureOnce(t *testing.T, w *world.World, names []string) (out []float64, all float64) {
	t.Helper()
	read := func() (map[string]time.Duration, time.Duration, time.Time) {
		usage, err := w.Usage(t.Context(), world.Tenant)
		if err != nil {
			t.Fatal(err)
		}
		took := map[string]time.Duration{}
		for _, u := range usage {
			took[u.Server] = time.Duration(u.CPUTime)
		}
		return took, busy(t), time.Now()
	}
	before, busyBefore, began := read()
	<-time.After(span) // the measured span itself
	after, busyAfter, ended := read()
	for _, name := range names {
		out = append(out, float64(after[name]-before[name])/float64(ended.Sub(began)))
	}
	return out, float64(busyAfter-busyBefore) / float64(ended.Sub(began))
}

// busy is the time that all CPUs have worked, in sum: user, nice, system, irq and softirq of proc(5), stat, in ticks of
// 10 ms.
func busy(t *testing.T) time.Duration {
	t.Helper()
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(data))
	ticks := 0
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.Atoi(fields[i])
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

func near(t *testing.T, what string, got, want, within float64) {
	t.Helper()
	if math.Abs(got/want-1) > within {
		t.Errorf("%s is %.3f, want %.3f within %.0f%%", what, got, want, within*100)
	}
}

// testShares holds saturating servers to what they were promised.
func testShares(t *testing.T, w *world.World) {
	host, err := w.Hosts().Get(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	share := func(entitlement api.MilliCPU) api.ServerSpec {
		s := small(api.ModelOS, "runc")
		s.CPU = api.CPU{Count: int(host.Status.Capacity.CPU / api.CPU1), Entitlement: entitlement}
		return s
	}
	greedy(t, w, "cpu-three", share(600))
	defer w.Remove(t, "cpu-three")
	greedy(t, w, "cpu-one", share(200))
	defer w.Remove(t, "cpu-one")
	used := measure(t, w, func([]float64) bool { return false }, "cpu-three", "cpu-one")
	near(t, "the share of two saturating servers, entitled 3:1,", used[0]/used[1], 3, 0.05)
	// All guests together leave the host its reserve.
	if most := float64(host.Status.Capacity.CPU-host.Spec.Reserve.CPU) / 1000; used[0]+used[1] > most*1.02 {
		t.Errorf("they take %.2f CPUs, more than the %.2f that are not the host's own", used[0]+used[1], most)
	}
}

// testCaps holds greedy servers to their caps, of which one is changed while it runs.
func testCaps(t *testing.T, w *world.World) {
	capped := func(model api.Model, engine string) api.ServerSpec {
		s := small(model, engine)
		s.CPU = api.CPU{Count: 1, Entitlement: 100, Cap: 300}
		return s
	}
	greedy(t, w, "cap-os", capped(api.ModelOS, "runc"))
	defer w.Remove(t, "cap-os")
	greedy(t, w, "cap-uml", capped(api.ModelPara, "uml"))
	defer w.Remove(t, "cap-uml")
	// A busy machine may give less than the cap; more it never may.
	used := measure(t, w, func(used []float64) bool { return max(used[0], used[1]) > 0.31 || min(used[0], used[1]) > 0.291 }, "cap-os", "cap-uml")
	near(t, "model os, capped at 30% of a CPU,", used[0], 0.3, 0.03)
	near(t, "engine uml, capped at 30% of a CPU,", used[1], 0.3, 0.03)
	got, err := w.Servers(world.Tenant).Patch(t.Context(), "cap-os", map[string]any{"spec": map[string]any{"cpu": map[string]any{"cap": "600m"}}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.Wait(t, "cap-os", "changed", func(s *api.Server) bool { return s.Status.Observed >= got.Revision })
	used = measure(t, w, func(used []float64) bool { return used[0] > 0.582 }, "cap-os", "cap-uml")
	near(t, "model os, after its cap was raised to 60%,", used[0], 0.6, 0.03)
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
	more, err := w.Servers(world.Tenant).Patch(t.Context(), s.Name, map[string]any{"spec": map[string]any{"pids": 200}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.Wait(t, s.Name, "changed", func(s *api.Server) bool { return s.Status.Observed >= more.Revision })
	w.Output(t, s.Name, "killall", "sleep")
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
