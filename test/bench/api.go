package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/daemon"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/fake"
	"github.com/croftproject/croft/internal/keeper"
)

// fakeDaemonCommand is what this program starts itself as to be a daemon whose guests are entries in a map.
const fakeDaemonCommand = "fake-daemon"

func fakeDaemon(args []string) error {
	o := daemon.Options{Version: "bench", Logger: slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	f := flag.NewFlagSet(fakeDaemonCommand, flag.ContinueOnError)
	f.StringVar(&o.StateDir, "state-dir", "", "")
	f.StringVar(&o.RunDir, "run-dir", "", "")
	f.StringVar(&o.NetNS, "netns", "", "")
	f.StringVar(&o.Host, "host", "", "")
	if err := f.Parse(args); err != nil {
		return err
	}
	guests := fake.NewHost()
	o.Engines = func(*keeper.Client) []engine.Engine { return []engine.Engine{fake.New(guests, api.ModelPara)} }
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	return daemon.Run(ctx, o)
}

// apiList lists 1,000 servers on one page. Their guests are fake, so that a machine of any size has room for them; the
// API and the store are real.
func apiList(ctx context.Context, l *lab) ([]Row, error) {
	const n, batch = 1000, 100
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	h, err := l.newHost(ctx, "f", self, fakeDaemonCommand)
	if err != nil {
		return nil, err
	}
	if err := h.furnish(ctx); err != nil {
		return nil, err
	}
	spec := many(api.ModelPara)
	spec.CPU.Entitlement, spec.Memory.Limit, spec.Disk.Size, spec.Ports = 1, 16*api.MiB, 128*api.MiB, nil
	for i := range n / batch {
		if _, err := h.LaunchAll(ctx, numbered(fmt.Sprint("f", i), batch), spec, running); err != nil {
			return nil, err
		}
		l.say("api/list-1000: %d servers", (i+1)*batch)
	}
	if err := h.quiet(ctx); err != nil {
		return nil, err
	}
	size := 0
	get := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", h.socket())
	}}}
	times, err := turns(ctx, 3*l.o.Rounds, side{"list", func(ctx context.Context) (time.Duration, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://croft/v1/tenants/"+tenant+"/servers?limit=1000", nil)
		if err != nil {
			return 0, err
		}
		began := time.Now()
		got, err := get.Do(request)
		if err != nil {
			return 0, err
		}
		defer got.Body.Close() //nolint:errcheck // it was only read
		body, err := io.ReadAll(got.Body)
		took := time.Since(began)
		if err != nil {
			return 0, err
		}
		size = len(body)
		return took, countRunning(body, n)
	}})
	if err != nil {
		return nil, err
	}
	return []Row{NewRow("api/list-1000", "ms", milliseconds(times[0]), None, "", AtMost(10, "ms"),
		fmt.Sprintf("one page of %.1f MiB, read to its end: %s", float64(size)/(1<<20), spread(times[0])))}, nil
}

// countRunning makes sure that a list is what it is to be.
func countRunning(body []byte, want int) error {
	var page api.Page[api.Server]
	if err := json.Unmarshal(body, &page); err != nil {
		return err
	}
	count := 0
	for i := range page.Items {
		if running(&page.Items[i]) {
			count++
		}
	}
	if count != want {
		return fmt.Errorf("the list has %d servers that run, not %d", count, want)
	}
	return nil
}
