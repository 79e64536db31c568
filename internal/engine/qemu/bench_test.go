package qemu_test

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/qemu"
	"github.com/croftproject/croft/internal/engine/qemu/accel"
)

// BenchmarkToUserspace compares a launch by the engine with the same QEMU started bare, from request to userspace. The
// two take turns, so that what else the host does hits both.
func BenchmarkToUserspace(b *testing.B) {
	bench := newBench(b)
	kernel, initramfs := linux(b)
	m := bench.machine(b, "bench", api.ModelPara)
	m.Spec.Memory.Limit = 256 * api.MiB
	m.Boot = engine.Boot{Kernel: kernel, Initrd: bench.file(b, m, "initrd", initramfs), Cmdline: "quiet", Ready: "LINUX-READY"}
	m.Root = engine.Root{Path: bench.file(b, m, "root", make([]byte, 1<<20)), Format: "raw"}
	e := qemu.NewMicroVM(bench.keeper, qemu.Options{})
	if report := e.Probe(b.Context()); !report.Available {
		b.Skip(report.Reason)
	}
	var bare, ours time.Duration
	for b.Loop() {
		bare += runBare(b, m)
		ours += runOurs(b, bench, e, m)
	}
	b.ReportMetric(bare.Seconds()/float64(b.N), "bare-s")
	b.ReportMetric(ours.Seconds()/float64(b.N), "ours-s")
	b.ReportMetric(float64(ours)/float64(bare), "ratio")
}

func runOurs(b *testing.B, bench *bench, e *qemu.Engine, m *engine.Machine) time.Duration {
	b.Helper()
	begin := time.Now()
	if _, err := e.Launch(within(b, 20*time.Second), m); err != nil {
		b.Fatal(err)
	}
	bench.await(within(b, 60*time.Second), b, m, m.Boot.Ready)
	took := time.Since(begin)
	if err := e.Clean(within(b, 20*time.Second), m); err != nil {
		b.Fatal(err)
	}
	return took
}

// runBare starts QEMU by hand: the same machine, without user, sandbox, monitors or log.
func runBare(b *testing.B, m *engine.Machine) time.Duration {
	b.Helper()
	found := accel.Probe(b.Context())
	arguments := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-m", "256", "-serial", "stdio",
		"-M", "microvm,x-option-roms=off,rtc=on", "-accel", string(found.Kind), "-cpu", "max",
		"-kernel", m.Boot.Kernel, "-initrd", m.Boot.Initrd,
		"-append", strings.Join(append([]string{"console=ttyS0 reboot=t panic=-1 root=/dev/vda rw", m.Boot.Cmdline}, steadyClock(found)...), " "),
		"-drive", "id=root,if=none,format=raw,file=" + m.Root.Path, "-device", "virtio-blk-device,drive=root",
	}
	begin := time.Now()
	cmd := exec.CommandContext(b.Context(), qemu.DefaultBinary, arguments...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.Contains(lines.Text(), m.Boot.Ready) {
			break
		}
	}
	took := time.Since(begin)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	return took
}

// steadyClock keeps the guest's kernel from hanging under TCG on a busy host, as the engine does.
func steadyClock(found accel.Result) []string {
	if found.Kind == accel.TCG && found.TSC > 0 {
		return []string{"tsc_early_khz=" + strconv.FormatInt(found.TSC, 10)}
	}
	return nil
}
