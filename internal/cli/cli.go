// Package cli holds the commands of croft: croft NOUN VERB. They speak to the daemon through package client alone.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/croftproject/croft/client"
)

// Exit codes, besides those that exec passes on.
const (
	exitFailure   = 1
	exitUsage     = 2
	exitCannotRun = 126 // of exec: the command can't be started
	exitNotFound  = 127 // of exec: there is no such command
)

// app is what all commands share: the global flags, and the client that they make.
type app struct {
	tenant string
	socket string
	output string
	dialed *client.Client

	printed bool // a YAML document was
}

// New makes the root command. The program adds the commands that are not the API's (daemon, keeper).
func New() *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use: "croft", Short: "Divide this host into virtual servers",
		Long: "Croft divides physical servers into virtual servers for many tenants.\n" +
			"Commands read NOUN VERB: croft server create web --model os --image micro --network corp",
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			switch a.output {
			case "table", "json", "yaml":
				return nil
			}
			return usagef("--output is %q; it must be table, json or yaml", a.output)
		},
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.tenant, "tenant", defaultTenant(), "tenant to act for (CROFT_TENANT)")
	flags.StringVar(&a.socket, "socket", envOr("CROFT_SOCKET", client.DefaultSocket), "daemon's socket, or URL (CROFT_SOCKET)")
	flags.StringVarP(&a.output, "output", "o", "table", "table, json or yaml")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	complete(root, "output", "table", "json", "yaml")
	a.completeFlag(root, "tenant", "tenants")
	root.AddCommand(a.serverCommand(), a.networkCommand(), a.imageCommand(), a.hostCommand(), a.tenantCommand(),
		a.eventCommand(), a.jobCommand(), a.applyCommand(), a.topCommand(), a.versionCommand(root), a.debugCommand())
	return root
}

func defaultTenant() string { return envOr("CROFT_TENANT", "default") }

func envOr(name, def string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return def
}

// Run builds the root command and runs it with args.
func Run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	return Execute(ctx, New(), args, in, out, errOut)
}

// Execute runs a root command and returns the program's exit code. SIGINT and SIGTERM end the context of its command.
func Execute(ctx context.Context, root *cobra.Command, args []string, in io.Reader, out, errOut io.Writer) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	var silent exitCode
	if errors.As(err, &silent) {
		return int(silent)
	}
	if strings.HasPrefix(err.Error(), "unknown command") {
		err = usage(err)
	}
	code := report(errOut, cmd, err)
	var coded codedError
	if errors.As(err, &coded) {
		return coded.code
	}
	return code
}

// client is made on first use.
func (a *app) client() (*client.Client, error) {
	if a.dialed != nil {
		return a.dialed, nil
	}
	c, err := client.New(client.Options{Address: a.socket})
	if err != nil {
		return nil, usage(err)
	}
	a.dialed = c
	return c, nil
}

// noun is a command that only groups others.
func noun(use, short string, aliases []string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Aliases: aliases,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			err := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				err += fmt.Sprintf("; did you mean %q?", near[0])
			}
			return usagef("%s", err)
		},
	}
	cmd.SuggestionsMinimumDistance = 2
	cmd.AddCommand(verbs...)
	return cmd
}

// exactly wants one argument for each name.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usagef("%s is missing: %s", names[len(args)], cmd.UseLine())
		}
		if len(args) > len(names) {
			return usagef("%q is too much: %s", args[len(names)], cmd.UseLine())
		}
		return nil
	}
}

// atMostOne takes a name or none.
func atMostOne(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usagef("%q is too much: %s", args[1], cmd.UseLine())
	}
	return nil
}

// atLeastOne wants one name or more.
func atLeastOne(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usagef("%s is missing: %s", name, cmd.UseLine())
		}
		return nil
	}
}

// terminal is the file behind a stream, if it is a terminal.
func terminal(stream any) (*os.File, bool) {
	f, ok := stream.(*os.File)
	return f, ok && term.IsTerminal(int(f.Fd()))
}
