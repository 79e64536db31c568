package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/croftproject/croft/api"
)

// Resource is one kind of resource, of one tenant or of all.
type Resource[T, S any] struct {
	c    *Client
	path string
}

// Create asks for a new resource.
type Create[S any] struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	Spec   S                 `json:"spec"`
	Key    string            `json:"-"` // Idempotency-Key; default: a random one
}

// Update replaces the labels and the spec of a resource; another name renames it.
type Update[S any] struct {
	Name     string            `json:"name,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Spec     S                 `json:"spec"`
	Revision int64             `json:"-"` // revision that it must still have; 0: any
}

// DeleteOptions of a delete.
type DeleteOptions struct {
	Revision int64 // revision that it must still have; 0: any
	Force    bool  // stop a running server hard first
}

// ListOptions selects resources.
type ListOptions struct {
	Limit  int               // items a page; 0: the API's default
	Cursor string            // page to begin with
	Labels map[string]string // all must match
	Filter map[string]string // phase, model, host, network, image, name
}

func (o ListOptions) query() url.Values {
	q := url.Values{}
	for key, value := range o.Filter {
		q.Set(key, value)
	}
	for key, value := range o.Labels {
		q.Add("labels", key+"="+value)
	}
	if o.Limit > 0 {
		q.Set("limit", strconv.Itoa(o.Limit))
	}
	if o.Cursor != "" {
		q.Set("cursor", o.Cursor)
	}
	return q
}

func of[T, S any](c *Client, tenant, plural string) *Resource[T, S] {
	if tenant == "" {
		return &Resource[T, S]{c, "/v1/" + plural}
	}
	return &Resource[T, S]{c, "/v1/tenants/" + url.PathEscape(tenant) + "/" + plural}
}

// Servers of a tenant. With tenant "" they are those of all tenants, which can be listed and watched only; so it is with
// the other kinds.
func (c *Client) Servers(tenant string) *Resource[api.Server, api.ServerSpec] {
	return of[api.Server, api.ServerSpec](c, tenant, "servers")
}

// Networks of a tenant.
func (c *Client) Networks(tenant string) *Resource[api.Network, api.NetworkSpec] {
	return of[api.Network, api.NetworkSpec](c, tenant, "networks")
}

// Images of a tenant. They are made by Import and Build.
func (c *Client) Images(tenant string) *Resource[api.Image, api.ImageSpec] {
	return of[api.Image, api.ImageSpec](c, tenant, "images")
}

// Hosts there are.
func (c *Client) Hosts() *Resource[api.Host, api.HostSpec] {
	return of[api.Host, api.HostSpec](c, "", "hosts")
}

// Tenants there are.
func (c *Client) Tenants() *Resource[api.Tenant, api.TenantSpec] {
	return of[api.Tenant, api.TenantSpec](c, "", "tenants")
}

// Jobs of a tenant.
func (c *Client) Jobs(tenant string) *Resource[api.Job, api.JobSpec] {
	return of[api.Job, api.JobSpec](c, tenant, "jobs")
}

// Events of a tenant. They can be listed and watched only.
func (c *Client) Events(tenant string) *Resource[api.Event, struct{}] {
	return of[api.Event, struct{}](c, tenant, "events")
}

// Any is a kind by its plural ("servers"), with resources and specs as plain JSON: hosts and tenants have no tenant.
func (c *Client) Any(tenant, plural string) *Resource[json.RawMessage, json.RawMessage] {
	return of[json.RawMessage, json.RawMessage](c, tenant, plural)
}

func (r *Resource[T, S]) item(name string) string { return r.path + "/" + url.PathEscape(name) }

// Create makes a resource. It returns as soon as it is admitted.
func (r *Resource[T, S]) Create(ctx context.Context, in Create[S]) (*T, error) {
	if in.Key == "" {
		in.Key = newKey()
	}
	out := new(T)
	err := r.c.call(ctx, request{method: http.MethodPost, path: r.path, header: http.Header{"Idempotency-Key": {in.Key}}}, in, out)
	return result(out, err)
}

// Get finds a resource by name or id.
func (r *Resource[T, S]) Get(ctx context.Context, name string) (*T, error) {
	if name == "" {
		return nil, errors.New("the name is empty")
	}
	out := new(T)
	return result(out, r.c.call(ctx, request{method: http.MethodGet, path: r.item(name)}, nil, out))
}

// Replace replaces a resource's labels and spec.
func (r *Resource[T, S]) Replace(ctx context.Context, name string, u Update[S]) (*T, error) {
	out := new(T)
	return result(out, r.c.call(ctx, request{method: http.MethodPut, path: r.item(name), header: match(u.Revision)}, u, out))
}

// Patch applies a JSON merge patch (RFC 7396). With a revision it must still be the resource's.
func (r *Resource[T, S]) Patch(ctx context.Context, name string, patch any, revision int64) (*T, error) {
	header := match(revision)
	header.Set("Content-Type", "application/merge-patch+json")
	out := new(T)
	return result(out, r.c.call(ctx, request{method: http.MethodPatch, path: r.item(name), header: header}, patch, out))
}

// Delete asks for a resource to be deleted, and returns it as it was last.
func (r *Resource[T, S]) Delete(ctx context.Context, name string, o DeleteOptions) (*T, error) {
	if name == "" {
		return nil, errors.New("the name is empty")
	}
	q := url.Values{}
	if o.Force {
		q.Set("force", "true")
	}
	out := new(T)
	return result(out, r.c.call(ctx, request{method: http.MethodDelete, path: r.item(name), query: q, header: match(o.Revision)}, nil, out))
}

func result[T any](out *T, err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	return out, nil
}

func match(revision int64) http.Header {
	h := http.Header{}
	if revision != 0 {
		h.Set("If-Match", fmt.Sprintf(`"%d"`, revision))
	}
	return h
}

// Page reads one page of a list.
func (r *Resource[T, S]) Page(ctx context.Context, o ListOptions) (*api.Page[T], error) {
	out := new(api.Page[T])
	return result(out, r.c.call(ctx, request{method: http.MethodGet, path: r.path, query: o.query()}, nil, out))
}

// List goes through all pages. After an error it ends.
func (r *Resource[T, S]) List(ctx context.Context, o ListOptions) iter.Seq2[*T, error] {
	return func(yield func(*T, error) bool) {
		if o.Limit == 0 {
			o.Limit = 1000
		}
		for {
			page, err := r.Page(ctx, o)
			if err != nil {
				yield(nil, err)
				return
			}
			for i := range page.Items {
				if !yield(&page.Items[i], nil) {
					return
				}
			}
			if page.Next == "" {
				return
			}
			o.Cursor = page.Next
		}
	}
}

// patience is how long a watch goes on trying to reach a daemon that went away.
const patience = 30 * time.Second

// Watch delivers the changes after revision from; 0 is from now, after a put of everything there is. A stream that
// breaks is resumed where it ended, also over a restart of the daemon. Where the daemon does not remember the changes
// since then, it begins anew with a put of everything there is; deletions in between are not told.
func (r *Resource[T, S]) Watch(ctx context.Context, o ListOptions, from int64) iter.Seq2[api.Change[T], error] {
	return func(yield func(api.Change[T], error) bool) {
		lost := time.Time{} // since when the daemon can't be reached
		resumed := false    // from is a revision that this watch was told
		for {
			next, more, err := r.watchOnce(ctx, o, from, yield)
			if !more {
				return
			}
			if next != from {
				from, lost, resumed = next, time.Time{}, true
			}
			if err == nil {
				lost = time.Time{}
			} else if lost.IsZero() {
				lost = time.Now()
			}
			var p *api.Problem
			if resumed && errors.As(err, &p) && p.Code == api.CodeExpired {
				from, resumed = 0, false
				continue
			}
			if ctx.Err() != nil || (errors.As(err, &p) && p.Code != api.CodeUnavailable) || (err != nil && time.Since(lost) > patience) {
				if ctx.Err() != nil {
					err = ctx.Err()
				}
				yield(api.Change[T]{}, err)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
}

// watchOnce reads one stream. It returns the revision to resume after, and whether the caller wants more.
func (r *Resource[T, S]) watchOnce(ctx context.Context, o ListOptions, from int64, yield func(api.Change[T], error) bool) (int64, bool, error) {
	q := o.query()
	q.Set("watch", "true")
	q.Set("from", strconv.FormatInt(from, 10))
	answer, err := r.c.do(ctx, request{method: http.MethodGet, path: r.path, query: q})
	if err != nil {
		return from, true, err
	}
	defer answer.Body.Close() //nolint:errcheck // it was only read
	lines := bufio.NewReaderSize(answer.Body, 64<<10)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return from, true, nil // it ended: that is when a stream is resumed
		}
		data, ok := strings.CutPrefix(line, "data: ")
		if !ok {
			continue
		}
		var change api.Change[T]
		if err := json.Unmarshal([]byte(data), &change); err != nil {
			return from, true, api.Errorf(api.CodeInternal, "a change can't be read: %v", err)
		}
		if change.Revision > 0 { // else more of what there is follows
			from = change.Revision
		}
		if !yield(change, nil) {
			return from, false, nil
		}
	}
}

// Power acts on a server; force stops hard.
func (c *Client) Power(ctx context.Context, tenant, name string, action api.PowerAction, force bool) (*api.Server, error) {
	q := url.Values{}
	if force {
		q.Set("force", "true")
	}
	out := new(api.Server)
	path := c.Servers(tenant).item(name) + "/actions/" + string(action)
	return result(out, c.call(ctx, request{method: http.MethodPost, path: path, query: q}, nil, out))
}

// ReplaceRaw replaces a resource by a document as it is, so that the API, not the client, judges its fields.
func (c *Client) ReplaceRaw(ctx context.Context, tenant, plural, name string, body any) (json.RawMessage, error) {
	var out json.RawMessage
	err := c.call(ctx, request{method: http.MethodPut, path: c.Any(tenant, plural).item(name)}, body, &out)
	return out, err
}
