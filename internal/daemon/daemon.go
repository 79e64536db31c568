package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/agent"
	"github.com/croftproject/croft/internal/cgroup"
	"github.com/croftproject/croft/internal/control"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/hostnet/linux"
	"github.com/croftproject/croft/internal/httpapi"
	imagestore "github.com/croftproject/croft/internal/image/local"
	"github.com/croftproject/croft/internal/keeper"
	"github.com/croftproject/croft/internal/pool/dir"
	"github.com/croftproject/croft/internal/store"
)

// Daemon is the program on a host, running.
type Daemon struct {
	o       Options
	facts   facts
	hostID  string
	group   string // parent of the servers' control groups
	lock    *os.File
	store   *store.Etcd
	keeper  *keeper.Client
	groups  *cgroup.Tree
	engines []engine.Engine
	net     *linux.Host
	pool    *dir.Pool
	images  *imagestore.Store
	control *control.Control
	agent   *agent.Agent
	metrics *prometheus.Registry
	server  *http.Server
	socket  net.Listener
	manager string // socket of the service manager; empty: none

	measured measured // store
	followed followed // by one goroutine at a time: the one that opens, then that of reportHost
}

// Run runs a daemon until asked ends. Guests go on, unless the host goes down: then they are stopped before.
func Run(asked context.Context, o Options) error {
	if err := o.complete(); err != nil {
		return err
	}
	d := &Daemon{o: o, group: groupOf(o.StateDir), manager: serviceManager()}
	defer d.close()
	ctx, stop := context.WithCancel(context.WithoutCancel(asked))
	defer stop()
	opening := context.AfterFunc(asked, stop)
	if err := d.open(ctx); err != nil {
		return err
	}
	if opening() {
		defer context.AfterFunc(asked, func() { d.leave(ctx); stop() })()
	}
	return d.serve(ctx)
}

// leave is what a daemon does before it ends.
func (d *Daemon) leave(ctx context.Context) {
	d.notify("STOPPING=1")
	if d.manager == "" || !hostGoesDown(ctx) {
		return
	}
	d.o.Logger.Info("the host goes down: stopping servers")
	if err := d.agent.Halt(ctx); err != nil {
		d.o.Logger.Error("stop servers", "error", err)
	}
}

// hostGoesDown asks systemd whether the machine is being shut down.
func hostGoesDown(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, _ := exec.CommandContext(ctx, "systemctl", "is-system-running").Output() // its exit code tells less than its word
	return strings.TrimSpace(string(out)) == "stopping"
}

// open makes the parts, in the order in which they need each other; what takes long and needs nothing goes on at once.
func (d *Daemon) open(ctx context.Context) (err error) {
	for _, dir := range []string{d.o.StateDir, d.o.RunDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	if err := d.takeLock(); err != nil {
		return err
	}
	if d.facts, err = lookAround(); err != nil {
		return err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return err
	}
	if d.o.Host, err = hostName(filepath.Join(d.o.StateDir, "host-name"), d.o.Host, hostname); err != nil {
		return err
	}
	var opening sync.WaitGroup
	var storeErr, keeperErr error
	opening.Go(func() {
		d.store, storeErr = store.Open(ctx, store.Options{Dir: d.o.StateDir, Endpoints: d.o.EtcdEndpoints, Logger: d.o.Logger})
	})
	opening.Go(func() { keeperErr = d.openGuests(ctx) })
	opening.Wait()
	if err := errors.Join(storeErr, keeperErr); err != nil {
		return err
	}
	d.net, err = linux.New(linux.Options{
		RunDir: d.o.RunDir, NetNS: d.o.NetNS, Prefix: prefix(d.o.StateDir), Uplink: d.o.Uplink, Logger: d.o.Logger,
	})
	if err != nil {
		return err
	}
	if d.pool, err = dir.New(dir.Options{Dir: filepath.Join(d.o.StateDir, "volumes"), Logger: d.o.Logger}); err != nil {
		return err
	}
	d.images, err = imagestore.New(imagestore.Options{
		Dir: filepath.Join(d.o.StateDir, "images"), CacheDir: filepath.Join(d.o.StateDir, "cache"), Executable: d.o.Executable, Groups: common{d.groups, d},
		Reserve: func() api.Bytes { return d.spec().Reserve.Disk }, Logger: d.o.Logger,
	})
	if err != nil {
		return err
	}
	return d.openControl(ctx)
}

// common are control groups on the CPUs that no server has for itself. A CPU that is dedicated while an image is made is
// left once that is done.
type common struct {
	*cgroup.Tree
	daemon *Daemon
}

func (c common) Set(name string, l cgroup.Limits) error {
	if c.daemon.agent != nil {
		l.CPUSet = c.daemon.agent.CommonCPUs()
	}
	return c.Tree.Set(name, l)
}

// openGuests makes what guests need: control groups, the keeper, engines.
func (d *Daemon) openGuests(ctx context.Context) (err error) {
	if d.groups, err = cgroup.New(d.group); err != nil {
		return err
	}
	d.keeper, err = keeper.Connect(ctx, filepath.Join(d.o.RunDir, "keeper"), keeper.Options{
		Executable: d.o.Executable, CgroupPath: d.group + "-keeper",
	})
	if err != nil {
		return err
	}
	if d.o.Engines != nil {
		d.engines = d.o.Engines(d.keeper)
	} else {
		d.engines = d.o.product(d.keeper, d.groups, d.group)
	}
	return nil
}

// takeLock makes sure that this is the only daemon of the state directory.
func (d *Daemon) takeLock() error {
	f, err := os.OpenFile(filepath.Join(d.o.StateDir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return fmt.Errorf("another daemon uses %s: stop it, or give this one a --state-dir of its own", d.o.StateDir)
	}
	d.lock = f
	return nil
}

// openControl makes the control plane, and the agent of this host under it.
func (d *Daemon) openControl(ctx context.Context) (err error) {
	rules := make([]control.Engine, len(d.engines))
	for i, e := range d.engines {
		rules[i] = e
	}
	d.measured = measure(d.store)
	taken, err := d.net.Taken()
	if err != nil {
		return err
	}
	d.control, err = control.New(ctx, control.Options{
		Store: d.measured, Images: d.images, Engines: rules, Logger: d.o.Logger, Avoid: avoid(taken),
	})
	if err != nil {
		return err
	}
	if err := d.register(ctx); err != nil {
		return err
	}
	d.agent = agent.New(agent.Options{
		HostID: d.hostID, HostName: d.o.Host, StateDir: d.o.StateDir, RunDir: d.o.RunDir, IDDir: d.o.IDDir, BootID: d.facts.BootID,
		CPUs: d.facts.CPUs, Capacity: d.capacity, Store: d.measured, Control: d.control, Keeper: d.keeper, Engines: d.engines,
		Pool: d.pool, Images: d.images, Net: d.net, Cgroups: d.groups, Logger: d.o.Logger, Now: time.Now, Fault: d.o.Fault,
	})
	d.metrics = prometheus.NewRegistry()
	d.metrics.MustRegister(d.agent, d.room(), d.measured.took, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return nil
}

// serve answers requests until ctx ends, or a part fails.
func (d *Daemon) serve(ctx context.Context) (err error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	g := &guests{control: d.control, agent: d.agent, keeper: d.keeper, dir: filepath.Join(d.o.StateDir, "servers")}
	handler := httpapi.New(httpapi.Options{
		Control: d.control, Guests: g, Logger: d.o.Logger, Version: d.o.Version, Metrics: d.metrics, Debug: d.bundle,
		Ready: func() error { return answers(ctx, d.store) },
	})
	d.server = httpapi.Server(handler, d.o.Logger)
	d.server.RegisterOnShutdown(handler.Stop)
	if d.socket, err = httpapi.Listen(SocketOf(d.o.RunDir)); err != nil {
		return err
	}
	var parts sync.WaitGroup
	parts.Go(func() { stop(d.agent.Run(ctx)) })
	placeable := make(chan struct{})
	parts.Go(func() { d.reportHost(ctx, sync.OnceFunc(func() { close(placeable) })) })
	// No request is answered before what runs is known, and new servers can be placed.
	for _, known := range []<-chan struct{}{d.agent.Adopted(), placeable} {
		select {
		case <-known:
		case <-ctx.Done():
		}
	}
	parts.Go(func() {
		if err := d.server.Serve(d.socket); !errors.Is(err, http.ErrServerClosed) {
			stop(err)
		}
	})
	d.notify("READY=1")
	d.o.Logger.Info("ready", "version", d.o.Version, "host", d.o.Host, "socket", SocketOf(d.o.RunDir), "state", d.o.StateDir)
	<-ctx.Done()
	closing, done := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer done()
	if d.server.Shutdown(closing) != nil { // a request takes longer
		d.server.Close()
	}
	handler.Wait(closing)
	parts.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// close ends the parts, the last made first.
func (d *Daemon) close() {
	if d.control != nil {
		d.control.Close()
	}
	for _, c := range []interface{ Close() error }{closer(d.net), closer(d.keeper), closer(d.store), closer(d.lock)} {
		if c == nil {
			continue
		}
		if err := c.Close(); err != nil {
			d.o.Logger.Warn("close", "error", err)
		}
	}
}

// closer is nil for a nil pointer.
func closer[T any, P interface {
	*T
	Close() error
}](p P) interface{ Close() error } {
	if p == nil {
		return nil
	}
	return p
}

// prefix begins the names of network devices; the default daemon's is short and telling.
func prefix(stateDir string) string {
	if stateDir == DefaultStateDir {
		return "croft"
	}
	return tag(stateDir)
}

// serviceManager tells the socket of the service manager that started this process (sd_notify(3)). It is taken out of the
// environment: it is not meant for the programs that the daemon starts, and runc would wait for a guest to use it.
func serviceManager() string {
	const variable = "NOTIFY_SOCKET"
	path := os.Getenv(variable)
	os.Unsetenv(variable)
	return path
}

// notify tells the service manager, if there is one.
func (d *Daemon) notify(state string) {
	if d.manager == "" {
		return
	}
	c, err := net.Dial("unixgram", d.manager)
	if err == nil {
		_, err = c.Write([]byte(state))
		c.Close()
	}
	if err != nil {
		d.o.Logger.Warn("tell the service manager", "error", err)
	}
}

// capacity is what guests may use of the processors.
func (d *Daemon) capacity() api.MilliCPU {
	total := api.MilliCPU(len(d.facts.CPUs)) * api.CPU1
	return total - d.spec().Reserve.CPU
}
