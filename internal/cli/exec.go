package cli

import (
	"context"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
)

func (a *app) execCommand(k *servers) *cobra.Command {
	var tty, stdin bool
	var e client.Exec
	cmd := &cobra.Command{
		Use: "exec [flags] NAME [--] COMMAND [ARGS…]", Short: "Run a command in a server (model os)",
		Long: "Run a command in a server (model os), and end with its exit code; 128 and the signal's number where a signal ended it. 127 says that\n" +
			"there is no such command in the server, and 126 that it can't be started: it may not be run, or its user or directory is not there.",
		Example: "  croft server exec web -- ps aux\n  croft server exec web sh",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usagef("%s is missing: %s", []string{"NAME", "COMMAND"}[len(args)], cmd.UseLine())
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return k.names(cmd, args, start)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			in, inTTY := terminal(cmd.InOrStdin())
			_, outTTY := terminal(cmd.OutOrStdout())
			away := inTTY && background(in)
			e.TTY = inTTY && outTTY && !away
			if cmd.Flags().Changed("tty") {
				e.TTY = tty
			}
			env, err := execEnv(e.Env)
			if err != nil {
				return err
			}
			e.Env = env
			if stdin && (!away || cmd.Flags().Changed("stdin")) {
				e.Stdin = cmd.InOrStdin()
			}
			command := args[1:]
			if command[0] == "--" {
				command = command[1:]
			}
			if len(command) == 0 {
				return usagef("COMMAND is missing: %s", cmd.UseLine())
			}
			e.Args = command
			return a.exec(cmd, args[0], e)
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false)
	flags.BoolVarP(&tty, "tty", "t", false, "give it a terminal (default: if this is one, and the command in its foreground)")
	flags.BoolVarP(&stdin, "stdin", "i", true, "pass standard input on")
	flags.StringVarP(&e.User, "user", "u", "", "user[:group], by name or number (default root)")
	flags.StringVarP(&e.Dir, "workdir", "w", "", "working directory")
	flags.StringArrayVarP(&e.Env, "env", "e", nil, "environment, NAME=value, or NAME for the value that it has here; repeatable")
	return cmd
}

// exec runs a process in a server, and ends with its exit code.
func (a *app) exec(cmd *cobra.Command, name string, e client.Exec) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	e.Stdout, e.Stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
	if e.TTY {
		restore, err := rawTerminal(cmd.InOrStdin())
		if err != nil {
			return err
		}
		defer restore()
		if f, ok := terminal(cmd.OutOrStdout()); ok {
			if cols, rows, err := term.GetSize(int(f.Fd())); err == nil {
				e.Size = client.WinSize{Rows: uint16(rows), Cols: uint16(cols)}
			}
			e.Resize = windowSizes(ctx, cmd.OutOrStdout())
			e.Env = append([]string{"TERM=" + envOr("TERM", "xterm")}, e.Env...)
		}
	}
	code, err := c.Exec(ctx, a.tenant, name, e)
	if api.CodeOf(err) == api.CodeInvalid {
		return codedError{err, startCode(err)}
	}
	if err != nil {
		return err
	}
	if code != 0 {
		return exitCode(code)
	}
	return nil
}

// background tells whether a terminal is another job's of the shell: it stops who reads it or sets its mode (tcsetpgrp(3)).
func background(terminal *os.File) bool {
	group, err := unix.IoctlGetInt(int(terminal.Fd()), unix.TIOCGPGRP)
	return err == nil && group != unix.Getpgrp()
}

// execEnv gives a name alone the value that it has here, and leaves it out where it has none, as docker-run(1) does.
func execEnv(given []string) ([]string, error) {
	var env []string
	for _, entry := range given {
		name, _, valued := strings.Cut(entry, "=")
		if name == "" {
			return nil, usagef("--env %q has no name: write NAME=value, or NAME for the value that it has here", entry)
		}
		if !valued {
			value, here := os.LookupEnv(name)
			if !here {
				continue
			}
			entry = name + "=" + value
		}
		env = append(env, entry)
	}
	return env, nil
}

// startCode is the exit code for a command that could not be started, as of the shell (POSIX, Shell Command Language, 2.8.2).
// Only the runtime's own words tell what was in the way.
func startCode(err error) int {
	said := strings.ToLower(err.Error())
	if strings.Contains(said, "chdir") {
		return exitCannotRun // the directory is not found, not the command
	}
	for _, missing := range []string{"not found", "no such file or directory"} {
		if strings.Contains(said, missing) {
			return exitNotFound
		}
	}
	return exitCannotRun
}
