// Faultd is the daemon with a fault in it, for end-to-end tests: it ends itself as a crash would, or fails, right before
// a step of a server's life. Everything else is as in the product.
//
//	CROFT_FAULT=kill:launch    ends the daemon before the step "launch"
//	CROFT_FAULT=fail:launch    fails that step, once
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/daemon"
	"github.com/croftproject/croft/internal/engine/oci"
	"github.com/croftproject/croft/internal/engine/uml"
)

func init() { runtime.LockOSThread() }

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run takes the flags of `croft daemon` that tests use. The keeper and the sandbox are the product's: CROFT_BIN.
func run(args []string) error {
	o := daemon.Options{Version: "fault", Executable: os.Getenv("CROFT_BIN")}
	f := flag.NewFlagSet("faultd", flag.ContinueOnError)
	f.StringVar(&o.StateDir, "state-dir", "", "")
	f.StringVar(&o.RunDir, "run-dir", "", "")
	f.StringVar(&o.NetNS, "netns", "", "")
	f.StringVar(&o.Host, "host", "", "")
	if len(args) > 0 { // what this very program is started as for itself
		switch args[0] {
		case uml.ConfineCommand:
			return uml.Confine(args[1:])
		case oci.AttendCommand:
			os.Exit(oci.Attend(args[1:]))
		}
	}
	if len(args) == 0 || args[0] != "daemon" {
		return errors.New("usage: faultd daemon …")
	}
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	fault, err := parse(os.Getenv("CROFT_FAULT"))
	if err != nil {
		return err
	}
	o.Fault = fault
	o.Logger = slog.New(slog.NewJSONHandler(os.Stderr, nil))
	return daemon.Run(context.Background(), o)
}

// parse reads "kill:STEP" or "fail:STEP".
func parse(text string) (func(id, step string) error, error) {
	how, where, ok := strings.Cut(text, ":")
	if !ok || how != "kill" && how != "fail" {
		return nil, fmt.Errorf("CROFT_FAULT is %q: write kill:STEP or fail:STEP", text)
	}
	var done atomic.Bool
	return func(_, step string) error {
		if step != where || !done.CompareAndSwap(false, true) {
			return nil
		}
		if how == "kill" {
			if err := unix.Kill(os.Getpid(), unix.SIGKILL); err != nil {
				return err
			}
			select {}
		}
		return fmt.Errorf("a fault was put before %s", step)
	}, nil
}
