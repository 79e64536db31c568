package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
	"github.com/croftproject/croft/test/world"
)

const mbit api.BitRate = 1e6

// testBandwidth divides an uplink of 40 Mbit/s between two networks of greedy guests, of two models, and changes the
// division while they go on.
func testBandwidth(t *testing.T, w *world.World) {
	host := hostOf(t, w)
	changed, err := w.Hosts().Replace(t.Context(), host.Name, client.Update[api.HostSpec]{Revision: host.Revision, Labels: host.Labels, Spec: declared(host.Spec, 40*mbit)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // the host is others' too
		if _, err := w.Hosts().Replace(context.Background(), host.Name, client.Update[api.HostSpec]{Labels: host.Labels, Spec: host.Spec}); err != nil {
			t.Error(err)
		}
	})
	if up := changed.Status.Uplink; up.Rate != 40*mbit || up.Committable != 36*mbit || up.Committed != 0 {
		t.Errorf("the uplink is %+v", up)
	}
	networkOf(t, w, "gold", api.Bandwidth{Committed: 24 * mbit})
	networkOf(t, w, "silver", api.Bandwidth{Committed: 8 * mbit})
	networkOf(t, w, "more", api.Bandwidth{Committed: 5 * mbit})
	spec := func(model api.Model, engine, network string) api.ServerSpec {
		s := small(model, engine)
		s.Ports = []api.Port{{Network: network}}
		return s
	}
	w.Run(t, "gold", spec(api.ModelOS, "runc", "gold"))
	w.Run(t, "silver", spec(api.ModelPara, "uml", "silver"))
	if up := hostOf(t, w).Status.Uplink; up.Committed != 32*mbit {
		t.Errorf("the uplink has %s committed, want 32Mbit", up.Committed)
	}
	refused(t, w, spec(api.ModelOS, "runc", "more"))

	silver := attach(t, w, "silver")
	run := map[string]func(command string){
		"gold":   func(c string) { w.Output(t, "gold", "sh", "-c", "setsid "+c+" >/dev/null 2>&1 &") },
		"silver": func(c string) { silver.ok("(setsid " + c + " >/dev/null 2>&1 &)") },
	}
	for _, direction := range []string{"in", "out"} {
		f := flows{"gold": greedyFlow(t, w, direction, run["gold"]), "silver": greedyFlow(t, w, direction, run["silver"])}
		// What is spare, 8 Mbit/s, goes three to one.
		f.have(t, direction, map[string]float64{"gold": 30, "silver": 10})
		if direction == "out" {
			w.Kill(t)
			w.Start(t)
			f.have(t, direction+", daemon killed", map[string]float64{"gold": 30, "silver": 10})
		}
		setBandwidth(t, w, "gold", api.Bandwidth{Committed: 4 * mbit, Peak: 12 * mbit})
		f.have(t, direction+", changed", map[string]float64{"gold": 12, "silver": 28})
		setBandwidth(t, w, "gold", api.Bandwidth{Committed: 24 * mbit})
		for _, one := range f {
			one.end()
		}
	}

	// Removed, nothing is left of it: the test of the world sees to that.
	for _, name := range []string{"gold", "silver"} {
		w.Remove(t, name)
	}
	for _, name := range []string{"gold", "silver", "more"} {
		if _, err := w.Networks(world.Tenant).Delete(t.Context(), name, client.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	}
	if up := hostOf(t, w).Status.Uplink; up.Committed != 0 {
		t.Errorf("the uplink has %s committed, and no network", up.Committed)
	}
	w.NoTrace(t)
}

func declared(s api.HostSpec, rate api.BitRate) api.HostSpec {
	s.UplinkRate = rate
	return s
}

func networkOf(t *testing.T, w *world.World, name string, b api.Bandwidth) {
	t.Helper()
	if _, err := w.Networks(world.Tenant).Create(t.Context(), client.Create[api.NetworkSpec]{Name: name, Spec: api.NetworkSpec{Bandwidth: b}}); err != nil {
		t.Fatal(err)
	}
}

// refused asks for a server whose network has more committed than is left, and checks what is told of that.
func refused(t *testing.T, w *world.World, s api.ServerSpec) {
	t.Helper()
	_, err := w.Servers(world.Tenant).Create(t.Context(), client.Create[api.ServerSpec]{Name: "refused", Spec: s})
	var p *api.Problem
	if !errors.As(err, &p) || p.Code != api.CodeCapacity || len(p.Short) != 1 {
		t.Fatalf("more than is left: %v", err)
	}
	if s := p.Short[0]; s.Resource != "bandwidth" || s.Asked != "5Mbit" || s.Free != "4Mbit" || s.Short != "1Mbit" || !strings.HasPrefix(s.Where, "the uplink of ") {
		t.Errorf("short of %+v", s)
	}
}

func setBandwidth(t *testing.T, w *world.World, name string, b api.Bandwidth) {
	t.Helper()
	n, err := w.Networks(world.Tenant).Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	n.Spec.Bandwidth = b
	if _, err := w.Networks(world.Tenant).Replace(t.Context(), name, client.Update[api.NetworkSpec]{Revision: n.Revision, Labels: n.Labels, Spec: n.Spec}); err != nil {
		t.Fatal(err)
	}
}

// flow is a TCP connection that is as greedy as it may be, in one direction.
type flow struct {
	t     *testing.T
	c     net.Conn
	bytes atomic.Int64
}

// greedyFlow has a guest connect to the outside, and one of them send without end.
func greedyFlow(t *testing.T, w *world.World, direction string, run func(string)) *flow {
	t.Helper()
	l := w.ListenOutside(t)
	host, port, _ := net.SplitHostPort(l.Addr().String())
	command := fmt.Sprintf("nc %s %s", host, port)
	if direction == "out" {
		command += " </dev/zero"
	}
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(world.Patience)); err != nil {
		t.Fatal(err)
	}
	f := &flow{t: t}
	connected := make(chan error, 1)
	go func() {
		var err error
		f.c, err = l.Accept()
		connected <- err
	}()
	run(command)
	if err := <-connected; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.end)
	go func() {
		if direction == "out" {
			_, _ = io.Copy(f, f.c)
			return
		}
		_ = f.c.(*net.TCPConn).SetWriteBuffer(128 << 10) // what waits here has not passed
		for b := make([]byte, 64<<10); ; {
			n, err := f.c.Write(b)
			f.bytes.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	return f
}

func (f *flow) Write(b []byte) (int, error) {
	f.bytes.Add(int64(len(b)))
	return len(b), nil
}

func (f *flow) end() { _ = f.c.Close() }

// flows by the network that they are of.
type flows map[string]*flow

// have checks what passes of each, in Mbit/s on the wire, once what was on its way has arrived. Headers take 4% of full
// frames.
func (f flows) have(t *testing.T, what string, want map[string]float64) {
	t.Helper()
	<-time.After(3 * time.Second)
	before, began := map[string]int64{}, time.Now()
	for name, one := range f {
		before[name] = one.bytes.Load()
	}
	<-time.After(3 * time.Second)
	took := time.Since(began).Seconds()
	for name, one := range f {
		got := float64(one.bytes.Load()-before[name]) * 8 / 1e6 / took / 0.962
		t.Logf("%s: %s has %.1f Mbit/s", what, name, got)
		if got < want[name]*0.5 || got > want[name]*1.5 { // wide, for a machine that is emulated
			t.Errorf("%s: %s has %.1f Mbit/s, want %.0f", what, name, got, want[name])
		}
	}
}

// hostOf is the only host there is.
func hostOf(t *testing.T, w *world.World) *api.Host {
	t.Helper()
	for h, err := range w.Hosts().List(t.Context(), client.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	t.Fatal("there is no host")
	return nil
}
