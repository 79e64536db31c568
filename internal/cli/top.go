package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/croftproject/croft/api"
)

func (a *app) topCommand() *cobra.Command {
	var once, all bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use: "top", Short: "Show what the servers use, live", Args: exactly(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, tty := terminal(cmd.OutOrStdout())
			if once || !tty || a.output != "table" {
				return a.showUsage(cmd, all, "")
			}
			tick := time.NewTicker(max(interval, 200*time.Millisecond))
			defer tick.Stop()
			for {
				// Home, draw over what was there, and clear the rest (ECMA-48).
				if err := a.showUsage(cmd, all, "\x1b[H"); err != nil {
					return err
				}
				select {
				case <-cmd.Context().Done():
					return nil
				case <-tick.C:
				}
			}
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "once, not live")
	cmd.Flags().BoolVarP(&all, "all-tenants", "A", false, "of all tenants (operator)")
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "how often to look")
	return cmd
}

func (a *app) showUsage(cmd *cobra.Command, all bool, home string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	tenant := a.tenant
	if all {
		tenant = ""
	}
	usage, err := c.Usage(cmd.Context(), tenant)
	if err != nil {
		return err
	}
	slices.SortFunc(usage, func(a, b api.Usage) int {
		return cmp.Or(cmp.Compare(b.CPU, a.CPU), cmp.Compare(b.Memory, a.Memory), cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Server, b.Server))
	})
	if a.output != "table" {
		if usage == nil {
			usage = []api.Usage{}
		}
		return a.print(cmd.OutOrStdout(), usage)
	}
	var t table
	header := []string{"SERVER", "CPU", "CPU TIME", "MEMORY", "PIDS", "READ", "WRITTEN", "RECEIVED", "SENT"}
	if all {
		header = append([]string{"TENANT"}, header...)
	}
	t.add(header...)
	for _, u := range usage {
		row := []string{
			u.Server, fmt.Sprintf("%.1f%%", float64(u.CPU)/10), time.Duration(u.CPUTime).Round(100 * time.Millisecond).String(), u.Memory.Approx(),
			fmt.Sprint(u.PIDs), u.Read.Approx(), u.Written.Approx(), u.RxBytes.Approx(), u.TxBytes.Approx(),
		}
		if all {
			row = append([]string{u.Tenant}, row...)
		}
		t.add(row...)
	}
	var b bytes.Buffer
	t.write(&b)
	out := b.Bytes()
	if home != "" {
		out = append([]byte(home), bytes.ReplaceAll(out, []byte("\n"), []byte("\x1b[K\n"))...)
		out = append(out, "\x1b[J"...)
	}
	_, err = cmd.OutOrStdout().Write(out)
	return err
}

// Version of the program: set by the linker, or the module's.
var Version = ""

func version() string {
	if Version != "" {
		return Version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "devel"
}

func (a *app) versionCommand(root *cobra.Command) *cobra.Command {
	root.Version = version()
	root.SetVersionTemplate("croft {{.Version}}\n")
	return &cobra.Command{
		Use: "version", Short: "Show the versions of the program and of the daemon", Args: exactly(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			daemon, err := c.Version(cmd.Context())
			if a.output == "table" {
				fmt.Fprintf(cmd.OutOrStdout(), "croft   %s\n", version())
			}
			if err != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "daemon  %v\n", err)
			}
			if a.output != "table" {
				return a.print(cmd.OutOrStdout(), map[string]string{"client": version(), "daemon": daemon.Version})
			}
			if err != nil {
				return nil
			}
			fmt.Fprintf(cmd.OutOrStdout(), "daemon  %s\n", daemon.Version)
			return nil
		},
	}
}

func (a *app) debugCommand() *cobra.Command {
	var path string
	bundle := &cobra.Command{
		Use: "bundle", Short: "Collect what a bug report needs", Args: exactly(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if path == "" {
				path = "croft-debug-" + now().UTC().Format("20060102T150405Z") + ".tar.gz"
			}
			return writeBundle(cmd, c.Bundle, path)
		},
	}
	bundle.Flags().StringVarP(&path, "output", "o", "", "file to write, or - (default croft-debug-TIME.tar.gz)")
	return noun("debug", "Look into the daemon", nil, bundle)
}

// writeBundle writes the file whole or not at all.
func writeBundle(cmd *cobra.Command, fetch func(context.Context, io.Writer) error, path string) error {
	if path == "-" {
		return fetch(cmd.Context(), cmd.OutOrStdout())
	}
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(fetch(cmd.Context(), f), f.Close())
	if err == nil {
		err = os.Rename(part, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(part))
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: written\n", path)
	return nil
}
