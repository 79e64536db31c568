package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"
)

// side is one of those that are compared. Its act tells itself how long it took, so that what prepares and what clears
// away is not counted.
type side struct {
	Name string
	Act  func(ctx context.Context) (time.Duration, error)
}

// What an act leaves is ended before the next begins, and not counted with it: the kernel frees namespaces and mounts, and
// daemons tidy up, behind everybody's back. The machine is at rest when its processors were idle for all but restBusy of
// restWindow; restPatience is how long that is waited for.
const (
	restWindow   = 200 * time.Millisecond
	restBusy     = 0.05
	restPatience = 5 * time.Second
)

// rest waits until the machine is at rest, for as long as that is worth, and tells whether it is.
func rest(ctx context.Context) (bool, error) {
	before, err := busyTime()
	if err != nil {
		return false, err
	}
	for patience := restPatience; patience > 0; patience -= restWindow {
		select {
		case <-time.After(restWindow):
		case <-ctx.Done():
			return false, ctx.Err()
		}
		now, err := busyTime()
		if err != nil {
			return false, err
		}
		if now-before < time.Duration(restBusy*float64(runtime.NumCPU())*float64(restWindow)) {
			return true, nil
		}
		before = now
	}
	return false, nil
}

// busyTime is how long the machine's processors have worked, in sum, by the first line of proc_stat(5).
func busyTime() (time.Duration, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	const tick = 10 * time.Millisecond // USER_HZ
	var user, nice, system, idle, iowait, irq, softirq int64
	if _, err := fmt.Sscanf(string(data), "cpu %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &iowait, &irq, &softirq); err != nil {
		return 0, fmt.Errorf("/proc/stat: %w", err)
	}
	return time.Duration(user+nice+system+irq+softirq) * tick, nil
}

// turns has the sides act in turns, A B A B …, so that what else the machine does hits all of them, and returns the
// times of each. A first round warms up, and is not counted.
func turns(ctx context.Context, rounds int, sides ...side) ([][]time.Duration, error) {
	out, restless := make([][]time.Duration, len(sides)), 0
	for round := range rounds + 1 {
		for i, s := range sides {
			rested, err := rest(ctx)
			if err != nil {
				return nil, err
			}
			if !rested {
				restless++
			}
			took, err := s.Act(ctx)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.Name, err)
			}
			if round > 0 {
				out[i] = append(out[i], took)
			}
		}
	}
	if restless > 0 {
		fmt.Fprintf(os.Stderr, "  the machine was not at rest before %d of %d acts: other things run on it\n", restless, (rounds+1)*len(sides))
	}
	return out, nil
}

// median of times, in seconds.
func median(times []time.Duration) float64 {
	if len(times) == 0 {
		return None
	}
	sorted := slices.Sorted(slices.Values(times))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]).Seconds() / 2
}

// spread tells the least and the most of times, for a note.
func spread(times []time.Duration) string {
	if len(times) == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f–%.0f ms", 1e3*slices.Min(times).Seconds(), 1e3*slices.Max(times).Seconds())
}

func milliseconds(times []time.Duration) float64 { return 1e3 * median(times) }
