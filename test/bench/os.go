package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
)

// osLife has our servers, the bare runtime and LXD's containers come and go in turns.
func osLife(ctx context.Context, l *lab) ([]Row, error) {
	h, err := l.Host(ctx)
	if err != nil {
		return nil, err
	}
	bare, err := newBareRunc(l, h)
	if err != nil {
		return nil, err
	}
	var deletes, peerDeletes []time.Duration
	sides := []side{
		{"ours", func(ctx context.Context) (time.Duration, error) {
			got, err := h.Launch(ctx, "one", small(api.ModelOS, ""), running)
			if err != nil {
				return 0, err
			}
			gone, err := h.Delete(ctx, "one")
			deletes = append(deletes, gone)
			return got.Running, err
		}},
		{"runc", bare.Run},
	}
	note := ""
	x, err := l.LXD(ctx)
	if errors.Is(err, exec.ErrNotFound) {
		note = missing(err)
	} else if err != nil {
		return nil, err
	} else {
		sides = append(sides, side{"LXD", func(ctx context.Context) (time.Duration, error) {
			took, err := x.Launch(ctx, "one")
			if err != nil {
				return 0, err
			}
			gone, err := x.Delete(ctx, "one")
			peerDeletes = append(peerDeletes, gone)
			return took, err
		}})
	}
	times, err := turns(ctx, l.o.Rounds, sides...)
	if err != nil {
		return nil, err
	}
	launch, gone := None, None
	if x != nil {
		launch, gone = milliseconds(times[2]), milliseconds(peerDeletes[1:])
	}
	ours := milliseconds(times[0])
	return []Row{
		NewRow("os/create", "ms", ours, milliseconds(times[1]), "runc run", Times(2),
			fmt.Sprintf("from POST to the change that says running, with port, disk and limits: %s; bare runc runs /bin/true with a user namespace and limits: %s", spread(times[0]), spread(times[1]))),
		NewRow("os/create-lxd", "ms", ours, launch, "LXD launch", Times(0.25), note),
		NewRow("os/delete", "ms", milliseconds(deletes[1:]), gone, "LXD delete -f", Times(0.125), note),
	}, nil
}

// osCreateMany asks for 100 servers at once. LXD starts one by one, so its figure is a hundred of its median launch.
func osCreateMany(ctx context.Context, l *lab) ([]Row, error) {
	const n = 100
	h, err := l.Host(ctx)
	if err != nil {
		return nil, err
	}
	names := numbered("many", n)
	lives, err := h.LaunchAll(ctx, names, many(api.ModelOS), running)
	if err != nil {
		return nil, err
	}
	last := time.Duration(0)
	for _, got := range lives {
		last = max(last, got.Running)
	}
	gone, err := h.Delete(ctx, names...)
	if err != nil {
		return nil, err
	}
	peer, note := None, ""
	x, err := l.LXD(ctx)
	switch {
	case errors.Is(err, exec.ErrNotFound):
		note = missing(err)
	case err != nil:
		return nil, err
	default:
		var launches []time.Duration
		for i := range 5 {
			took, err := x.Launch(ctx, fmt.Sprint("one-", i))
			if err == nil {
				_, err = x.Delete(ctx, fmt.Sprint("one-", i))
			}
			if err != nil {
				return nil, err
			}
			launches = append(launches, took)
		}
		peer = n * median(launches)
		note = fmt.Sprintf("LXD one by one, by the median of %d", len(launches))
	}
	return []Row{NewRow("os/create-100", "s", last.Seconds(), peer, "LXD", AtMost(8, "s"),
		fmt.Sprintf("none failed; deleted at once in %.1f s; %s", gone.Seconds(), note))}, nil
}

// osMemory is what the host pays for each server besides what its guest uses: what a daemon has more of when it was just
// started with servers than without, and by how much the keeper and the kernel's own structures grew.
func osMemory(ctx context.Context, l *lab) ([]Row, error) {
	const n, peers = 50, 10
	h, err := l.Host(ctx)
	if err != nil {
		return nil, err
	}
	names := numbered("mem", n)
	if _, err := h.LaunchAll(ctx, names, many(api.ModelOS), running); err != nil { // what grows once has grown
		return nil, err
	}
	if _, err := h.Delete(ctx, names...); err != nil {
		return nil, err
	}
	before, err := h.overhead(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := h.LaunchAll(ctx, names, many(api.ModelOS), running); err != nil {
		return nil, err
	}
	after, err := h.overhead(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := h.Delete(ctx, names...); err != nil {
		return nil, err
	}
	each := after.less(before).over(n)
	note := fmt.Sprintf("each: daemon %.2f, keeper %.2f, kernel %.2f MiB over %d servers", each.daemon, each.helpers, each.kernel, n)
	peer, err := lxdMemory(ctx, l, peers)
	if errors.Is(err, exec.ErrNotFound) {
		return []Row{NewRow("os/memory", "MiB", each.sum(), None, "LXD", AtMost(2, "MiB"), note+"; "+missing(err))}, nil
	}
	if err != nil {
		return nil, err
	}
	note += fmt.Sprintf("; LXD: daemon %.2f, monitor %.2f, kernel %.2f MiB over %d", peer.daemon, peer.helpers, peer.kernel, peers)
	return []Row{NewRow("os/memory", "MiB", each.sum(), peer.sum(), "LXD", AtMost(2, "MiB"), note)}, nil
}

// memory is what the host spends, in MiB.
type memory struct{ daemon, helpers, kernel float64 }

func (m memory) sum() float64 { return m.daemon + m.helpers + m.kernel }
func (m memory) less(o memory) memory {
	return memory{m.daemon - o.daemon, m.helpers - o.helpers, m.kernel - o.kernel}
}
func (m memory) over(n float64) memory { return memory{m.daemon / n, m.helpers / n, m.kernel / n} }

func (h *host) overhead(ctx context.Context) (m memory, err error) {
	if err := h.End(unix.SIGTERM); err != nil {
		return m, err
	}
	if _, err := h.Start(ctx); err != nil {
		return m, err
	}
	if err := h.quiet(ctx); err != nil {
		return m, err
	}
	keeper, _, err := find("keeper", h.RunDir)
	if err != nil {
		return m, err
	}
	if m.daemon, err = pss(h.PID()); err != nil {
		return m, err
	}
	if m.helpers, err = pss(keeper); err != nil {
		return m, err
	}
	m.kernel, err = kernelMemory()
	return m, err
}

func lxdMemory(ctx context.Context, l *lab, n int) (memory, error) {
	x, err := l.LXD(ctx)
	if err != nil {
		return memory{}, err
	}
	look := func() (m memory, err error) {
		daemon, monitors := x.PIDs()
		if m.daemon, err = pss(daemon); err != nil {
			return m, err
		}
		for _, pid := range monitors {
			size, err := pss(pid)
			if err != nil {
				return m, err
			}
			m.helpers += size
		}
		m.kernel, err = kernelMemory()
		return m, err
	}
	before, err := look()
	if err != nil {
		return memory{}, err
	}
	names := numbered("mem", n)
	for _, name := range names {
		if _, err := x.Launch(ctx, name); err != nil {
			return memory{}, err
		}
	}
	after, err := look()
	for _, name := range names {
		_, deleteErr := x.Delete(ctx, name)
		err = errors.Join(err, deleteErr)
	}
	return after.less(before).over(float64(n)), err
}
