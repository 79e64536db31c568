package world

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
)

// Micro is the built-in image that tests' servers are made from.
const Micro = "micro"

// BuildMicro builds the image micro.
func (w *World) BuildMicro(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	job, err := w.Client.Build(ctx, Tenant, Micro, Micro, true)
	if err != nil {
		t.Fatalf("build micro: %v", err)
	}
	if job = w.Job(t, job); job.Status.Phase != api.JobDone {
		t.Fatalf("build micro: %s", job.Status.Error)
	}
}

// Job waits until a job is done or has failed.
func (w *World) Job(t testing.TB, job *api.Job) *api.Job {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	for c, err := range w.Jobs(job.Tenant).Watch(ctx, client.ListOptions{}, 0) {
		if err != nil {
			t.Fatalf("wait for job %s: %v", job.Name, err)
		}
		if c.Object.ID == job.ID && c.Object.Status.Phase != api.JobRunning {
			return &c.Object
		}
	}
	t.Fatalf("job %s never ended", job.Name)
	return nil
}

// Network makes a network of Tenant's. An empty prefix lets Croft choose.
func (w *World) Network(t testing.TB, name, prefix string) *api.Network {
	t.Helper()
	var spec api.NetworkSpec
	if prefix != "" {
		spec.Subnets = []api.Subnet{{Prefix: netip.MustParsePrefix(prefix)}}
	}
	n, err := w.Networks(Tenant).Create(t.Context(), client.Create[api.NetworkSpec]{Name: name, Spec: spec})
	if err != nil {
		t.Fatalf("create network %s: %v", name, err)
	}
	return n
}

// Get finds a server.
func (w *World) Get(t testing.TB, name string) *api.Server {
	t.Helper()
	s, err := w.Servers(Tenant).Get(t.Context(), name)
	if err != nil {
		t.Fatalf("get %s: %v", name, err)
	}
	return s
}

// Remove deletes a server, hard, and waits until it is gone.
func (w *World) Remove(t testing.TB, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	if err := w.Delete(ctx, Tenant, name); err != nil {
		t.Fatalf("delete %s: %v", name, err)
	}
}

// In runs f on a thread that is in a network namespace; sockets made by f stay there.
func In(t testing.TB, path string, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine, in the other namespace
		ns, err := netns.GetFromPath(path)
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("in network namespace %s: %v", path, err)
	}
}

// ListenOutside listens on the machine outside, until the test ends.
func (w *World) ListenOutside(t testing.TB) net.Listener {
	t.Helper()
	var l net.Listener
	In(t, w.NetNS+"-out", func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(w.Outside.String(), "0"))
		return err
	})
	t.Cleanup(func() { l.Close() })
	return l
}
