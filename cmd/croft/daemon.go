package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/croftproject/croft/internal/daemon"
)

func daemonCommand() *cobra.Command {
	var o daemon.Options
	var level string
	var clean bool
	c := &cobra.Command{
		Use:   "daemon",
		Short: "Run Croft on this host",
		Long: `Run Croft on this host. It needs root. Guests go on when the daemon ends, and are adopted by the next one.

Several daemons run side by side on one machine, each with a state directory and a network namespace of its own.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var l slog.Level
			if err := l.UnmarshalText([]byte(level)); err != nil {
				return fmt.Errorf("--log-level %q: write debug, info, warn or error", level)
			}
			o.Version = version
			o.Logger = slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: l}))
			if clean {
				return daemon.Clean(c.Context(), o)
			}
			return daemon.Run(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.StateDir, "state-dir", daemon.DefaultStateDir, "where servers, images and records are kept")
	f.StringVar(&o.RunDir, "run-dir", "", "where sockets and namespaces are (default: /run/croft, or one that follows from the state directory)")
	f.StringVar(&o.NetNS, "netns", "", "network namespace that guests' networks are joined to, by name or path (default: the present one)")
	f.StringVar(&o.Uplink, "uplink", "", "device that leads out (default: that of the default route)")
	f.StringVar(&o.Host, "host", "", "name of this host (default: its hostname)")
	f.StringVar(&o.OCIRuntime, "oci-runtime", "runc", "OCI runtime for servers of model os")
	f.StringSliceVar(&o.EtcdEndpoints, "etcd", nil, "endpoints of an etcd cluster to use instead of the embedded one")
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	f.BoolVar(&clean, "clean", false, "take away networks, control groups and the keeper of a daemon that ended, and exit; its state stays")
	return c
}
