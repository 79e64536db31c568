package cli

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
)

func (a *app) networkCommand() *cobra.Command {
	k := &kind[api.Network, api.NetworkSpec]{
		app: a, singular: "network", plural: "networks", resources: (*client.Client).Networks,
		meta:   func(n *api.Network) *api.Meta { return &n.Meta },
		header: []string{"NAME", "SUBNETS", "NAT", "SERVERS", "PHASE", "AGE"},
		row: func(st style, n *api.Network) []string {
			return []string{n.Name, orDash(subnets(n)), yesNo(n.Spec.NAT == nil || *n.Spec.NAT), fmt.Sprint(n.Status.Ports), st.phase(n.Status.Phase), age(n.Created)}
		},
		show: func(st style, p *pairs, n *api.Network) {
			p.put("Phase", st.phase(n.Status.Phase))
			for _, s := range n.Spec.Subnets {
				text := s.Prefix.String()
				if s.Gateway.IsValid() {
					text += ", gateway " + s.Gateway.String()
				}
				p.put("Subnet", text)
			}
			p.put("NAT", yesNo(n.Spec.NAT == nil || *n.Spec.NAT))
			p.put("Bandwidth", bandwidth(n.Spec.Bandwidth))
			p.put("MTU", zeroDash(n.Spec.MTU))
			p.put("Domain", n.Spec.DNS.Domain)
			p.put("Servers", fmt.Sprint(n.Status.Ports))
			conditions(st, p, n.Status.Conditions)
		},
		filters: []string{"name"},
	}
	return noun("network", "Private networks", []string{"networks", "net"}, k.createNetwork(), k.list(), k.showCommand(), k.edit(), k.delete())
}

func subnets(n *api.Network) string {
	var out []string
	for _, s := range n.Spec.Subnets {
		out = append(out, s.Prefix.String())
	}
	return strings.Join(out, ",")
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func zeroDash(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func (k *kind[T, S]) createNetwork() *cobra.Command {
	var prefixes, labelled []string
	var spec api.NetworkSpec
	var noNAT bool
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a network", Args: exactly("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		Example: "  croft network create corp --subnet 10.7.0.0/24\n" +
			"  croft network create voice --committed 20Mbit --peak 50Mbit",
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, text := range prefixes {
				prefix, err := netip.ParsePrefix(text)
				if err != nil {
					return usagef("--subnet %q is no prefix: write 10.7.0.0/24", text)
				}
				spec.Subnets = append(spec.Subnets, api.Subnet{Prefix: prefix})
			}
			if noNAT {
				spec.NAT = new(bool)
			}
			labels, err := keyValues("--label", labelled)
			if err != nil {
				return err
			}
			c, err := k.client()
			if err != nil {
				return err
			}
			n, err := c.Networks(k.tenant).Create(cmd.Context(), client.Create[api.NetworkSpec]{Name: args[0], Labels: labels, Spec: spec})
			if err != nil {
				return err
			}
			return k.done(cmd, n, fmt.Sprintf("%s: created %s", n.Name, subnets(n)))
		},
	}
	cmd.Flags().StringArrayVar(&prefixes, "subnet", nil, "prefix, as 10.7.0.0/24 (default: a free one)")
	cmd.Flags().BoolVar(&noNAT, "no-nat", false, "no way out: its servers reach each other, and nothing else")
	cmd.Flags().IntVar(&spec.MTU, "mtu", 0, "MTU (default 1500)")
	bandwidthFlags(cmd.Flags(), &spec.Bandwidth)
	cmd.Flags().StringVar(&spec.DNS.Domain, "domain", "", "domain of the servers' names (default NETWORK.TENANT.internal)")
	cmd.Flags().StringArrayVarP(&labelled, "label", "l", nil, "label, key=value; repeatable")
	return cmd
}

func (a *app) hostCommand() *cobra.Command {
	k := &kind[api.Host, api.HostSpec]{
		app: a, singular: "host", plural: "hosts", global: true,
		resources: func(c *client.Client, _ string) *client.Resource[api.Host, api.HostSpec] { return c.Hosts() },
		meta:      func(h *api.Host) *api.Meta { return &h.Meta },
		header:    []string{"NAME", "PHASE", "SERVERS", "CPUS FREE", "MEMORY FREE", "DISK FREE", "ENGINES", "AGE"},
		row: func(st style, h *api.Host) []string {
			s := &h.Status
			return []string{
				h.Name, st.phase(hostPhase(h)), fmt.Sprint(s.Allocated.Servers), (s.Allocatable.CPU - s.Allocated.CPU).String() + "/" + s.Allocatable.CPU.String(),
				(s.Allocatable.Memory - s.Allocated.Memory).Approx() + "/" + s.Allocatable.Memory.Approx(),
				(s.Allocatable.Disk - s.Allocated.Disk).Approx() + "/" + s.Allocatable.Disk.Approx(), engines(s.Engines), age(h.Created),
			}
		},
		show: showHost,
	}
	return noun("host", "Physical servers", []string{"hosts"}, k.list(), k.showCommand(), k.edit())
}

func hostPhase(h *api.Host) string {
	if h.Spec.Unschedulable && h.Status.Phase == "ready" {
		return "unschedulable"
	}
	return h.Status.Phase
}

func engines(list []api.EngineStatus) string {
	var names []string
	for _, e := range list {
		if e.Available {
			names = append(names, e.Name)
		}
	}
	return orDash(strings.Join(names, ","))
}

func showHost(st style, p *pairs, h *api.Host) {
	s := &h.Status
	p.put("Phase", st.phase(hostPhase(h)))
	p.put("Version", s.Version)
	p.put("Kernel", s.Kernel)
	p.put("Cgroups", s.Cgroups)
	p.put("Booted", age(s.Booted)+" ago")
	p.put("CPU", fmt.Sprintf("%s of %s promised, machine has %s", s.Allocated.CPU, s.Allocatable.CPU, s.Capacity.CPU))
	p.put("Memory", fmt.Sprintf("%s of %s promised, machine has %s", s.Allocated.Memory.Approx(), s.Allocatable.Memory.Approx(), s.Capacity.Memory.Approx()))
	if pages := s.Capacity.HugePages; pages > 0 || s.Allocated.HugePages > 0 { // of fewer than before, more may be promised
		p.put("Huge pages", fmt.Sprintf("%s of %s promised", s.Allocated.HugePages.Approx(), pages.Approx()))
	}
	p.put("Disk", fmt.Sprintf("%s of %s promised, machine has %s", s.Allocated.Disk.Approx(), s.Allocatable.Disk.Approx(), s.Capacity.Disk.Approx()))
	p.put("Uplink", uplink(s.Uplink))
	for _, e := range s.Engines {
		text := st.paint(green, "available")
		if !e.Available {
			text = st.paint(red, "not available")
		}
		for _, more := range []string{e.Version, e.Accelerator, strings.Join(e.Abilities, " ")} {
			if more != "" {
				text += ", " + more
			}
		}
		if e.Reason != "" {
			text += ": " + e.Reason
		}
		p.put("Engine "+e.Name, text)
		var kinds []string
		for _, kind := range e.Grants {
			kinds = append(kinds, string(kind))
		}
		p.put("  grants", strings.Join(kinds, " "))
		for _, w := range e.Withheld {
			p.put("  no "+string(w.Kind), w.Reason)
		}
	}
	conditions(st, p, s.Conditions)
}

func uplink(u api.UplinkStatus) string {
	switch {
	case u.Device == "":
		return "none: networks have no way out"
	case u.Rate == 0:
		return u.Device + ", of a rate that it does not tell: declare it as uplinkRate, so that rates can be committed"
	}
	return fmt.Sprintf("%s, %s committed of %s, carries %s", u.Device, u.Committed, u.Committable, u.Rate)
}

func (a *app) tenantCommand() *cobra.Command {
	k := &kind[api.Tenant, api.TenantSpec]{
		app: a, singular: "tenant", plural: "tenants", global: true,
		resources: func(c *client.Client, _ string) *client.Resource[api.Tenant, api.TenantSpec] { return c.Tenants() },
		meta:      func(t *api.Tenant) *api.Meta { return &t.Meta },
		header:    []string{"NAME", "PARENT", "SERVERS", "CPUS", "MEMORY", "DISK", "NETWORKS", "IMAGES", "AGE"},
		row: func(_ style, t *api.Tenant) []string {
			u, q := &t.Status, &t.Spec.Quota
			return []string{
				t.Name, orDash(t.Spec.Parent), of(fmt.Sprint(u.Used.Servers), q.Servers), of(u.Used.CPU.String(), q.CPU),
				of(u.Used.Memory.Approx(), q.Memory), of(u.Used.Disk.Approx(), q.Disk), of(fmt.Sprint(u.Networks), q.Networks),
				of(fmt.Sprint(u.Images), q.Images), age(t.Created),
			}
		},
		show: func(_ style, p *pairs, t *api.Tenant) {
			u, q := &t.Status, &t.Spec.Quota
			p.put("Parent", t.Spec.Parent)
			p.put("Servers", of(fmt.Sprint(u.Used.Servers), q.Servers))
			p.put("CPU", of(u.Used.CPU.String(), q.CPU))
			p.put("Memory", of(u.Used.Memory.Approx(), q.Memory))
			p.put("Disk", of(u.Used.Disk.Approx(), q.Disk))
			p.put("Networks", of(fmt.Sprint(u.Networks), q.Networks))
			p.put("Images", of(fmt.Sprint(u.Images), q.Images))
			p.put("Bandwidth", bandwidth(t.Spec.Bandwidth))
			if u.Bandwidth > 0 || q.Bandwidth != nil {
				p.put("  committed to networks", of(u.Bandwidth.String(), q.Bandwidth))
			}
			for _, g := range t.Spec.Grants {
				p.put("May grant", strings.TrimSpace(string(g.Kind)+" "+g.Source))
			}
		},
	}
	return noun("tenant", "Customers and their quotas", []string{"tenants"}, k.createTenant(), k.list(), k.showCommand(), k.edit(), k.delete())
}

// of writes what is used, of what may be.
func of[V any](used string, quota *V) string {
	if quota == nil {
		return used
	}
	return fmt.Sprintf("%s/%v", used, *quota)
}

func (k *kind[T, S]) createTenant() *cobra.Command {
	var parent string
	var servers, networks, images int
	var cpu api.MilliCPU
	var memory, disk api.Bytes
	var profile api.Bandwidth
	var bandwidth api.BitRate
	var grants, labelled []string
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a tenant", Args: exactly("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		Example: "  croft tenant create acme --servers 20 --cpus 8 --memory 32GiB --allow directory:/srv/acme",
		RunE: func(cmd *cobra.Command, args []string) error {
			spec := api.TenantSpec{Parent: parent, Bandwidth: profile}
			set := cmd.Flags().Changed
			q := &spec.Quota
			q.Servers, q.Networks, q.Images = given(set("servers"), servers), given(set("networks"), networks), given(set("images"), images)
			q.CPU, q.Memory, q.Disk = given(set("cpus"), cpu), given(set("memory"), memory), given(set("disk"), disk)
			q.Bandwidth = given(set("bandwidth"), bandwidth)
			for _, text := range grants {
				kind, source, _ := strings.Cut(text, ":")
				spec.Grants = append(spec.Grants, api.AllowedGrant{Kind: api.GrantKind(kind), Source: source})
			}
			labels, err := keyValues("--label", labelled)
			if err != nil {
				return err
			}
			c, err := k.client()
			if err != nil {
				return err
			}
			t, err := c.Tenants().Create(cmd.Context(), client.Create[api.TenantSpec]{Name: args[0], Labels: labels, Spec: spec})
			if err != nil {
				return err
			}
			return k.done(cmd, t, t.Name+": created")
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&parent, "parent", "", "tenant whose quota its use counts against too")
	flags.IntVar(&servers, "servers", 0, "most servers (default: no limit)")
	cpuFlag(flags, &cpu, "cpus", "most CPU, as the sum of entitlements")
	sizeFlag(flags, &memory, "memory", "most memory, as the sum of reservations")
	sizeFlag(flags, &disk, "disk", "most disk")
	flags.IntVar(&networks, "networks", 0, "most networks")
	flags.IntVar(&images, "images", 0, "most images")
	flags.Var(&parsed[api.BitRate]{to: &bandwidth, parse: api.ParseBitRate, kind: "rate"}, "bandwidth", "most that may be committed to its networks, in sum")
	bandwidthFlags(flags, &profile)
	flags.StringArrayVar(&grants, "allow", nil, "grant that its servers may ask for, kind[:source]; repeatable")
	flags.StringArrayVarP(&labelled, "label", "l", nil, "label, key=value; repeatable")
	k.completeFlag(cmd, "parent", "tenants")
	return cmd
}

// given is a quota's field: nil where the flag was not.
func given[V any](set bool, value V) *V {
	if !set {
		return nil
	}
	return &value
}
