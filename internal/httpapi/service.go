// Package httpapi serves the API over HTTP: routes, OpenAPI, problems, watches and streams. It decodes, checks the form
// and hands over to Control and Guests; it decides nothing else.
package httpapi

import (
	"context"
	"io"
	"net"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
)

// Caller is who asks: the audit log and events name it.
type Caller struct {
	Name     string // "root" on the unix socket
	Operator bool   // may do everything
	Tenant   string // tenant that a caller who is not the operator acts for; empty for none
	Key      string // Idempotency-Key of the request; empty for none
}

// ListOptions selects and pages a list.
type ListOptions struct {
	Limit      int               // 1 to 1000; 0 is 100
	Cursor     string            // Page.Next of the page before
	Labels     map[string]string // all must match
	Filter     map[string]string // fields that must match: phase, model, host, network, image, kind, reason, name (prefix with "*" at its end)
	AllTenants bool              // tenant is ignored: operator only
}

// Raw is a list page of resources that are encoded already: Items are JSON objects.
type Raw struct {
	Items    [][]byte
	Next     string
	Total    int
	Revision int64
}

// Create is the body of a create.
type Create[S any] struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	Spec   S                 `json:"spec"`
}

// Update replaces labels and spec. Name renames where it differs. Revision is the If-Match of the request; 0: none given.
type Update[S any] struct {
	Name     string            `json:"name,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Spec     S                 `json:"spec"`
	Revision int64             `json:"-"`
}

// Resources are the use cases that every kind of resource has. tenant is "" for hosts and tenants.
// Errors are *api.Problem, or internal.
type Resources[T, S any] interface {
	Create(ctx context.Context, who Caller, tenant string, c Create[S]) (*T, error)
	Get(ctx context.Context, who Caller, tenant, name string) (*T, error)
	List(ctx context.Context, who Caller, tenant string, o ListOptions) (Raw, error)
	Update(ctx context.Context, who Caller, tenant, name string, u Update[S]) (*T, error)
	Delete(ctx context.Context, who Caller, tenant, name string, o DeleteOptions) (*T, error)
	// Watch delivers changes after revision from (0: from now, preceded by a put of everything there is). Values are
	// encoded api.Change[T]. The channel closes when ctx ends or the watch breaks.
	Watch(ctx context.Context, who Caller, tenant string, o ListOptions, from int64) (<-chan []byte, error)
}

// DeleteOptions of a delete.
type DeleteOptions struct {
	Revision int64 // If-Match; 0: none given
	Force    bool  // of a server: stop it hard first; without it a running server is refused with wrong-state
}

// Control is what the API needs of the control plane.
type Control interface {
	Servers() Resources[api.Server, api.ServerSpec]
	Networks() Resources[api.Network, api.NetworkSpec]
	Images() Resources[api.Image, api.ImageSpec] // Create is refused: images are imported or built
	Hosts() Resources[api.Host, api.HostSpec]    // Create is refused: a daemon makes its host
	Tenants() Resources[api.Tenant, api.TenantSpec]
	Events() Resources[api.Event, struct{}] // List and Watch only
	Jobs() Resources[api.Job, api.JobSpec]  // List, Get, Watch; Delete of ended ones

	// Power acts on a server. Force stops hard at once. It returns the server with its new revision; the act goes on.
	Power(ctx context.Context, who Caller, tenant, name string, action api.PowerAction, force bool) (*api.Server, error)
	// ImportImage reads the upload to its end, and answers with the job, which is done by then, or with what is wrong with
	// the image; with a registry source it answers at once and the job goes on.
	ImportImage(ctx context.Context, who Caller, tenant string, r ImageImport) (*api.Job, error)
	// BuildImage starts the build of a built-in image.
	BuildImage(ctx context.Context, who Caller, tenant, name, builtin string, shared bool) (*api.Job, error)
}

// ImageImport is an import.
type ImageImport struct {
	Name      string
	Shared    bool
	Labels    map[string]string
	Body      io.Reader // an upload, or nil
	Registry  string
	PlainHTTP bool
}

// Guests reaches into running guests, on whichever host they are.
type Guests interface {
	// Console attaches to the server's console; closing the stream detaches.
	Console(ctx context.Context, who Caller, tenant, name string, resize <-chan engine.WinSize) (io.ReadWriteCloser, error)
	// ConsoleLog reads what the console has printed; with follow it goes on until ctx ends.
	ConsoleLog(ctx context.Context, who Caller, tenant, name string, follow bool) (io.ReadCloser, error)
	// Exec runs a process in the guest.
	Exec(ctx context.Context, who Caller, tenant, name string, p engine.Process) (int, error)
	// Display connects to the guest's VNC server.
	Display(ctx context.Context, who Caller, tenant, name string) (net.Conn, error)
	// Usage of the tenant's servers; all tenants' where tenant is "".
	Usage(ctx context.Context, who Caller, tenant string) ([]api.Usage, error)
}
