// Package client speaks Croft's API over the daemon's unix socket, or over HTTP. Errors that the daemon answers with are
// *api.Problem; a daemon that can't be reached is *Unreachable.
//
//	c, err := client.New(client.Options{})
//	server, err := c.Servers("default").Create(ctx, client.Create[api.ServerSpec]{Name: "web", Spec: spec})
//	for change, err := range c.Servers("default").Watch(ctx, client.ListOptions{}, server.Revision) { … }
package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"

	"github.com/croftproject/croft/api"
)

// DefaultSocket is where the daemon of a host listens.
const DefaultSocket = "/run/croft/croft.sock"

// Options of a client.
type Options struct {
	// Address is the path of a unix socket, or an http or https URL. Default: $CROFT_SOCKET, else DefaultSocket.
	Address string
}

// Client is safe for concurrent use.
type Client struct {
	http   *http.Client
	base   string // "http://croft"
	socket string // path; empty with a URL
}

// New makes a client. It does not connect.
func New(o Options) (*Client, error) {
	address := o.Address
	if address == "" {
		address = os.Getenv("CROFT_SOCKET")
	}
	if address == "" {
		address = DefaultSocket
	}
	if strings.HasPrefix(address, "http://") || strings.HasPrefix(address, "https://") {
		u, err := url.Parse(address)
		if err != nil || u.Host == "" {
			return nil, fmt.Errorf("%q is no address of a daemon: give a path or a URL", address)
		}
		return &Client{http: &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()}, base: strings.TrimSuffix(address, "/")}, nil
	}
	socket := strings.TrimPrefix(address, "unix://")
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &Client{http: &http.Client{Transport: &http.Transport{DialContext: dial}}, base: "http://croft", socket: socket}, nil
}

// Close drops the connections that are idle.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Unreachable says that the daemon does not answer at all.
type Unreachable struct {
	Address string
	Err     error
}

func (u *Unreachable) Unwrap() error { return u.Err }

func (u *Unreachable) Error() string {
	switch {
	case errors.Is(u.Err, fs.ErrPermission):
		return fmt.Sprintf("you may not use the daemon's socket %s", u.Address)
	case errors.Is(u.Err, fs.ErrNotExist), errors.Is(u.Err, syscall.ECONNREFUSED):
		return fmt.Sprintf("the Croft daemon does not run: nobody listens on %s", u.Address)
	}
	return fmt.Sprintf("the Croft daemon does not answer on %s: %v", u.Address, u.Err)
}

// Hint is what to do about it.
func (u *Unreachable) Hint() string {
	if errors.Is(u.Err, fs.ErrPermission) {
		return "run the command as root"
	}
	return "start it with: systemctl start croft (or: croft daemon); another socket is given by --socket or CROFT_SOCKET"
}

// request is one request to the API.
type request struct {
	method, path string
	query        url.Values
	header       http.Header
	body         io.Reader
	size         int64 // of body; -1: not known
}

// do sends a request and returns the answer, whose status is below 400.
func (c *Client) do(ctx context.Context, r request) (*http.Response, error) {
	target := c.base + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	h, err := http.NewRequestWithContext(ctx, r.method, target, r.body)
	if err != nil {
		return nil, err
	}
	if r.size != 0 {
		h.ContentLength = r.size
	}
	for name, values := range r.header {
		h.Header[name] = values
	}
	answer, err := c.http.Do(h)
	if err != nil {
		return nil, c.reach(ctx, err)
	}
	if answer.StatusCode >= 400 {
		defer answer.Body.Close() //nolint:errcheck // it was only read
		return nil, problemOf(answer)
	}
	return answer, nil
}

// reach tells a daemon that is not there from what else can fail.
func (c *Client) reach(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		address := c.socket
		if address == "" {
			address = c.base
		}
		return &Unreachable{Address: address, Err: op.Err}
	}
	return fmt.Errorf("ask the daemon: %w", err)
}

// problemOf reads the problem of an answer.
func problemOf(answer *http.Response) error {
	data, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("read the daemon's answer (%s): %w", answer.Status, err)
	}
	var p api.Problem
	if err := json.Unmarshal(data, &p); err != nil || p.Code == "" {
		return fmt.Errorf("the daemon answered %s: %.200s", answer.Status, bytes.TrimSpace(data))
	}
	return &p
}

// call sends in as JSON, if it is not nil, and reads the answer into out, if it is not nil.
func (c *Client) call(ctx context.Context, r request, in, out any) error {
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
		r.body, r.size = bytes.NewReader(data), int64(len(data))
		if r.header == nil {
			r.header = http.Header{}
		}
		if r.header.Get("Content-Type") == "" {
			r.header.Set("Content-Type", "application/json")
		}
	}
	answer, err := c.do(ctx, r)
	if err != nil {
		return err
	}
	defer answer.Body.Close() //nolint:errcheck // it was only read
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(answer.Body).Decode(out); err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	return nil
}

// Version of the daemon.
type Version struct {
	Version string `json:"version"`
	API     string `json:"api"`
	Go      string `json:"go"`
}

// Version asks the daemon for its version.
func (c *Client) Version(ctx context.Context) (Version, error) {
	var v Version
	err := c.call(ctx, request{method: http.MethodGet, path: "/v1/version"}, nil, &v)
	return v, err
}

// Usage is what the tenant's servers use now; all tenants' where tenant is "".
func (c *Client) Usage(ctx context.Context, tenant string) ([]api.Usage, error) {
	path := "/v1/usage"
	if tenant != "" {
		path = "/v1/tenants/" + url.PathEscape(tenant) + "/usage"
	}
	var page struct{ Items []api.Usage }
	err := c.call(ctx, request{method: http.MethodGet, path: path}, nil, &page)
	return page.Items, err
}

// Bundle writes the daemon's debug bundle, a tar.gz.
func (c *Client) Bundle(ctx context.Context, w io.Writer) error {
	answer, err := c.do(ctx, request{method: http.MethodGet, path: "/v1/debug/bundle"})
	if err != nil {
		return err
	}
	defer answer.Body.Close() //nolint:errcheck // it was only read
	if _, err := io.Copy(w, answer.Body); err != nil {
		return fmt.Errorf("read the bundle: %w", err)
	}
	return nil
}

// newKey is an Idempotency-Key for one create, so that it may be sent again on a broken connection.
func newKey() string { return rand.Text() }
