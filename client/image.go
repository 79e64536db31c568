package client

import (
	"context"
	"io"
	"net/http"
	"net/url"

	"github.com/croftproject/croft/api"
)

// Import is an image to import: Body, or Registry.
type Import struct {
	Name   string
	Shared bool
	Labels map[string]string
	Body   io.Reader
	Size   int64 // of Body; 0 or less: not known
	// Progress is told how many bytes were sent so far; may be nil.
	Progress  func(sent int64)
	Registry  string // OCI reference
	PlainHTTP bool
}

// Import sends an image. The job that it returns is done or failed; with a registry it still runs.
func (c *Client) Import(ctx context.Context, tenant string, i Import) (*api.Job, error) {
	q := url.Values{"name": {i.Name}}
	if i.Shared {
		q.Set("shared", "true")
	}
	for key, value := range i.Labels {
		q.Add("labels", key+"="+value)
	}
	if i.Registry != "" {
		q.Set("registry", i.Registry)
	}
	if i.PlainHTTP {
		q.Set("plainHTTP", "true")
	}
	r := request{method: http.MethodPost, path: c.Images(tenant).path + "/import", query: q, header: http.Header{"Idempotency-Key": {newKey()}}}
	if i.Body != nil {
		r.body, r.size = &progressReader{r: i.Body, tell: i.Progress}, i.Size
		if r.size <= 0 {
			r.size = -1
		}
		r.header.Set("Content-Type", "application/octet-stream")
	}
	out := new(api.Job)
	return result(out, c.call(ctx, r, nil, out))
}

// Build starts the build of a built-in image ("micro", "debian-12").
func (c *Client) Build(ctx context.Context, tenant, name, builtin string, shared bool) (*api.Job, error) {
	body := struct {
		Name    string `json:"name"`
		Builtin string `json:"builtin"`
		Shared  bool   `json:"shared,omitempty"`
	}{name, builtin, shared}
	out := new(api.Job)
	r := request{method: http.MethodPost, path: c.Images(tenant).path + "/build", header: http.Header{"Idempotency-Key": {newKey()}}}
	return result(out, c.call(ctx, r, body, out))
}

// progressReader tells how much was read. It is no ReaderAt or Closer, so that the transport reads it once, in order.
type progressReader struct {
	r    io.Reader
	n    int64
	tell func(int64)
}

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.n += int64(n)
	if p.tell != nil && n > 0 {
		p.tell(p.n)
	}
	return n, err
}
