package accel

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// prepareTime is the most that loading a module, or udev's queue, may take.
const prepareTime = 30 * time.Second

// prepare has KVM ready to be probed, as far as it can be. A daemon that starts with its host is often ahead of udev, which
// loads KVM's module and gives the device to its group: then this loads the module itself, and waits for udev. Without udev
// or modprobe it leaves all as it is.
func prepare(ctx context.Context, device, cpuinfo, udev string, run func(ctx context.Context, name string, args ...string)) {
	ctx, cancel := context.WithTimeout(ctx, prepareTime)
	defer cancel()
	if _, err := os.Stat(device); err != nil {
		text, _ := os.ReadFile(cpuinfo)
		module := moduleOf(string(text))
		if module == "" {
			return
		}
		run(ctx, "modprobe", "-q", module)
	}
	var stat unix.Stat_t
	if unix.Stat(device, &stat) != nil || stat.Mode&0o066 != 0 {
		return
	}
	if _, err := os.Stat(udev); err == nil { // the kernel made it for root alone; udev has a rule for it
		run(ctx, "udevadm", "settle")
	}
}

func run(ctx context.Context, name string, args ...string) {
	_ = exec.CommandContext(ctx, name, args...).Run() // what came of it is seen by the probe
}

// moduleOf names the module that drives the processor's virtualization extensions; empty where it has none.
func moduleOf(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		name, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) != "flags" {
			continue
		}
		for _, flag := range strings.Fields(value) {
			switch flag {
			case "svm":
				return "kvm_amd"
			case "vmx":
				return "kvm_intel"
			}
		}
		return ""
	}
	return ""
}
