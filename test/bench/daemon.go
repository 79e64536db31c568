package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
)

// daemonIdle restarts the daemon of a host without servers, and looks at it when it has nothing to do.
func daemonIdle(ctx context.Context, l *lab) ([]Row, error) {
	h, err := l.Host(ctx)
	if err != nil {
		return nil, err
	}
	times, err := turns(ctx, 5, side{"restart", func(ctx context.Context) (time.Duration, error) {
		if err := h.End(unix.SIGTERM); err != nil {
			return 0, err
		}
		return h.Start(ctx)
	}})
	if err != nil {
		return nil, err
	}
	if err := h.quiet(ctx); err != nil {
		return nil, err
	}
	rss, err := field(fmt.Sprintf("/proc/%d/status", h.PID()), "VmRSS")
	if err != nil {
		return nil, err
	}
	proportional, err := pss(h.PID())
	if err != nil {
		return nil, err
	}
	keeper, _, err := find("keeper", h.RunDir)
	if err != nil {
		return nil, err
	}
	keeperRSS, err := field(fmt.Sprintf("/proc/%d/status", keeper), "VmRSS")
	if err != nil {
		return nil, err
	}
	return []Row{
		NewRow("daemon/ready", "s", median(times[0]), None, "", AtMost(0.5, "s"), "from exec to the first request answered: "+spread(times[0])),
		NewRow("daemon/rss", "MiB", rss, None, "", AtMost(80, "MiB"), fmt.Sprintf("PSS %.1f MiB; its keeper has %.1f MiB", proportional, keeperRSS)),
	}, nil
}

// quiet waits until the daemon uses no more than a hundredth of a processor over a second: its probes are done.
func (h *host) quiet(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	used, err := cpuTime(h.PID())
	for range 30 {
		if err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		before := used
		if used, err = cpuTime(h.PID()); err == nil && used-before <= 10*time.Millisecond {
			return nil
		}
	}
	return err
}

// daemonAdopt kills the daemon of a host with 200 servers, and starts it again.
func daemonAdopt(ctx context.Context, l *lab) ([]Row, error) {
	const n = 200
	h, err := l.Host(ctx)
	if err != nil {
		return nil, err
	}
	names := numbered("old", n)
	if _, err := h.LaunchAll(ctx, names, many(api.ModelOS), running); err != nil {
		return nil, err
	}
	var answers, adopts, used []time.Duration
	for range 3 {
		if err := h.End(unix.SIGKILL); err != nil {
			return nil, err
		}
		began := time.Now()
		answer, err := h.Start(ctx)
		if err != nil {
			return nil, err
		}
		if err := h.allRunning(ctx, n); err != nil {
			return nil, err
		}
		sample := []string{names[0], names[n/2], names[n-1]}
		errs := make([]error, len(sample))
		var hellos sync.WaitGroup
		for i, name := range sample {
			hellos.Go(func() { errs[i] = h.hello(ctx, name) })
		}
		hellos.Wait()
		if err := errors.Join(errs...); err != nil {
			return nil, err
		}
		answers, adopts = append(answers, answer), append(adopts, time.Since(began))
		cpu, err := cpuTime(h.PID())
		if err != nil {
			return nil, err
		}
		used = append(used, cpu)
	}
	if _, err := h.Delete(ctx, names...); err != nil {
		return nil, err
	}
	return []Row{NewRow("daemon/adopt-200", "s", median(adopts), None, "", AtMost(1, "s"),
		fmt.Sprintf("none lost; from exec to all told as running and a command run in three of them: %s; the first answer after %s; CPU time of the daemon %s", spread(adopts), spread(answers), spread(used)))}, nil
}

// allRunning waits until the API tells that n servers run; one that is anything but running is lost.
func (h *host) allRunning(ctx context.Context, n int) error {
	page, err := h.Servers(tenant).Page(ctx, client.ListOptions{Limit: 1000})
	if err != nil {
		return err
	}
	count := 0
	for i := range page.Items {
		if running(&page.Items[i]) {
			count++
		}
	}
	if count != n {
		return fmt.Errorf("%d of %d servers run after the restart", count, n)
	}
	return nil
}

// hello runs a command in a server.
func (h *host) hello(ctx context.Context, name string) error {
	var out bytes.Buffer
	code, err := h.Exec(ctx, tenant, name, client.Exec{Args: []string{"/bin/true"}, Stdout: &out, Stderr: &out})
	if err == nil && code != 0 {
		err = fmt.Errorf("exit code %d: %s", code, out.String())
	}
	if err != nil {
		return fmt.Errorf("exec in %s: %w", name, err)
	}
	return nil
}
