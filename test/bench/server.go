package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
)

// subnet has room for every server of a bench.
var subnet = netip.MustParsePrefix("10.64.0.0/22")

// small is a server with limits on everything and a port.
func small(model api.Model, engine string) api.ServerSpec {
	return api.ServerSpec{
		Model: model, Engine: engine, Image: image,
		CPU:    api.CPU{Count: 1, Cap: api.CPU1},
		Memory: api.Memory{Limit: 128 * api.MiB},
		PIDs:   512,
		Disk:   api.Disk{Size: 256 * api.MiB},
		Ports:  []api.Port{{Network: network}},
	}
}

// many is a server of which the host is to hold hundreds.
func many(model api.Model) api.ServerSpec {
	s := small(model, "")
	s.CPU.Entitlement, s.Memory.Limit = 10, 64*api.MiB
	return s
}

// life is the times of one server, by this program's clock.
type life struct {
	Running  time.Duration // from before the request to the change that tells that it runs
	Ready    time.Duration // to the change that tells that its userspace is up
	Reported time.Duration // to the time that the daemon tells for the latter
	Server   api.Server    // as it was last seen
}

// Launch creates a server, and returns when a watch that was open before tells that ok is true of it.
func (h *host) Launch(ctx context.Context, name string, spec api.ServerSpec, until func(*api.Server) bool) (life, error) {
	lives, err := h.LaunchAll(ctx, []string{name}, spec, until)
	if err != nil {
		return life{}, err
	}
	return lives[0], nil
}

func running(s *api.Server) bool { return s.Status.Phase == api.PhaseRunning }
func ready(s *api.Server) bool   { return running(s) && !s.Status.Ready.IsZero() }

// LaunchAll asks for servers all at once. Times count from before the first request.
func (h *host) LaunchAll(ctx context.Context, names []string, spec api.ServerSpec, until func(*api.Server) bool) ([]life, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	page, err := h.Servers(tenant).Page(ctx, client.ListOptions{Limit: 1})
	if err != nil {
		return nil, err
	}
	changes, errs := make(chan api.Change[api.Server], 4096), make(chan error, len(names)+1)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel()
	parts.Go(func() {
		for c, err := range h.Servers(tenant).Watch(ctx, client.ListOptions{}, page.AtRev) {
			if err != nil {
				errs <- err
				return
			}
			changes <- c
		}
	})
	index := map[string]int{}
	began := time.Now()
	for i, name := range names {
		index[name] = i
		parts.Go(func() {
			if _, err := h.Servers(tenant).Create(ctx, client.Create[api.ServerSpec]{Name: name, Spec: spec}); err != nil {
				errs <- fmt.Errorf("create %s: %w", name, err)
			}
		})
	}
	lives, left := make([]life, len(names)), len(names)
	for left > 0 {
		select {
		case err := <-errs:
			return nil, err
		case c := <-changes:
			i, ok := index[c.Object.Name]
			if !ok || c.Type == api.ChangeDelete {
				continue
			}
			if c.Object.Status.Phase == api.PhaseFailed || c.Object.Status.Phase == api.PhaseBackoff {
				return nil, fmt.Errorf("server %s: %s", c.Object.Name, c.Object.Status.Message)
			}
			lives[i].see(c.Object, began)
			if until(&c.Object) {
				delete(index, c.Object.Name)
				left--
			}
		case <-ctx.Done():
			return nil, late(lives, names, index)
		}
	}
	return lives, nil
}

// late names a server that did not start in time.
func late(lives []life, names []string, left map[string]int) error {
	for name, i := range left {
		st := lives[i].Server.Status
		return fmt.Errorf("%d of %d servers did not start in time; %s is %q, ready %v: %s", len(left), len(names), name, st.Phase, st.Ready, st.Message)
	}
	return errors.New("servers did not start in time")
}

func (l *life) see(s api.Server, began time.Time) {
	l.Server = s
	if running(&s) && l.Running == 0 {
		l.Running = time.Since(began)
	}
	if ready(&s) && l.Ready == 0 {
		l.Ready, l.Reported = time.Since(began), s.Status.Ready.Sub(began)
	}
}

// Delete deletes servers, hard and all at once, and returns how long it took until all were gone.
func (h *host) Delete(ctx context.Context, names ...string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	page, err := h.Servers(tenant).Page(ctx, client.ListOptions{Limit: 1})
	if err != nil {
		return 0, err
	}
	left, errs := map[string]bool{}, make(chan error, len(names))
	for _, name := range names {
		left[name] = true
	}
	began := time.Now()
	for _, name := range names {
		go func() {
			_, err := h.Servers(tenant).Delete(ctx, name, client.DeleteOptions{Force: true})
			if err != nil {
				errs <- fmt.Errorf("delete %s: %w", name, err)
				cancel()
			}
		}()
	}
	for c, err := range h.Servers(tenant).Watch(ctx, client.ListOptions{}, page.AtRev) {
		if err != nil {
			select {
			case err = <-errs:
			default:
			}
			return 0, err
		}
		if c.Type == api.ChangeDelete {
			delete(left, c.Object.Name)
		}
		if len(left) == 0 {
			return time.Since(began), nil
		}
	}
	return 0, ctx.Err()
}

// DeleteAll deletes every server there is.
func (h *host) DeleteAll(ctx context.Context) (time.Duration, error) {
	var names []string
	for s, err := range h.Servers(tenant).List(ctx, client.ListOptions{}) {
		if err != nil {
			return 0, err
		}
		names = append(names, s.Name)
	}
	if len(names) == 0 {
		return 0, nil
	}
	return h.Delete(ctx, names...)
}

// numbered names n servers.
func numbered(prefix string, n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	return names
}
