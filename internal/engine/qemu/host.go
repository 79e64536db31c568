package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/qemu/accel"
	"github.com/croftproject/croft/internal/engine/qemu/qmp"
)

// host is what was found out about QEMU on this host.
type host struct {
	binary, version string
	machineType     string   // versioned
	firmware        firmware // for UEFI; empty where there is none
}

// firmware is OVMF: its code, and the variables that a new machine begins with.
type firmware struct{ code, vars string }

// firmwares are where distributions put OVMF (Debian and Ubuntu, Fedora, Arch, SUSE), the larger build first.
var firmwares = []firmware{
	{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},
	{"/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"},
	{"/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"},
	{"/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"},
	{"/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"},
}

func findFirmware() firmware {
	for _, f := range firmwares {
		_, codeErr := os.Stat(f.code)
		_, varsErr := os.Stat(f.vars)
		if codeErr == nil && varsErr == nil {
			return f
		}
	}
	return firmware{}
}

// acceleration is what guests run by, and as which group QEMU must run for it (zero: any).
type acceleration struct {
	accel.Result
	group uint32
}

// findAcceleration joins what the processor can do with what an unprivileged QEMU may open.
func findAcceleration(ctx context.Context) acceleration {
	a := acceleration{Result: accel.Probe(ctx)}
	if a.Kind != accel.KVM {
		return a
	}
	var err error
	if a.group, err = openableBy(accel.Device); err != nil {
		a.Kind, a.Nested = accel.TCG, false
		a.Reason = fmt.Sprintf("KVM works, but %v; using tcg", err)
	}
	return a
}

// openableBy tells which group may open a device; zero where everyone may.
func openableBy(device string) (group uint32, err error) {
	var stat unix.Stat_t
	if err := unix.Stat(device, &stat); err != nil {
		return 0, &os.PathError{Op: "stat", Path: device, Err: err}
	}
	switch {
	case stat.Mode&0o006 == 0o006:
		return 0, nil
	case stat.Mode&0o060 == 0o060 && stat.Gid != 0:
		return stat.Gid, nil
	}
	return 0, fmt.Errorf("only root may open %s (give it a group: chgrp kvm %s && chmod 660 %s)", device, device, device)
}

// Probe starts QEMU with the engine's machine, halted, and asks it what it is.
func (e *Engine) Probe(ctx context.Context) engine.Report {
	found, err := e.findHost(ctx)
	if err != nil {
		return engine.Report{Reason: err.Error()}
	}
	e.mu.Lock()
	e.host = found
	e.mu.Unlock()
	a := findAcceleration(ctx)
	report := engine.Report{
		Available:   true,
		Reason:      a.Reason,
		Version:     found.version,
		Accelerator: string(a.Kind),
		Abilities:   []string{"console", "pause", "resize"},
		Grants:      []api.GrantKind{api.GrantDirectory, api.GrantDedicatedCPU},
	}
	if e.machine.display {
		report.Abilities = append(report.Abilities, "vnc")
	}
	if number, _ := readInt("/proc/sys/vm/nr_hugepages"); number > 0 {
		report.Grants = append(report.Grants, api.GrantHugePages)
	} else {
		report.Withhold(api.GrantHugePages, "no huge pages are set aside on this host (vm.nr_hugepages is 0)")
	}
	if a.Kind == accel.TCG || a.Nested {
		report.Grants = append(report.Grants, api.GrantNesting) // TCG emulates AMD's extensions
	} else {
		report.Withhold(api.GrantNesting, "the KVM module's parameter nested is off")
	}
	if e.machine.name != Full {
		report.Withhold(api.GrantDevice, "a microvm has no PCI")
	} else if groups, _ := os.ReadDir("/sys/kernel/iommu_groups"); len(groups) > 0 {
		report.Grants = append(report.Grants, api.GrantDevice)
	} else {
		report.Withhold(api.GrantDevice, "no IOMMU is in use on this host (a setting of the firmware and, on Intel, the kernel parameter intel_iommu=on)")
	}
	report.Withhold(api.GrantCapability, "the guest has a kernel of its own")
	if e.machine.name == Full && found.firmware.code == "" {
		report.Reason = join(report.Reason, "no uefi: OVMF is not installed")
	}
	return report
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

func readInt(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// known is what Probe found; it probes where nobody has yet.
func (e *Engine) known(ctx context.Context) (host, error) {
	e.mu.Lock()
	found := e.host
	e.mu.Unlock()
	if found.binary != "" {
		return found, nil
	}
	found, err := e.findHost(ctx)
	if err != nil {
		return host{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.host = found
	return found, nil
}

// probeLimit is how long a halted QEMU may take to answer, on a host that has just booted and does much else.
const probeLimit = time.Minute

func (e *Engine) findHost(ctx context.Context) (host, error) {
	binary, err := exec.LookPath(e.options.Binary)
	if err != nil {
		return host{}, fmt.Errorf("%s is not installed", e.options.Binary)
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return host{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	h, err := ask(ctx, binary, e.machine.alias)
	if err != nil {
		return host{}, fmt.Errorf("%s: %w", binary, err)
	}
	if e.machine.name == Full {
		h.firmware = findFirmware()
	}
	return h, nil
}

// ask starts a halted QEMU, unprivileged and sandboxed as guests' are, and reads its version and machine types.
func ask(ctx context.Context, binary, machine string) (found host, err error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return host{}, err
	}
	defer theirs.Close()
	cmd := exec.CommandContext(ctx, binary, "-nodefaults", "-no-user-config", "-S", "-display", "none", "-machine", machine,
		"-accel", "tcg", "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-chardev", "socket,id=control,fd=3", "-mon", "chardev=control,mode=control")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Dir = "/"
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	// It ends with the daemon. The signal is sent when the thread that forked ends (PR_SET_PDEATHSIG(2const)).
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if os.Geteuid() == 0 {
		const nobody = 65534
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	if err := cmd.Start(); err != nil {
		_ = ours.Close()
		return host{}, err
	}
	_ = theirs.Close()
	client, err := qmp.New(ctx, ours, nil)
	if err == nil {
		found, err = describe(ctx, client, machine)
		_ = client.Close()
	}
	// The command's context would kill it too, but only when it is over.
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if text := strings.TrimSpace(stderr.String()); err != nil && text != "" {
		err = fmt.Errorf("%s (%w)", text, err)
	}
	found.binary = binary
	return found, err
}

// describe reads what the probed QEMU is.
func describe(ctx context.Context, client *qmp.Client, machine string) (host, error) {
	var machines []struct {
		Name  string `json:"name"`
		Alias string `json:"alias"`
	}
	if err := client.Execute(ctx, "query-machines", nil, &machines); err != nil {
		return host{}, err
	}
	for _, m := range machines {
		if m.Name == machine || m.Alias == machine {
			greeting := client.Greeting()
			return host{version: greeting.String(), machineType: m.Name}, nil
		}
	}
	return host{}, fmt.Errorf("has no machine %s", machine)
}

// socketPair makes a connected pair of sockets: one for us, one for a child.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "qmp"), os.NewFile(uintptr(fds[1]), "qmp")
	defer mine.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return conn, theirs, nil
}

// factsFor are the facts for one machine's command line.
func (e *Engine) factsFor(ctx context.Context, m *engine.Machine) (Facts, acceleration, error) {
	h, err := e.known(ctx)
	if err != nil {
		return Facts{}, acceleration{}, err
	}
	a := findAcceleration(ctx)
	f := Facts{Binary: h.binary, MachineType: h.machineType, Accel: a.Kind, TSC: a.TSC, Firmware: h.firmware.code}
	if d := m.Spec.Disk; slices.ContainsFunc([]int64{d.ReadIOPS, d.WriteIOPS, int64(d.ReadRate), int64(d.WriteRate)}, func(n int64) bool { return n > 0 }) {
		f.DirectIO = directIO(m.Root.Path)
	}
	if m.Spec.Firmware == api.FirmwareUEFI && f.Firmware == "" {
		return Facts{}, acceleration{}, fmt.Errorf("%w: this host has no UEFI firmware: install OVMF", engine.ErrUnsupported)
	}
	return f, a, nil
}

// directIO tells whether a file's file system does I/O past the page cache (open(2), O_DIRECT).
func directIO(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}
