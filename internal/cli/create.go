package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
)

// parsed is a flag whose value is read by a parser of package api.
type parsed[T fmt.Stringer] struct {
	to    *T
	parse func(string) (T, error)
	kind  string
	set   bool
}

func (p *parsed[T]) Set(s string) (err error) {
	if *p.to, err = p.parse(s); err == nil && isZero(*p.to) {
		return errors.New("it must be more than 0; leave the flag out for the default")
	}
	p.set = true
	return err
}

func isZero[T any](v T) bool { return reflect.ValueOf(v).IsZero() }

func (p *parsed[T]) Type() string { return p.kind }

func (p *parsed[T]) String() string {
	if p.to == nil || !p.set {
		return ""
	}
	return (*p.to).String()
}

func sizeFlag(f *pflag.FlagSet, to *api.Bytes, name, usage string) {
	f.Var(&parsed[api.Bytes]{to: to, parse: api.ParseBytes, kind: "size"}, name, usage)
}

func cpuFlag(f *pflag.FlagSet, to *api.MilliCPU, name, usage string) {
	f.Var(&parsed[api.MilliCPU]{to: to, parse: api.ParseMilliCPU, kind: "cpus"}, name, usage)
}

// bandwidthFlags are those of a bandwidth profile.
func bandwidthFlags(f *pflag.FlagSet, to *api.Bandwidth) {
	f.Var(&parsed[api.BitRate]{to: &to.Committed, parse: api.ParseBitRate, kind: "rate"}, "committed", "rate that is had on the uplink whatever others ask for, as 20Mbit; in each direction")
	f.Var(&parsed[api.BitRate]{to: &to.Peak, parse: api.ParseBitRate, kind: "rate"}, "peak", "rate that is never exceeded")
	sizeFlag(f, &to.Burst, "burst", "bytes that may pass at once")
}

// bandwidth writes a profile for people.
func bandwidth(b api.Bandwidth) string {
	var parts []string
	if b.Committed > 0 {
		parts = append(parts, b.Committed.String()+" committed")
	}
	if b.Peak > 0 {
		parts = append(parts, b.Peak.String()+" at most")
	}
	if b.Burst > 0 {
		parts = append(parts, b.Burst.String()+" at once")
	}
	return strings.Join(parts, ", ")
}

// serverFlags are the flags of create that are no plain fields of the spec.
type serverFlags struct {
	spec                    api.ServerSpec
	labels, env, grants     []string
	networks, addresses     []string
	macs, sshKeys           []string
	entrypoint              []string
	user, workdir, hostname string
	userData                string
	model, firmware         string
	devices                 string
	autostart, restart      string
	stopTimeout             time.Duration
	stopped                 bool
}

func (k *kind[T, S]) createServer() *cobra.Command {
	var f serverFlags
	var wait waitFlags
	cmd := &cobra.Command{
		Use: "create NAME [flags] [-- ARGS…]", Short: "Create a server",
		Example: "  croft server create web --model os --image micro --cpus 1 --memory 256MiB --network corp\n" +
			"  croft server create app --model os --image nginx --env MODE=test -- nginx -g 'daemon off;'",
		Args: func(cmd *cobra.Command, args []string) error {
			if dash := cmd.ArgsLenAtDash(); dash >= 0 {
				args = args[:dash]
			}
			return exactly("NAME")(cmd, args)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range []string{"cpus", "weight", "pids"} {
				if flag := cmd.Flags().Lookup(name); flag.Changed && flag.Value.String() == "0" {
					return usagef("--%s must be more than 0; leave the flag out for the default", name)
				}
			}
			spec, err := f.build(args[1:])
			if err != nil {
				return err
			}
			labels, err := keyValues("--label", f.labels)
			if err != nil {
				return err
			}
			c, err := k.client()
			if err != nil {
				return err
			}
			w := k.newWaiter(cmd, k.tenant, args[0])
			server, err := c.Servers(k.tenant).Create(cmd.Context(), client.Create[api.ServerSpec]{Name: args[0], Labels: labels, Spec: spec})
			if err != nil {
				return err
			}
			if !wait.wanted(cmd) {
				return k.done(cmd, server, fmt.Sprintf("%s: admitted on %s", server.Name, server.Status.Host))
			}
			return w.until(wait.timeout, server, stateGoal(nil, server))
		},
	}
	f.register(cmd)
	k.completeServerFlags(cmd)
	wait.register(cmd)
	return cmd
}

func (f *serverFlags) register(cmd *cobra.Command) {
	s, flags := &f.spec, cmd.Flags()
	flags.StringVar(&f.model, "model", "", "full, para or os (required)")
	flags.StringVar(&s.Engine, "engine", "", "engine of the model; default: the host chooses")
	flags.StringVar(&s.Image, "image", "", "image to make the root disk from (required)")
	flags.StringVar(&s.Host, "host", "", "host to place it on; default: Croft chooses")
	flags.IntVar(&s.CPU.Count, "cpus", 0, "virtual CPUs (default 1)")
	cpuFlag(flags, &s.CPU.Entitlement, "entitlement", "CPU that it always gets, as 500m or 2")
	cpuFlag(flags, &s.CPU.Cap, "cap", "CPU that it never exceeds")
	flags.IntVar(&s.CPU.Weight, "weight", 0, "share of the CPU that is left over, 1 to 10000")
	flags.BoolVar(&s.CPU.Dedicated, "dedicated-cpus", false, "whole host CPUs for it alone (needs the grant)")
	sizeFlag(flags, &s.Memory.Limit, "memory", "memory, as 256MiB (default 512MiB)")
	sizeFlag(flags, &s.Memory.Reservation, "reservation", "memory that is kept for it (default: all)")
	flags.BoolVar(&s.Memory.HugePages, "huge-pages", false, "back the memory with huge pages (needs the grant)")
	flags.Int64Var(&s.PIDs, "pids", 0, "most processes (default 4096)")
	sizeFlag(flags, &s.Disk.Size, "disk", "size of the root disk (default 10GiB)")
	flags.Int64Var(&s.Disk.ReadIOPS, "read-iops", 0, "most reads a second")
	flags.Int64Var(&s.Disk.WriteIOPS, "write-iops", 0, "most writes a second")
	sizeFlag(flags, &s.Disk.ReadRate, "read-rate", "most bytes read a second")
	sizeFlag(flags, &s.Disk.WriteRate, "write-rate", "most bytes written a second")
	flags.StringArrayVar(&f.networks, "network", nil, "network to attach it to: one, today")
	flags.StringArrayVar(&f.addresses, "address", nil, "address in the network (default: a free one)")
	flags.StringArrayVar(&f.macs, "mac", nil, "MAC address (default: one that stays the server's)")
	flags.StringArrayVar(&f.grants, "grant", nil, "kind[:source[:target]][:ro], as directory:/srv/data:/data:ro; repeatable")
	flags.StringVar(&f.firmware, "firmware", "", "bios or uefi, of a full server (default bios)")
	flags.StringVar(&f.devices, "devices", "", "virtio or emulated, of a full server (default virtio)")
	flags.StringVar(&s.CDROM, "cdrom", "", "ISO image in the drive of a full server")
	flags.StringArrayVarP(&f.labels, "label", "l", nil, "label, key=value; repeatable")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "environment of an application, NAME=value; repeatable")
	flags.StringVar(&f.user, "user", "", "user of an application, user[:group]")
	flags.StringVar(&f.workdir, "workdir", "", "working directory of an application")
	flags.StringArrayVar(&f.entrypoint, "entrypoint", nil, "entrypoint of an application; once for each word")
	flags.StringVar(&f.hostname, "hostname", "", "host name at first boot (default: the name)")
	flags.StringArrayVar(&f.sshKeys, "ssh-key", nil, "SSH key at first boot, or @FILE; repeatable")
	flags.StringVar(&f.userData, "user-data", "", "cloud-init user-data, or @FILE")
	flags.StringVar(&f.autostart, "autostart", "", "last, always or never, after a reboot of the host (default last)")
	flags.IntVar(&s.Autostart.Order, "autostart-order", 0, "lower starts first")
	flags.StringVar(&f.restart, "restart", "", "never, on-failure or always (default on-failure)")
	flags.IntVar(&s.Restart.MaxRetries, "max-retries", 0, "restarts in a row before giving up; 0: no limit")
	flags.DurationVar(&f.stopTimeout, "stop-timeout", 0, "how long a graceful stop may take (default 30s)")
	flags.BoolVar(&s.DeleteProtection, "protect", false, "refuse to delete it")
	flags.BoolVar(&f.stopped, "stopped", false, "do not start it")
}

func (k *kind[T, S]) completeServerFlags(cmd *cobra.Command) {
	complete(cmd, "model", "full\tcomplete machine", "para\tguest kernel that knows it is one", "os\tthe host's kernel")
	complete(cmd, "engine", "auto", "qemu", "microvm", "uml", "runc")
	complete(cmd, "firmware", "bios", "uefi")
	complete(cmd, "devices", "virtio", "emulated")
	complete(cmd, "autostart", "last", "always", "never")
	complete(cmd, "restart", "never", "on-failure", "always")
	k.completeFlag(cmd, "image", "images")
	k.completeFlag(cmd, "cdrom", "images")
	k.completeFlag(cmd, "host", "hosts")
	k.completeFlag(cmd, "network", "networks")
}

// build makes the spec out of the flags; args are those after "--".
func (f *serverFlags) build(args []string) (api.ServerSpec, error) {
	s := f.spec
	s.Model, s.Firmware, s.Devices = api.Model(f.model), api.Firmware(f.firmware), api.Devices(f.devices)
	s.Autostart.Policy, s.Restart.Policy = api.AutostartPolicy(f.autostart), api.RestartKind(f.restart)
	s.StopTimeout = api.Duration(f.stopTimeout)
	if f.model == "" {
		return s, usagef("--model is missing: full, para or os")
	}
	if s.Image == "" {
		return s, usagef("--image is missing: croft image list shows what there is")
	}
	if f.stopped {
		s.State = api.StateStopped
	}
	if err := f.ports(&s); err != nil {
		return s, err
	}
	for _, text := range f.grants {
		g, err := parseGrant(text)
		if err != nil {
			return s, err
		}
		s.Grants = append(s.Grants, g)
	}
	env, err := keyValues("--env", f.env)
	if err != nil {
		return s, err
	}
	if env != nil || len(args) > 0 || len(f.entrypoint) > 0 || f.user != "" || f.workdir != "" {
		s.App = &api.App{Entrypoint: f.entrypoint, Args: args, Env: env, User: f.user, WorkingDir: f.workdir}
	}
	return s, f.guest(&s)
}

func (f *serverFlags) ports(s *api.ServerSpec) error {
	if len(f.addresses) > len(f.networks) || len(f.macs) > len(f.networks) {
		return usagef("--address and --mac need a --network each")
	}
	for i, name := range f.networks {
		port := api.Port{Network: name}
		if i < len(f.addresses) {
			address, err := netip.ParseAddr(f.addresses[i])
			if err != nil {
				return usagef("--address %q is no IP address", f.addresses[i])
			}
			port.Address = address
		}
		if i < len(f.macs) {
			port.MAC = f.macs[i]
		}
		s.Ports = append(s.Ports, port)
	}
	return nil
}

// parseGrant reads kind[:source[:target]][:ro].
func parseGrant(text string) (api.Grant, error) {
	parts := strings.Split(text, ":")
	g := api.Grant{Kind: api.GrantKind(parts[0])}
	switch g.Kind {
	case api.GrantDedicatedCPU:
		return g, usagef("--grant %s: ask for it by --dedicated-cpus", text)
	case api.GrantHugePages:
		return g, usagef("--grant %s: ask for it by --huge-pages", text)
	}
	rest := parts[1:]
	if g.Kind == api.GrantDevice && len(parts) > 3 && !strings.HasPrefix(parts[1], "/") {
		g.Source = strings.Join(rest, ":") // a PCI address has colons of its own
		return g, nil
	}
	if len(rest) > 0 && rest[len(rest)-1] == "ro" {
		g.ReadOnly, rest = true, rest[:len(rest)-1]
	}
	if len(rest) > 2 || parts[0] == "" {
		return g, usagef("--grant %q is not kind[:source[:target]][:ro]", text)
	}
	if len(rest) > 0 {
		g.Source = rest[0]
	}
	if len(rest) > 1 {
		g.Target = rest[1]
	}
	return g, nil
}

func (f *serverFlags) guest(s *api.ServerSpec) error {
	if f.hostname == "" && len(f.sshKeys) == 0 && f.userData == "" {
		return nil
	}
	g := &api.Guest{Hostname: f.hostname}
	for _, key := range f.sshKeys {
		text, err := fromFile(key)
		if err != nil {
			return err
		}
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				g.SSHKeys = append(g.SSHKeys, line)
			}
		}
	}
	var err error
	g.UserData, err = fromFile(f.userData)
	s.Guest = g
	return err
}

// fromFile is the value itself, or the content of the file that @FILE names.
func fromFile(value string) (string, error) {
	path, ok := strings.CutPrefix(value, "@")
	if !ok {
		return value, nil
	}
	data, err := os.ReadFile(path)
	return string(data), err
}

// encoded is v as a JSON document.
func encoded(v any) (map[string]any, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var out map[string]any
	err = json.Unmarshal(data, &out)
	return out, err
}
