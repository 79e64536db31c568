package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
)

func (a *app) servers() *kind[api.Server, api.ServerSpec] {
	return &kind[api.Server, api.ServerSpec]{
		app: a, singular: "server", plural: "servers", resources: (*client.Client).Servers,
		meta:    func(s *api.Server) *api.Meta { return &s.Meta },
		header:  []string{"NAME", "MODEL", "ENGINE", "PHASE", "ADDRESS", "CPUS", "MEMORY", "IMAGE", "HOST", "AGE"},
		row:     serverRow,
		show:    showServer,
		filters: []string{"phase", "model", "host", "network", "image", "name"},
	}
}

func serverRow(st style, s *api.Server) []string {
	return []string{
		s.Name, string(s.Spec.Model), orDash(s.Status.Engine), st.phase(string(s.Status.Phase)), orDash(addressOf(s)),
		fmt.Sprint(max(s.Spec.CPU.Count, 1)), s.Spec.Memory.Limit.String(), s.Spec.Image, orDash(s.Status.Host), age(s.Created),
	}
}

// addressOf is the first address of a server; empty where it has none.
func addressOf(s *api.Server) string {
	for _, p := range s.Status.Ports {
		if p.Address.IsValid() {
			return p.Address.String()
		}
	}
	return ""
}

func showServer(st style, p *pairs, s *api.Server) {
	phase := st.phase(string(s.Status.Phase))
	if s.Status.Message != "" {
		phase += ": " + s.Status.Message
	}
	engine := s.Status.Engine
	if s.Status.Accelerator != "" {
		engine += " (" + s.Status.Accelerator + ")"
	}
	p.put("Phase", phase)
	p.put("Wanted", string(s.Spec.State))
	p.put("Model", string(s.Spec.Model))
	p.put("Engine", engine)
	p.put("Image", s.Spec.Image)
	p.put("Host", s.Status.Host)
	p.put("CPU", cpuText(s.Spec.CPU))
	p.put("Memory", memoryText(s))
	p.put("Disk", zeroEmpty(s.Spec.Disk.Size))
	for _, port := range s.Status.Ports {
		p.put("Port", fmt.Sprintf("%s %s/%d %s", port.Network, port.Address, port.Prefix, port.MAC))
	}
	for _, g := range s.Spec.Grants {
		p.put("Grant", grant(g))
	}
	if !s.Status.Started.IsZero() && s.Status.Phase == api.PhaseRunning {
		started := age(s.Status.Started) + " ago"
		if boot := s.Status.Ready.Sub(s.Status.Started); !s.Status.Ready.IsZero() && boot >= 0 {
			started += fmt.Sprintf(", up after %.2f s", boot.Seconds())
		}
		p.put("Started", started)
	}
	if e := s.Status.Exit; e != nil {
		p.put("Last exit", strings.TrimSpace(fmt.Sprintf("code %d %s, %s ago", e.Code, e.Reason, age(e.Time))))
	}
	if s.Spec.DeleteProtection {
		p.put("Protection", "against deletion")
	}
	conditions(st, p, s.Status.Conditions)
}

func conditions(st style, p *pairs, list []api.Condition) {
	for _, c := range list {
		mark := st.paint(green, "yes")
		if !c.Status {
			mark = st.paint(yellow, "no")
		}
		p.put(c.Type, strings.TrimSpace(mark+" "+c.Message))
	}
}

func cpuText(c api.CPU) string {
	text := fmt.Sprintf("%d", max(c.Count, 1))
	for _, part := range []struct {
		name  string
		value api.MilliCPU
	}{{"entitled to", c.Entitlement}, {"cap", c.Cap}} {
		if part.value != 0 {
			text += fmt.Sprintf(", %s %s", part.name, part.value)
		}
	}
	if c.Weight != 0 {
		text += fmt.Sprintf(", weight %d", c.Weight)
	}
	if c.Dedicated {
		text += ", dedicated"
	}
	return text
}

func memoryText(s *api.Server) string {
	text := zeroEmpty(s.Spec.Memory.Limit)
	if r := s.Spec.Memory.Reservation; r != 0 {
		text += ", reserved " + r.String()
	}
	if o := s.Status.Overhead; o != 0 {
		text += ", engine " + o.String()
	}
	return text
}

func zeroEmpty(b api.Bytes) string {
	if b == 0 {
		return ""
	}
	return b.String()
}

func (a *app) serverCommand() *cobra.Command {
	k := a.servers()
	list := k.list()
	complete(list, "model", "full", "para", "os")
	complete(list, "phase", "running", "stopped", "paused", "failed", "backoff", "pending", "starting", "stopping", "deleting")
	a.completeFlag(list, "host", "hosts")
	a.completeFlag(list, "network", "networks")
	a.completeFlag(list, "image", "images")
	return noun("server", "Virtual servers", []string{"servers"},
		k.createServer(), list, k.showCommand(),
		k.power(api.PowerStart, "Start servers"), k.power(api.PowerStop, "Stop servers"),
		k.power(api.PowerRestart, "Restart servers"), k.power(api.PowerPause, "Pause servers"),
		k.power(api.PowerResume, "Resume paused servers"),
		k.edit(), k.rename(), k.deleteServer(), a.consoleCommand(k), a.execCommand(k), a.logCommand(k), k.waitCommand())
}

// waitFlags are how long to wait for what was asked.
type waitFlags struct {
	no      bool
	timeout time.Duration
}

func (w *waitFlags) register(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&w.no, "no-wait", false, "do not wait until it is done")
	cmd.Flags().Bool("wait", true, "wait until it is done, and show progress")
	cmd.Flags().DurationVar(&w.timeout, "timeout", 5*time.Minute, "how long to wait")
}

// wanted tells whether to wait.
func (w *waitFlags) wanted(cmd *cobra.Command) bool {
	wait, err := cmd.Flags().GetBool("wait")
	return err == nil && wait && !w.no
}

func (k *kind[T, S]) power(action api.PowerAction, short string) *cobra.Command {
	var force bool
	var wait waitFlags
	cmd := &cobra.Command{
		Use: string(action) + " NAME…", Short: short, Args: atLeastOne("NAME"), ValidArgsFunction: k.names,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := k.client()
			if err != nil {
				return err
			}
			for _, name := range args {
				w := k.newWaiter(cmd, k.tenant, name)
				before, err := c.Servers(k.tenant).Get(cmd.Context(), name)
				if err != nil {
					return err
				}
				server, err := c.Power(cmd.Context(), k.tenant, name, action, force)
				if err != nil {
					return err
				}
				if !wait.wanted(cmd) {
					if err := k.done(cmd, server, fmt.Sprintf("%s: %s asked for", name, action)); err != nil {
						return err
					}
					continue
				}
				if err := w.until(wait.timeout, server, powerGoal(action, before)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	if action == api.PowerStop || action == api.PowerRestart {
		cmd.Flags().BoolVar(&force, "force", false, "hard and at once, as if the plug was pulled")
	}
	wait.register(cmd)
	return cmd
}

func (k *kind[T, S]) deleteServer() *cobra.Command {
	var force bool
	var wait waitFlags
	cmd := &cobra.Command{
		Use: "delete NAME…", Aliases: []string{"rm"}, Short: "Delete servers and their disks", Args: atLeastOne("NAME"), ValidArgsFunction: k.names,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := k.client()
			if err != nil {
				return err
			}
			for _, name := range args {
				w := k.newWaiter(cmd, k.tenant, name)
				server, err := c.Servers(k.tenant).Delete(cmd.Context(), name, client.DeleteOptions{Force: force})
				if err != nil {
					return err
				}
				if !wait.wanted(cmd) {
					if err := k.done(cmd, server, name+": deletion asked for"); err != nil {
						return err
					}
					continue
				}
				if err := w.until(wait.timeout, server, goal{gone: true, doing: "deleting"}); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "stop a running server hard first")
	wait.register(cmd)
	return cmd
}

func (k *kind[T, S]) rename() *cobra.Command {
	return &cobra.Command{
		Use: "rename NAME NEW-NAME", Short: "Rename " + article(k.singular), Args: exactly("NAME", "NEW-NAME"), ValidArgsFunction: k.names,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := k.of()
			if err != nil {
				return err
			}
			t, err := r.Patch(cmd.Context(), args[0], map[string]string{"name": args[1]}, 0)
			if err != nil {
				return err
			}
			return k.done(cmd, t, fmt.Sprintf("%s: renamed to %s", args[0], args[1]))
		},
	}
}

// awaited are the phases that one can wait for, and the end.
var awaited = []string{
	string(api.PhasePending), string(api.PhaseStarting), string(api.PhaseRunning), string(api.PhasePaused), string(api.PhaseStopping),
	string(api.PhaseStopped), string(api.PhaseBackoff), string(api.PhaseFailed), string(api.PhaseDeleting), "deleted",
}

func (k *kind[T, S]) waitCommand() *cobra.Command {
	var phase string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "wait NAME", Short: "Wait until a server is in a phase", Args: exactly("NAME"), ValidArgsFunction: k.names,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(awaited, phase) {
				return usagef("--for is %q; it must be one of %s", phase, strings.Join(awaited, ", "))
			}
			c, err := k.client()
			if err != nil {
				return err
			}
			server, err := c.Servers(k.tenant).Get(cmd.Context(), args[0])
			if client.IsNotFound(err) && phase == "deleted" {
				return nil
			}
			if err != nil {
				return err
			}
			g := goal{phases: []api.Phase{api.Phase(phase)}, doing: "waiting", now: true}
			if phase == "deleted" {
				g = goal{gone: true, doing: "waiting"}
			}
			return k.newWaiter(cmd, k.tenant, args[0]).until(timeout, server, g)
		},
	}
	cmd.Flags().StringVar(&phase, "for", "running", "phase to wait for, or deleted")
	complete(cmd, "for", awaited...)
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long to wait")
	return cmd
}

// grant shows a grant as --grant takes it, but for the spaces.
func grant(g api.Grant) string {
	words := []string{string(g.Kind), g.Source, g.Target}
	if g.ReadOnly {
		words = append(words, "ro")
	}
	return strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), " ")
}
