package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
)

// cpuWindow is how long CPU time is measured, windows how often. The median counts: where the kernel's balancer moves the
// processes of one server onto one processor, it is a while before they are spread again.
const (
	cpuWindow = 10 * time.Second
	windows   = 3
)

// cpuEntitlement has two servers with entitlements of 3 to 1 want every processor.
func cpuEntitlement(ctx context.Context, l *lab) ([]Row, error) {
	n := runtime.NumCPU()
	big, little := small(api.ModelOS, ""), small(api.ModelOS, "")
	for spec, share := range map[*api.ServerSpec]int{&big: 3, &little: 1} {
		spec.CPU = api.CPU{Count: n, Entitlement: api.MilliCPU(n*share) * api.CPU1 / 10}
	}
	used, err := spin(ctx, l, map[string]api.ServerSpec{"big": big, "little": little})
	if err != nil {
		return nil, err
	}
	var ratios []float64
	for i := range windows {
		ratios = append(ratios, used["big"][i]/used["little"][i])
	}
	slices.Sort(ratios)
	return []Row{NewRow("cpu/entitlement", "", ratios[windows/2], None, "", Within(3, 0.05),
		fmt.Sprintf("%d spinning processes each, in windows of %s: %.3g; the two together had %.2f CPUs", n, cpuWindow, ratios, used["big"][0]+used["little"][0]))}, nil
}

// cpuCap has a server that may have 30% of a processor want them all.
func cpuCap(ctx context.Context, l *lab) ([]Row, error) {
	spec := small(api.ModelOS, "")
	spec.CPU = api.CPU{Count: 1, Entitlement: 300, Cap: 300}
	used, err := spin(ctx, l, map[string]api.ServerSpec{"capped": spec})
	if err != nil {
		return nil, err
	}
	shares := slices.Sorted(slices.Values(used["capped"]))
	return []Row{NewRow("cpu/cap", "%", 100*shares[windows/2], None, "", Within(30, 0.03),
		fmt.Sprintf("of a CPU, in windows of %s: %.3g", cpuWindow, shares))}, nil
}

// spin runs servers that do nothing but spin, with as many processes each as there are processors, and returns how many
// processors each used in each window.
func spin(ctx context.Context, l *lab, specs map[string]api.ServerSpec) (map[string][]float64, error) {
	h, err := l.Host(ctx)
	if err != nil {
		return nil, err
	}
	spinning, stop := context.WithCancel(ctx)
	var spinners sync.WaitGroup
	defer spinners.Wait()
	defer stop()
	var names []string
	for name, spec := range specs {
		if _, err := h.Launch(ctx, name, spec, ready); err != nil {
			return nil, err
		}
		names = append(names, name)
		for range runtime.NumCPU() {
			spinners.Go(func() {
				_, _ = h.Exec(spinning, tenant, name, client.Exec{Args: []string{"/bin/spin"}}) // it ends with the server
			})
		}
	}
	if err := h.spun(ctx, names, 200*time.Millisecond); err != nil {
		return nil, err
	}
	used := map[string][]float64{}
	before, began, err := h.cpuUsed(ctx)
	for range windows {
		if err != nil {
			return nil, err
		}
		select {
		case <-time.After(cpuWindow):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		var after map[string]time.Duration
		var ended time.Time
		if after, ended, err = h.cpuUsed(ctx); err != nil {
			return nil, err
		}
		for _, name := range names {
			used[name] = append(used[name], (after[name]-before[name]).Seconds()/ended.Sub(began).Seconds())
		}
		before, began = after, ended
	}
	_, err = h.Delete(ctx, names...)
	return used, err
}

// spun waits until each server has used some CPU: its spinners run.
func (h *host) spun(ctx context.Context, names []string, least time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	first, _, err := h.cpuUsed(ctx)
	if err != nil {
		return err
	}
	for poll := time.NewTicker(50 * time.Millisecond); ; {
		now, _, err := h.cpuUsed(ctx)
		if err != nil {
			return err
		}
		all := true
		for _, name := range names {
			all = all && now[name]-first[name] >= least
		}
		if all {
			poll.Stop()
			return nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return fmt.Errorf("servers %v do not spin: %w", names, ctx.Err())
		}
	}
}

// cpuUsed is the CPU time of servers as the API tells it, and when it was read.
func (h *host) cpuUsed(ctx context.Context) (map[string]time.Duration, time.Time, error) {
	usage, err := h.Usage(ctx, tenant)
	used := map[string]time.Duration{}
	for _, u := range usage {
		used[u.Server] = time.Duration(u.CPUTime)
	}
	return used, time.Now(), err
}

// cpuTime that a process has used (proc(5), stat: utime and stime, in hundredths of a second).
func cpuTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	total := 0
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return time.Duration(total) * 10 * time.Millisecond, nil
}
