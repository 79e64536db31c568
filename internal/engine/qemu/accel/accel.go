// Package accel finds out whether KVM runs guests on this host.
//
// That /dev/kvm opens proves nothing: there are hosts where it creates machines and yet emulates every instruction in
// the kernel, or gives up at the first one that its emulator does not know. So the probe is functional: a guest of a
// few instructions in long mode, one of them SSE, and a loop, which must end as expected in little CPU time.
package accel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// Kind is what runs a guest's instructions.
type Kind string

const (
	KVM Kind = "kvm" // the processor itself
	TCG Kind = "tcg" // QEMU's translator
)

// Result is what the probe found. It holds for the life of the process.
type Result struct {
	Kind Kind
	// Reason is a sentence that tells why it is not KVM; empty where it is.
	Reason string
	// Took is the CPU time that the guest took.
	Took time.Duration
	// Nested tells whether a guest under KVM can itself use KVM.
	Nested bool
	// TSC is the rate of the host's time stamp counter in kHz; zero where it is not constant. A guest under TCG sees
	// this counter and can't always measure it itself, for lack of a second clock that is steady under load.
	TSC int64
}

// Limit is the most CPU time that the test guest may take. Hardware takes one millisecond, nested hardware a few;
// emulation by the kernel more than a second. It is not a span of time: a host that has just booted is busy.
const Limit = 200 * time.Millisecond

// patience is how long the test guest is waited for where the host gives it no CPU.
const patience = 10 * time.Second

// Device is where KVM is found.
const Device = "/dev/kvm"

// errDevice says that KVM could not be reached at all.
var errDevice = errors.New("cannot be used")

// errSlow says that the guest ran, but not to its end in time.
var errSlow = errors.New("2 million instructions took too much CPU time")

var cached struct {
	once sync.Once
	done chan struct{}
	Result
}

func init() { cached.done = make(chan struct{}) }

// Probe tells what runs guests here. The first call tries it, which takes less than a second unless the host is busy, or
// has just booted and KVM is still to be loaded; later
// calls give the same answer. Where ctx ends first the answer is TCG, and the probe goes on for the calls to come.
func Probe(ctx context.Context) Result {
	cached.once.Do(func() {
		go func() {
			defer close(cached.done)
			prepare(context.WithoutCancel(ctx), Device, "/proc/cpuinfo", "/run/udev/control", run)
			cached.Result = probe(Device)
			cached.TSC = measureTSC()
		}()
	})
	select {
	case <-cached.done:
		return cached.Result
	case <-ctx.Done():
		return Result{Kind: TCG, Reason: "the probe of KVM was cut short: " + ctx.Err().Error()}
	}
}

func probe(device string) Result {
	took, err := runTestGuest(device, Limit)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return Result{Kind: TCG, Reason: "this host has no KVM (" + device + " does not exist); using tcg"}
	case errors.Is(err, errDevice):
		return Result{Kind: TCG, Reason: fmt.Sprintf("KVM %v; using tcg", err)}
	case err != nil:
		return Result{Kind: TCG, Took: took, Reason: fmt.Sprintf("KVM opens but does not run guests: %v; using tcg", err)}
	}
	return Result{Kind: KVM, Took: took, Nested: nested("/sys/module")}
}

// nested reads whether the KVM module gives its guests the virtualization extensions.
func nested(modules string) bool {
	for _, module := range []string{"kvm_amd", "kvm_intel"} {
		text, err := os.ReadFile(modules + "/" + module + "/parameters/nested")
		if value := strings.TrimSpace(string(text)); err == nil && (value == "1" || value == "Y") {
			return true
		}
	}
	return false
}
