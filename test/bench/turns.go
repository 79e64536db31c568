package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// side is one of those that are compared. Its act tells itself how long it took, so that what prepares and what clears
// away is not counted.
type side struct {
	Name string
	Act  func(ctx context.Context) (time.Duration, error)
}

// turns has the sides act in turns, A B A B …, so that what else the machine does hits all of them, and returns the
// times of each. A first round warms up, and is not counted.
func turns(ctx context.Context, rounds int, sides ...side) ([][]time.Duration, error) {
	out := make([][]time.Duration, len(sides))
	for round := range rounds + 1 {
		for i, s := range sides {
			took, err := s.Act(ctx)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.Name, err)
			}
			if round > 0 {
				out[i] = append(out[i], took)
			}
		}
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
