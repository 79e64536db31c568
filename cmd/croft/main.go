// Croft divides a physical server into virtual servers: `croft daemon` runs on the host, the other commands talk to it.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime"

	"github.com/croftproject/croft/internal/cli"
	"github.com/croftproject/croft/internal/engine/oci"
	"github.com/croftproject/croft/internal/engine/uml"
	"github.com/croftproject/croft/internal/image/unpack"
)

// version is set by the build.
var version = "dev"

// The process's first thread is kept for main, which changes nothing of it: a goroutine that enters a namespace on a
// thread of its own must never be on this one, which can't end, and which /proc/self stands for.
func init() { runtime.LockOSThread() }

func main() {
	// What the daemon starts this program as, before anything of the command line is built.
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "keeper":
			os.Exit(outcome(keeperMain(os.Args[2:])))
		case unpack.Command:
			os.Exit(unpack.Main(os.Args[2:]))
		case oci.AttendCommand:
			os.Exit(oci.Attend(os.Args[2:]))
		case uml.ConfineCommand:
			os.Exit(outcome(uml.Confine(os.Args[2:])))
		}
	}
	cli.Version = version
	root := cli.New()
	root.AddCommand(daemonCommand())
	os.Exit(cli.Execute(context.Background(), root, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func outcome(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
