package control

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/state"
)

func subnet(prefix, gateway string) []api.Subnet {
	s := api.Subnet{}
	if prefix != "" {
		s.Prefix = netip.MustParsePrefix(prefix)
	}
	if gateway != "" {
		s.Gateway = netip.MustParseAddr(gateway)
	}
	return []api.Subnet{s}
}

// forwarder is a network that asks a resolver.
func forwarder(a string) api.NetworkSpec {
	return api.NetworkSpec{DNS: api.DNS{Forwarders: []netip.Addr{netip.MustParseAddr(a)}}}
}

func TestNetworks(t *testing.T) {
	w := newWorld(t)
	create := func(name string, spec api.NetworkSpec) (*api.Network, error) {
		return w.Networks().Create(t.Context(), root, DefaultTenant, httpapi.Create[api.NetworkSpec]{Name: name, Spec: spec})
	}
	corp, err := w.Networks().Get(t.Context(), root, DefaultTenant, "corp")
	w.must(err)
	if corp.Spec.Subnets[0].Prefix.String() != "10.64.0.0/24" || corp.Spec.Subnets[0].Gateway.String() != "10.64.0.1" ||
		!*corp.Spec.NAT || corp.Spec.MTU != 1500 || corp.Spec.DNS.Domain != "corp.default.internal" {
		t.Errorf("%+v", corp.Spec)
	}
	second, err := create("second", api.NetworkSpec{})
	w.must(err)
	if got := second.Spec.Subnets[0].Prefix.String(); got != "10.64.1.0/24" {
		t.Errorf("the second network has %s", got)
	}
	for name, tc := range map[string]struct {
		spec    api.NetworkSpec
		pointer string
	}{
		"host bits":       {api.NetworkSpec{Subnets: subnet("10.7.0.1/24", "")}, "/spec/subnets/0/prefix"},
		"IPv6":            {api.NetworkSpec{Subnets: subnet("fd00::/64", "")}, "/spec/subnets/0/prefix"},
		"too small":       {api.NetworkSpec{Subnets: subnet("10.7.0.0/31", "")}, "/spec/subnets/0/prefix"},
		"too large":       {api.NetworkSpec{Subnets: subnet("10.0.0.0/8", "")}, "/spec/subnets/0/prefix"},
		"everything":      {api.NetworkSpec{Subnets: subnet("0.0.0.0/0", "")}, "/spec/subnets/0/prefix"},
		"loopback":        {api.NetworkSpec{Subnets: subnet("127.0.0.0/24", "")}, "/spec/subnets/0/prefix"},
		"multicast":       {api.NetworkSpec{Subnets: subnet("239.0.0.0/24", "")}, "/spec/subnets/0/prefix"},
		"none":            {api.NetworkSpec{Subnets: subnet("", "")}, "/spec/subnets/0/prefix"},
		"two":             {api.NetworkSpec{Subnets: append(subnet("10.7.0.0/24", ""), subnet("10.7.0.0/24", "")...)}, "/spec/subnets"},
		"gateway outside": {api.NetworkSpec{Subnets: subnet("10.7.0.0/24", "10.8.0.1")}, "/spec/subnets/0/gateway"},
		"gateway is it":   {api.NetworkSpec{Subnets: subnet("10.7.0.0/24", "10.7.0.0")}, "/spec/subnets/0/gateway"},
		"gateway is all":  {api.NetworkSpec{Subnets: subnet("10.7.0.0/24", "10.7.0.255")}, "/spec/subnets/0/gateway"},
		"MTU":             {api.NetworkSpec{MTU: 100}, "/spec/mtu"},
		"negative MTU":    {api.NetworkSpec{MTU: -1}, "/spec/mtu"},
		"domain":          {api.NetworkSpec{DNS: api.DNS{Domain: "a..b"}}, "/spec/dns/domain"},
		"forwarder":       {api.NetworkSpec{DNS: api.DNS{Forwarders: []netip.Addr{{}}}}, "/spec/dns/forwarders/0"},
		"own resolver":    {forwarder("127.0.0.53"), "/spec/dns/forwarders/0"},
		"mapped":          {forwarder("::ffff:127.0.0.1"), "/spec/dns/forwarders/0"},
		"link-local":      {forwarder("169.254.169.254"), "/spec/dns/forwarders/0"},
		"IPv6 link-local": {forwarder("fe80::1"), "/spec/dns/forwarders/0"},
		"unspecified":     {forwarder("0.0.0.0"), "/spec/dns/forwarders/0"},
		"to many":         {forwarder("224.0.0.251"), "/spec/dns/forwarders/0"},
		"above its peak":  {api.NetworkSpec{Bandwidth: api.Bandwidth{Committed: 2, Peak: 1}}, "/spec/bandwidth/committed"},
		"committed rate":  {api.NetworkSpec{Bandwidth: api.Bandwidth{Committed: mostRate + 1}}, "/spec/bandwidth/committed"},
		"peak rate":       {api.NetworkSpec{Bandwidth: api.Bandwidth{Peak: -1}}, "/spec/bandwidth/peak"},
		"burst":           {api.NetworkSpec{Bandwidth: api.Bandwidth{Burst: 1}}, "/spec/bandwidth/burst"},
		"peak, no nat":    {api.NetworkSpec{NAT: new(bool), Bandwidth: api.Bandwidth{Peak: 1}}, "/spec/bandwidth"},
		"rate, no nat":    {api.NetworkSpec{NAT: new(bool), Bandwidth: api.Bandwidth{Committed: 1}}, "/spec/bandwidth"},
	} {
		_, err := create("bad", tc.spec)
		if api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s: %v", name, err)
			continue
		}
		problem(t, err, api.CodeInvalid, tc.pointer)
	}
	_, err = create("corp", api.NetworkSpec{})
	problem(t, err, api.CodeExists, "/name")

	w.server("web", func(s *api.ServerSpec) { s.Ports = []api.Port{{Network: "corp"}} })
	_, err = w.Networks().Delete(t.Context(), root, DefaultTenant, "corp", httpapi.DeleteOptions{})
	problem(t, err, api.CodeInUse)
	spec := corp.Spec
	spec.MTU = 1400
	updated, err := w.Networks().Update(t.Context(), root, DefaultTenant, "corp", httpapi.Update[api.NetworkSpec]{Spec: spec})
	if err != nil || updated.Spec.MTU != 1400 || updated.Status.Ports != 1 {
		t.Errorf("%+v, %v", updated, err)
	}
	spec.Subnets = subnet("10.9.0.0/24", "")
	for _, u := range []httpapi.Update[api.NetworkSpec]{{Spec: spec}, {Name: "intern", Spec: corp.Spec}} {
		_, err = w.Networks().Update(t.Context(), root, DefaultTenant, "corp", u)
		problem(t, err, api.CodeInUse)
	}
	w.remove("web")
	moved, err := w.Networks().Update(t.Context(), root, DefaultTenant, "corp", httpapi.Update[api.NetworkSpec]{Name: "intern", Spec: spec})
	w.must(err)
	if moved.Name != "intern" || moved.Spec.DNS.Domain != "intern.default.internal" || moved.Spec.Subnets[0].Gateway.String() != "10.9.0.1" {
		t.Errorf("%+v", moved)
	}
	_, err = w.Networks().Delete(t.Context(), root, DefaultTenant, "intern", httpapi.DeleteOptions{})
	w.must(err)
	w.sound()
}

func TestFullNetwork(t *testing.T) {
	w := newWorld(t)
	_, err := w.Networks().Create(t.Context(), root, DefaultTenant, httpapi.Create[api.NetworkSpec]{
		Name: "tiny", Spec: api.NetworkSpec{Subnets: subnet("10.7.0.0/30", "")},
	})
	w.must(err)
	tiny := func(s *api.ServerSpec) { s.Ports = []api.Port{{Network: "tiny"}} }
	w.server("one", tiny)
	_, err = w.create("two", tiny)
	if p := problem(t, err, api.CodeCapacity); p.Short[0].Resource != "address" {
		t.Errorf("%+v", p.Short)
	}
	w.sound()
}

func quota(t *testing.T, text string) api.Quota {
	t.Helper()
	var q api.Quota
	bytes := func(n api.Bytes) *api.Bytes { return &n }
	number := func(n int) *int { return &n }
	switch text {
	case "servers 2":
		q.Servers = number(2)
	case "memory 600MiB":
		q.Memory = bytes(600 * api.MiB)
	case "networks 1, images 0":
		q.Networks, q.Images = number(1), number(0)
	}
	return q
}

func TestQuotas(t *testing.T) {
	w := newWorld(t)
	tenant := func(name, parent string, q api.Quota) {
		t.Helper()
		_, err := w.Tenants().Create(t.Context(), root, "", httpapi.Create[api.TenantSpec]{Name: name, Spec: api.TenantSpec{Parent: parent, Quota: q}})
		w.must(err)
	}
	create := func(tenant, name string) error {
		_, err := w.Servers().Create(t.Context(), root, tenant, httpapi.Create[api.ServerSpec]{Name: name, Spec: small()})
		return err
	}
	tenant("reseller", "", quota(t, "memory 600MiB"))
	tenant("customer", "reseller", quota(t, "servers 2"))
	tenant("other", "reseller", quota(t, "networks 1, images 0"))
	w.must(create("customer", "a"))
	w.must(create("other", "a"))
	p := problem(t, create("customer", "b"), api.CodeQuota)
	want := []api.Shortage{{Resource: "memory", Where: "reseller", Asked: "256MiB", Free: "88MiB", Short: "168MiB"}}
	if d := cmp.Diff(want, p.Short); d != "" {
		t.Error(d)
	}
	got, err := w.Tenants().Get(t.Context(), root, "", "reseller")
	w.must(err)
	if got.Status.Used != (api.Resources{Servers: 2, CPU: 200, Memory: 512 * api.MiB, Disk: 128 * api.MiB}) {
		t.Errorf("%+v", got.Status)
	}
	// Less than what is used: nothing grows, everything may shrink.
	zero := 0
	_, err = w.Tenants().Update(t.Context(), root, "", "customer", httpapi.Update[api.TenantSpec]{Spec: api.TenantSpec{Quota: api.Quota{Servers: &zero}}})
	w.must(err)
	problem(t, create("customer", "b"), api.CodeQuota)
	for _, tc := range []struct {
		body httpapi.Create[api.TenantSpec]
		at   string
	}{
		{httpapi.Create[api.TenantSpec]{Name: "x", Spec: api.TenantSpec{Parent: "nobody"}}, "/spec/parent"},
		{httpapi.Create[api.TenantSpec]{Name: "X"}, "/name"},
		{httpapi.Create[api.TenantSpec]{Name: "x", Spec: api.TenantSpec{Quota: api.Quota{Servers: negative()}}}, "/spec/quota/servers"},
		{httpapi.Create[api.TenantSpec]{Name: "x", Spec: api.TenantSpec{Quota: api.Quota{Bandwidth: negativeRate()}}}, "/spec/quota/bandwidth"},
		{httpapi.Create[api.TenantSpec]{Name: "x", Spec: api.TenantSpec{Bandwidth: api.Bandwidth{Committed: 2, Peak: 1}}}, "/spec/bandwidth/committed"},
		{httpapi.Create[api.TenantSpec]{Name: "x", Spec: api.TenantSpec{Bandwidth: api.Bandwidth{Peak: mostRate + 1}}}, "/spec/bandwidth/peak"},
		{httpapi.Create[api.TenantSpec]{Name: "x", Spec: api.TenantSpec{Bandwidth: api.Bandwidth{Burst: 2 * api.GiB}}}, "/spec/bandwidth/burst"},
		{httpapi.Create[api.TenantSpec]{Name: "x", Spec: api.TenantSpec{Grants: []api.AllowedGrant{{Kind: "all"}}}}, "/spec/grants/0/kind"},
		{httpapi.Create[api.TenantSpec]{Name: "x", Spec: api.TenantSpec{Grants: []api.AllowedGrant{{Kind: api.GrantDirectory}}}}, "/spec/grants/0/source"},
	} {
		_, err := w.Tenants().Create(t.Context(), root, "", tc.body)
		problem(t, err, api.CodeInvalid, tc.at)
	}
	_, err = w.Tenants().Update(t.Context(), root, "", "customer", httpapi.Update[api.TenantSpec]{Spec: api.TenantSpec{Parent: "other"}})
	problem(t, err, api.CodeInvalid, "/spec/parent")
	_, err = w.Tenants().Update(t.Context(), root, "", "customer", httpapi.Update[api.TenantSpec]{Name: "client"})
	problem(t, err, api.CodeInvalid, "/name")

	_, err = w.Networks().Create(t.Context(), root, "other", httpapi.Create[api.NetworkSpec]{Name: "n1"})
	w.must(err)
	_, err = w.Networks().Create(t.Context(), root, "other", httpapi.Create[api.NetworkSpec]{Name: "n2"})
	problem(t, err, api.CodeQuota)
	_, err = w.ImportImage(t.Context(), root, "other", httpapi.ImageImport{Name: "i", Body: strings.NewReader("i")})
	problem(t, err, api.CodeQuota)

	for _, name := range []string{"reseller", "customer", "other"} {
		_, err = w.Tenants().Delete(t.Context(), root, "", name, httpapi.DeleteOptions{})
		problem(t, err, api.CodeInUse)
	}
	_, err = w.Tenants().Delete(t.Context(), root, "", DefaultTenant, httpapi.DeleteOptions{})
	problem(t, err, api.CodeProtected)
	s, err := w.Servers().Delete(t.Context(), root, "customer", "a", httpapi.DeleteOptions{Force: true})
	w.must(err)
	w.must(w.Gone(t.Context(), s.ID))
	_, err = w.Tenants().Delete(t.Context(), root, "", "customer", httpapi.DeleteOptions{})
	w.must(err)
	w.sound()
	eve := httpapi.Caller{Name: "eve", Tenant: "other"}
	_, err = w.Tenants().Create(t.Context(), eve, "", httpapi.Create[api.TenantSpec]{Name: "mine"})
	problem(t, err, api.CodeForbidden)
	_, err = w.Tenants().Get(t.Context(), eve, "", "reseller")
	problem(t, err, api.CodeForbidden)
}

func negative() *int { n := -1; return &n }

func negativeRate() *api.BitRate { r := api.BitRate(-1); return &r }

func TestImages(t *testing.T) {
	w := newWorld(t)
	got, err := w.Images().Get(t.Context(), root, DefaultTenant, "micro")
	w.must(err)
	if got.Status.Digest == "" || len(got.Status.Models) != 3 || got.Status.Source != "upload" {
		t.Errorf("%+v", got)
	}
	_, err = w.ImportImage(t.Context(), root, DefaultTenant, httpapi.ImageImport{Name: "broken", Body: strings.NewReader("bad")})
	problem(t, err, api.CodeBadImage)
	jobs, err := w.Jobs().List(t.Context(), root, DefaultTenant, httpapi.ListOptions{Filter: map[string]string{"phase": "failed"}})
	if err != nil || jobs.Total != 1 {
		t.Errorf("%d failed jobs, %v", jobs.Total, err)
	}
	_, err = w.ImportImage(t.Context(), root, DefaultTenant, httpapi.ImageImport{Name: "micro", Body: strings.NewReader("x")})
	problem(t, err, api.CodeExists, "/name")
	_, err = w.ImportImage(t.Context(), httpapi.Caller{Name: "eve", Tenant: DefaultTenant}, DefaultTenant,
		httpapi.ImageImport{Name: "mine", Shared: true, Body: strings.NewReader("x")})
	problem(t, err, api.CodeForbidden)
	_, err = w.BuildImage(t.Context(), root, DefaultTenant, "d", "windows", false)
	problem(t, err, api.CodeInvalid, "/builtin")

	// The same content under another name is kept once, and stays until the last of them goes.
	_, err = w.ImportImage(t.Context(), root, DefaultTenant, httpapi.ImageImport{Name: "again", Body: strings.NewReader("micro")})
	w.must(err)
	if n := len(w.images.have); n != 1 {
		t.Errorf("%d contents", n)
	}
	s := w.server("web")
	_, err = w.Images().Delete(t.Context(), root, DefaultTenant, "micro", httpapi.DeleteOptions{})
	problem(t, err, api.CodeInUse)
	w.must(w.Gone(t.Context(), s.ID))
	_, err = w.Images().Delete(t.Context(), root, DefaultTenant, "micro", httpapi.DeleteOptions{})
	w.must(err)
	if n := len(w.images.have); n != 1 {
		t.Errorf("%d contents while one image has it", n)
	}
	renamed, err := w.Images().Update(t.Context(), root, DefaultTenant, "again", httpapi.Update[api.ImageSpec]{Name: "base", Spec: api.ImageSpec{Shared: true}})
	w.must(err)
	_, err = w.Tenants().Create(t.Context(), root, "", httpapi.Create[api.TenantSpec]{Name: "acme"})
	w.must(err)
	eve := httpapi.Caller{Name: "eve", Tenant: "acme"}
	if list, err := w.Images().List(t.Context(), eve, "acme", httpapi.ListOptions{}); err != nil || list.Total != 1 {
		t.Errorf("a shared image is not seen: %+v, %v", list, err)
	}
	if seen, err := w.Images().Get(t.Context(), eve, "acme", "base"); err != nil || seen.ID != renamed.ID {
		t.Errorf("%+v, %v", seen, err)
	}
	_, err = w.Images().Delete(t.Context(), eve, "acme", "base", httpapi.DeleteOptions{})
	problem(t, err, api.CodeNotFound)
	_, err = w.Images().Delete(t.Context(), root, DefaultTenant, "base", httpapi.DeleteOptions{})
	w.must(err)
	if n := len(w.images.have); n != 0 {
		t.Errorf("%d contents are left", n)
	}
	w.sound()
}

func TestJobs(t *testing.T) {
	w := newWorld(t)
	w.images.hold = make(chan struct{})
	who := root
	who.Key = "build-once"
	job, err := w.BuildImage(t.Context(), who, DefaultTenant, "debian", "debian-12", true)
	w.must(err)
	again, err := w.BuildImage(t.Context(), who, DefaultTenant, "debian", "debian-12", true)
	if err != nil || again.ID != job.ID {
		t.Fatalf("%+v, %v", again, err)
	}
	get := func(c *Control) *api.Job {
		j, err := c.Jobs().Get(t.Context(), root, DefaultTenant, job.Name)
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	w.soon("progress", func() bool { return get(w.Control).Status.Step == "debootstrap" })
	_, err = w.Jobs().Delete(t.Context(), root, DefaultTenant, job.Name, httpapi.DeleteOptions{})
	problem(t, err, api.CodeWrongState)
	close(w.images.hold)
	w.soon("done", func() bool { return get(w.Control).Status.Phase == api.JobDone })
	if _, err := w.Images().Get(t.Context(), root, DefaultTenant, "debian"); err != nil {
		t.Error(err)
	}
	_, err = w.Jobs().Delete(t.Context(), root, DefaultTenant, job.Name, httpapi.DeleteOptions{})
	w.must(err)

	// A daemon that ends in order fails its jobs; one that is killed leaves them, and the next one fails them.
	w.images.hold = make(chan struct{})
	who.Key = ""
	job, err = w.ImportImage(t.Context(), who, DefaultTenant, httpapi.ImageImport{Name: "app", Registry: "registry.example/app:1"})
	w.must(err)
	other := start(t, w.store, w.images)
	w.Close()
	w.must(other.catchUp(t.Context()))
	if j := get(other); j.Status.Phase != api.JobFailed || j.Status.Code != api.CodeUnavailable {
		t.Errorf("%+v", j.Status)
	}
	lost := state.Job{Job: *job, HostID: w.hostID}
	w.Control = other
	w.write(state.Jobs+job.ID, lost)
	w.images.keep("orphan", "tree")
	w.register(machine)
	if j := get(other); j.Status.Phase != api.JobFailed || !strings.Contains(j.Status.Error, "daemon ended") {
		t.Errorf("%+v", j.Status)
	}
	if n := len(w.images.have); n != 2 { // micro and debian
		t.Errorf("%d contents; want those of two images", n)
	}
	w.sound()
}

// A tenant sees nothing of one that had its name before.
func TestNamesake(t *testing.T) {
	w := newWorld(t)
	who := root
	who.Key = "same"
	body := httpapi.Create[api.NetworkSpec]{Name: "lan"}
	var ids, jobs []string
	for range 2 {
		_, err := w.Tenants().Create(t.Context(), root, "", httpapi.Create[api.TenantSpec]{Name: "acme"})
		w.must(err)
		n, err := w.Networks().Create(t.Context(), who, "acme", body)
		w.must(err)
		job, err := w.ImportImage(t.Context(), root, "acme", httpapi.ImageImport{Name: "i", Body: strings.NewReader("i")})
		w.must(err)
		events, err := w.Events().List(t.Context(), root, "acme", httpapi.ListOptions{})
		w.must(err)
		if got := names(t, events); !cmp.Equal(got, []string{"i", "lan"}) {
			t.Errorf("events of %v", got)
		}
		list, err := w.Jobs().List(t.Context(), root, "acme", httpapi.ListOptions{})
		w.must(err)
		if got := names(t, list); !cmp.Equal(got, []string{job.Name}) {
			t.Errorf("jobs %v", got)
		}
		for _, old := range jobs {
			_, err = w.Jobs().Get(t.Context(), root, "acme", old)
			problem(t, err, api.CodeNotFound)
			_, err = w.Jobs().Delete(t.Context(), root, "acme", old, httpapi.DeleteOptions{})
			problem(t, err, api.CodeNotFound)
		}
		ids, jobs = append(ids, n.ID), append(jobs, job.Name)
		_, err = w.Networks().Delete(t.Context(), root, "acme", "lan", httpapi.DeleteOptions{})
		w.must(err)
		_, err = w.Images().Delete(t.Context(), root, "acme", "i", httpapi.DeleteOptions{})
		w.must(err)
		_, err = w.Tenants().Delete(t.Context(), root, "", "acme", httpapi.DeleteOptions{})
		w.must(err)
	}
	if ids[0] == ids[1] {
		t.Error("the answer of another tenant was repeated")
	}
	if all, err := w.Jobs().List(t.Context(), root, "", httpapi.ListOptions{AllTenants: true}); err != nil || all.Total != 3 { // and that of micro
		t.Errorf("%d jobs, %v", all.Total, err)
	}
	// An image that was begun for the one is not made for the other.
	_, err := w.Tenants().Create(t.Context(), root, "", httpapi.Create[api.TenantSpec]{Name: "acme"})
	w.must(err)
	w.images.hold = make(chan struct{})
	job, err := w.BuildImage(t.Context(), root, "acme", "built", "micro", false)
	w.must(err)
	_, err = w.Tenants().Delete(t.Context(), root, "", "acme", httpapi.DeleteOptions{})
	w.must(err)
	_, err = w.Tenants().Create(t.Context(), root, "", httpapi.Create[api.TenantSpec]{Name: "acme"})
	w.must(err)
	close(w.images.hold)
	w.soon("the job ends", func() bool {
		w.ix.mu.RLock()
		defer w.ix.mu.RUnlock()
		return w.ix.jobs[job.ID].v.Status.Phase == api.JobFailed
	})
	if list, err := w.Images().List(t.Context(), root, "acme", httpapi.ListOptions{Filter: map[string]string{"name": "built"}}); err != nil || list.Total != 0 {
		t.Errorf("%s, %v", list.Items, err)
	}
	if events, err := w.Events().List(t.Context(), root, "acme", httpapi.ListOptions{}); err != nil || events.Total != 0 {
		t.Errorf("%s, %v", events.Items, err)
	}
	w.sound()
}

// A request that is sent again is told how the job that it began stands now.
func TestJobIsNotRemembered(t *testing.T) {
	w := newWorld(t)
	who := root
	upload := func(key, content string) (*api.Job, error) {
		who.Key = key
		return w.ImportImage(t.Context(), who, DefaultTenant, httpapi.ImageImport{Name: key, Body: strings.NewReader(content)})
	}
	done, err := upload("good", "x")
	w.must(err)
	again, err := upload("good", "x")
	w.must(err)
	if d := cmp.Diff(done, again); d != "" || again.Status.Phase != api.JobDone {
		t.Error(d)
	}
	_, first := upload("broken", "bad")
	_, second := upload("broken", "bad")
	if problem(t, first, api.CodeBadImage); problem(t, second, api.CodeBadImage).Detail != first.Error() {
		t.Errorf("%v, and then %v", first, second)
	}
	w.images.hold = make(chan struct{})
	who.Key = "build"
	job, err := w.BuildImage(t.Context(), who, DefaultTenant, "built", "micro", false)
	w.must(err)
	close(w.images.hold)
	w.soon("done", func() bool {
		now, err := w.BuildImage(t.Context(), who, DefaultTenant, "built", "micro", false)
		w.must(err)
		return now.ID == job.ID && now.Status.Phase == api.JobDone
	})
	_, err = w.Jobs().Delete(t.Context(), root, DefaultTenant, job.Name, httpapi.DeleteOptions{})
	w.must(err)
	_, err = w.BuildImage(t.Context(), who, DefaultTenant, "built", "micro", false)
	problem(t, err, api.CodeNotFound)
}

func TestHosts(t *testing.T) {
	w := newWorld(t)
	h := w.host()
	if h.Spec.Overcommit.Disk != 200 || h.Status.Allocatable.Memory != 100*256*api.MiB || h.Status.Phase != "ready" || len(h.Status.Engines) != 4 {
		t.Errorf("%+v", h)
	}
	before := h.Revision
	w.register(machine) // again: nothing changes
	if h = w.host(); h.Revision != before {
		t.Error("registering the same host changed it")
	}
	bigger := machine
	bigger.Capacity.Memory += api.GiB
	w.register(bigger)
	if h = w.host(); h.Status.Capacity.Memory != bigger.Capacity.Memory {
		t.Errorf("%+v", h.Status.Capacity)
	}
	w.must(w.SetHostDisk(t.Context(), api.GiB))
	if h = w.host(); h.Status.Capacity.Disk != api.GiB {
		t.Errorf("%+v", h.Status.Capacity)
	}
	before = h.Revision
	w.must(w.SetHostDisk(t.Context(), api.GiB))
	if h = w.host(); h.Revision != before {
		t.Error("the same disk changed the host")
	}
	w.register(bigger)
	update := func(spec api.HostSpec) error {
		_, err := w.Hosts().Update(t.Context(), root, "", "h1", httpapi.Update[api.HostSpec]{Spec: spec})
		return err
	}
	w.server("web")
	w.must(update(api.HostSpec{Unschedulable: true}))
	_, err := w.create("late")
	if p := problem(t, err, api.CodeCapacity); !strings.Contains(p.Detail, "unschedulable") {
		t.Errorf("%v", p)
	}
	// Less than what is promised: a warning.
	w.must(update(api.HostSpec{Reserve: api.Reserve{Memory: bigger.Capacity.Memory - 100*api.MiB}}))
	events, err := w.Events().List(t.Context(), root, "", httpapi.ListOptions{AllTenants: true, Filter: map[string]string{"reason": "Overpromised"}})
	if err != nil || events.Total != 1 || !strings.Contains(string(events.Items[0]), `"warning":true`) {
		t.Errorf("%s, %v", events.Items, err)
	}
	_, err = w.create("late")
	if p := problem(t, err, api.CodeCapacity); len(p.Short) != 1 || p.Short[0].Free != "0B" || p.Short[0].Short != "256MiB" {
		t.Errorf("%+v", p.Short)
	}
	for pointer, spec := range map[string]api.HostSpec{
		"/spec/overcommit/cpu":    {Overcommit: api.Overcommit{CPU: 10001}},
		"/spec/overcommit/memory": {Overcommit: api.Overcommit{Memory: -1}},
		"/spec/reserve/memory":    {Reserve: api.Reserve{Memory: bigger.Capacity.Memory}},
		"/spec/reserve/cpu":       {Reserve: api.Reserve{CPU: bigger.Capacity.CPU + 1}},
		"/spec/reserve/disk":      {Reserve: api.Reserve{Disk: -1}},
		"/spec/uplink":            {Uplink: "a-device-with-a-long-name"},
		"/spec/committable":       {Committable: 96},
		"/spec/uplinkRate":        {UplinkRate: mostRate + 1},
	} {
		problem(t, update(spec), api.CodeInvalid, pointer)
	}
	// All but the last of it; and it stays where the host has less by now.
	least := api.HostSpec{Reserve: api.Reserve{Memory: bigger.Capacity.Memory - 1, CPU: 1, Disk: 1}}
	w.must(update(least))
	w.register(machine)
	least.Unschedulable = true
	w.must(update(least))
	if h = w.host(); h.Spec.Reserve != least.Reserve || h.Status.Allocatable.Memory != 0 {
		t.Errorf("%+v", h)
	}
	_, err = w.Hosts().Delete(t.Context(), root, "", "h1", httpapi.DeleteOptions{})
	problem(t, err, api.CodeInUse)
	_, err = w.Hosts().Create(t.Context(), root, "", httpapi.Create[api.HostSpec]{Name: "h2"})
	problem(t, err, api.CodeMethod)
	_, err = w.Hosts().Get(t.Context(), httpapi.Caller{Tenant: DefaultTenant}, "", "h1")
	problem(t, err, api.CodeForbidden)
	w.sound()
}

// Verify tells what is wrong with ledgers and names.
func TestVerify(t *testing.T) {
	w := newWorld(t)
	w.server("web")
	w.write(state.HostLedger+w.hostID, map[string]int{"servers": 7})
	w.write(state.NameKey("server", DefaultTenant, "ghost"), "nobody")
	differences, err := w.Verify(t.Context())
	w.must(err)
	if len(differences) != 2 || !strings.Contains(differences[0], "host") || !strings.Contains(differences[1], "ghost") {
		t.Errorf("%v", differences)
	}
}
