// Package control is the control plane: the use cases of the API. It authorizes, validates, places, and writes desired
// state, what is promised for it, and the event of it in one transaction.
//
// Reads come from an index in memory that one watch keeps (index.go). Writes are made from what the index holds, and
// check in the transaction that all of it still stands (commit.go); so two control planes on one store can never both
// promise the last of anything. After a write the caller waits until the index has it.
package control

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/image"
	"github.com/croftproject/croft/internal/store"
)

// Engine is what the control plane asks of an engine: its pure rules.
type Engine interface {
	Traits() engine.Traits
	Validate(spec *api.ServerSpec) []api.FieldError
	Overhead(spec *api.ServerSpec) api.Bytes
}

// Options of a control plane.
type Options struct {
	Store   store.Store
	Images  image.Store // content of images on this host
	Engines []Engine
	// Avoid are prefixes that an automatic choice of a network's prefix keeps clear of: those that the host itself uses.
	Avoid []netip.Prefix
	// ImageLimit is the most bytes that an imported image may unpack to. Default: 64 GiB.
	ImageLimit api.Bytes
	Now        func() time.Time // default: time.Now
	Rand       io.Reader        // default: crypto/rand
	Logger     *slog.Logger     // default: none
}

// DefaultTenant is the operator's own tenant, made at the first start.
const DefaultTenant = "default"

// Control is the control plane. It implements httpapi.Control.
type Control struct {
	o         Options
	ix        *index
	admission sync.Mutex // held over every change of a ledger by this process, so that its own writes never conflict
	ids       idSource
	work      *jobs
	host      atomic.Pointer[string] // id of this daemon's own host, once registered
	stop      context.CancelFunc
	watching  sync.WaitGroup
}

var _ httpapi.Control = (*Control)(nil)

// New starts a control plane: it reads the store and follows it until Close. On return the index is complete and the
// default tenant exists. A daemon that has a host then calls RegisterHost.
func New(ctx context.Context, o Options) (*Control, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.ImageLimit == 0 {
		o.ImageLimit = 64 * api.GiB
	}
	c := &Control{o: o, ix: newIndex(o.Logger)}
	c.ids.now, c.ids.entropy = o.Now, ulid.Monotonic(o.Rand, 0)
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.stop = stop
	c.work = newJobs(running)
	loaded := make(chan struct{})
	c.watching.Go(func() { c.ix.follow(running, o.Store, loaded) })
	select {
	case <-loaded:
	case <-ctx.Done():
		c.Close()
		return nil, ctx.Err()
	}
	if err := c.ensureDefaultTenant(ctx); err != nil {
		c.Close()
		return nil, err
	}
	if err := c.sweep(ctx); err != nil {
		o.Logger.Warn("remove statuses of servers that are gone", "error", err)
	}
	c.watching.Go(func() { c.prune(running) })
	return c, nil
}

// Close ends jobs (they are marked failed), watches and the index.
func (c *Control) Close() {
	c.work.close()
	c.stop()
	c.watching.Wait()
	c.ix.closeFeeds()
}

func (c *Control) Servers() httpapi.Resources[api.Server, api.ServerSpec]    { return servers{c} }
func (c *Control) Networks() httpapi.Resources[api.Network, api.NetworkSpec] { return networks{c} }
func (c *Control) Images() httpapi.Resources[api.Image, api.ImageSpec]       { return images{c} }
func (c *Control) Hosts() httpapi.Resources[api.Host, api.HostSpec]          { return hosts{c} }
func (c *Control) Tenants() httpapi.Resources[api.Tenant, api.TenantSpec]    { return tenants{c} }
func (c *Control) Events() httpapi.Resources[api.Event, struct{}]            { return eventList{c} }
func (c *Control) Jobs() httpapi.Resources[api.Job, api.JobSpec]             { return jobList{c} }

// idSource makes ids: ULIDs in lower case, growing within this process.
type idSource struct {
	mu      sync.Mutex
	now     func() time.Time
	entropy io.Reader
}

func (s *idSource) next() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		id, err := ulid.New(ulid.Timestamp(s.now()), s.entropy)
		if err == nil {
			return strings.ToLower(id.String())
		}
		if !errors.Is(err, ulid.ErrMonotonicOverflow) {
			panic("no randomness: " + err.Error())
		}
	}
}

// who may do what: the operator everything, anybody else what belongs to its own tenant.
func authorize(who httpapi.Caller, tenant string) error {
	if who.Operator || (tenant != "" && who.Tenant == tenant) {
		return nil
	}
	return api.Errorf(api.CodeForbidden, "%s may not act on tenant %s", who.Name, tenant)
}

func operatorOnly(who httpapi.Caller, act string) error {
	if who.Operator {
		return nil
	}
	return api.Errorf(api.CodeForbidden, "only the operator may %s", act)
}
