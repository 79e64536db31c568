package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
	"github.com/croftproject/croft/test/world"
)

// testNetwork checks what a network gives: an address, names, a way out and none in.
func testNetwork(t *testing.T, w *world.World) {
	a := w.Run(t, "net-a", onLAN(small(api.ModelOS, "runc")))
	b := w.Run(t, "net-b", onLAN(small(api.ModelPara, "uml")))
	port := b.Status.Ports[0]
	sh := attach(t, w, "net-b")
	sh.ok("for i in 1 2 3 4 5 6 7 8 9 10; do ip -4 addr show eth0 | grep -q inet && break; usleep 200000; done")
	if got := sh.ok("ip addr show eth0"); !strings.Contains(got, fmt.Sprintf("%s/%d", port.Address, port.Prefix)) || !strings.Contains(got, port.MAC) {
		t.Errorf("by DHCP the guest has\n%s\nits port is %+v", got, port)
	}
	for what, c := range map[string]struct {
		query, want string
		code        int
	}{
		"short name": {"net-b", port.Address.String(), 0},
		"full name":  {port.Name, port.Address.String(), 0},
		"reverse":    {port.Address.String(), "net-b", 0},
		"unknown":    {"nobody.lan.default.internal", "NXDOMAIN", 1},
	} {
		code, out := w.Exec(t, a.Name, "nslookup", c.query)
		if code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("%s: nslookup %s: code %d, want %d with %s:\n%s", what, c.query, code, c.code, c.want, out)
		}
	}
	outside := w.ListenOutside(t)
	from := make(chan string, 16)
	go func() {
		for {
			c, err := outside.Accept()
			if err != nil {
				return
			}
			from <- c.RemoteAddr().String()
			io.WriteString(c, "hello from outside\n")
			c.Close()
		}
	}()
	host, number, _ := net.SplitHostPort(outside.Addr().String())
	for name, got := range map[string]string{
		"net-a": w.Output(t, "net-a", "nc", host, number), "net-b": sh.ok("nc " + host + " " + number + " </dev/null"),
	} {
		if !strings.Contains(got, "hello from outside") {
			t.Errorf("%s hears %q from outside", name, got)
		}
		if peer := netip.MustParseAddrPort(<-from); peer.Addr() != netip.MustParseAddr("192.0.2.2") {
			t.Errorf("outside sees %s, not the host's address", peer)
		}
	}
	world.In(t, w.NetNS+"-out", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if c, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(port.Address.String(), "80")); err == nil {
			c.Close()
			t.Error("a server is reached from outside")
		}
		return nil
	})
	w.Remove(t, "net-a")
	w.Remove(t, "net-b")
}

// testTenants gives two tenants networks with the same prefix: neither sees the other.
func testTenants(t *testing.T, w *world.World) {
	spec := small(api.ModelOS, "runc")
	spec.Ports = []api.Port{{Network: "same", Address: netip.MustParseAddr("10.44.0.10")}}
	other := small(api.ModelOS, "runc")
	other.Ports = []api.Port{{Network: "same", Address: netip.MustParseAddr("10.44.0.11")}}
	for _, tenant := range []string{"red", "blue"} {
		if _, err := w.Tenants().Create(t.Context(), client.Create[api.TenantSpec]{Name: tenant}); err != nil {
			t.Fatal(err)
		}
		_, err := w.Networks(tenant).Create(t.Context(), client.Create[api.NetworkSpec]{Name: "same", Spec: api.NetworkSpec{
			Subnets: []api.Subnet{{Prefix: netip.MustParsePrefix("10.44.0.0/24")}}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Servers(tenant).Create(t.Context(), client.Create[api.ServerSpec]{Name: "one", Spec: spec}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Servers("blue").Create(t.Context(), client.Create[api.ServerSpec]{Name: "two", Spec: other}); err != nil {
		t.Fatal(err)
	}
	w.ReadyOf(t, "red", "one")
	w.ReadyOf(t, "blue", "one")
	w.ReadyOf(t, "blue", "two")
	// Red has .10 alone: the server at .11 is blue's.
	if code, _ := w.ExecOf(t, "red", "one", "ping", "-c", "1", "-W", "1", "10.44.0.11"); code == 0 {
		t.Error("red reaches blue's server")
	}
	if code, out := w.ExecOf(t, "blue", "one", "ping", "-c", "1", "-W", "2", "10.44.0.11"); code != 0 {
		t.Errorf("blue does not reach its own: %s", out)
	}
	if code, _ := w.ExecOf(t, "red", "one", "nslookup", "two"); code == 0 {
		t.Error("red resolves blue's name")
	}
	if _, err := w.Servers("red").Get(t.Context(), "two"); !client.IsNotFound(err) {
		t.Errorf("red finds blue's server: %v", err)
	}
	for _, s := range [][2]string{{"red", "one"}, {"blue", "one"}, {"blue", "two"}} {
		if err := w.Delete(t.Context(), s[0], s[1]); err != nil {
			t.Error(err)
		}
	}
	for _, tenant := range []string{"red", "blue"} {
		if _, err := w.Networks(tenant).Delete(t.Context(), "same", client.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	}
}
