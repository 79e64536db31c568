package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/coder/websocket"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi/frame"
)

// WinSize is the size of a terminal, in characters.
type WinSize struct{ Rows, Cols uint16 }

// dial opens a WebSocket below a server.
func (c *Client) dial(ctx context.Context, tenant, name, verb string, q url.Values) (*websocket.Conn, error) {
	target := c.base + c.Servers(tenant).item(name) + "/" + verb
	if len(q) > 0 {
		target += "?" + q.Encode()
	}
	conn, answer, err := websocket.Dial(ctx, target, &websocket.DialOptions{HTTPClient: c.http})
	if err != nil {
		if answer != nil && answer.StatusCode >= 400 && answer.Body != nil {
			return nil, problemOf(answer)
		}
		return nil, c.reach(ctx, err)
	}
	conn.SetReadLimit(frame.Limit + 1)
	return conn, nil
}

// Console is an attachment to a server's console. Closing it detaches.
type Console struct {
	conn *websocket.Conn
	ctx  context.Context
	rest []byte
}

// Console attaches to the console of a server, until ctx ends or the console is closed.
func (c *Client) Console(ctx context.Context, tenant, name string) (*Console, error) {
	conn, err := c.dial(ctx, tenant, name, "console", nil)
	if err != nil {
		return nil, err
	}
	return &Console{conn: conn, ctx: ctx}, nil
}

// Read reads what the console prints; io.EOF when the guest has ended, a problem with code unavailable when the daemon stops.
func (c *Console) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		_, message, err := c.conn.Read(c.ctx)
		if websocket.CloseStatus(err) == websocket.StatusNormalClosure {
			return 0, io.EOF
		}
		var closed websocket.CloseError
		if errors.As(err, &closed) && closed.Code == websocket.StatusGoingAway {
			return 0, api.Errorf(api.CodeUnavailable, "%s", closed.Reason)
		}
		if err != nil {
			return 0, err
		}
		channel, data, err := frame.Decode(message)
		if err != nil {
			return 0, err
		}
		if channel == frame.Stdout {
			c.rest = data
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// Write types into the console.
func (c *Console) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	return len(p), sendData(c.ctx, c.conn, p)
}

// Resize tells the guest the size of the window.
func (c *Console) Resize(size WinSize) error {
	return c.conn.Write(c.ctx, websocket.MessageBinary, frame.EncodeControl(frame.Control{Resize: &frame.Size{Rows: size.Rows, Cols: size.Cols}}))
}

// Close detaches.
func (c *Console) Close() error { return c.conn.Close(websocket.StatusNormalClosure, "") }

func sendData(ctx context.Context, conn *websocket.Conn, p []byte) error {
	for len(p) > 0 {
		piece := p[:min(len(p), frame.Limit-1)]
		if err := conn.Write(ctx, websocket.MessageBinary, frame.Encode(frame.Stdin, piece)); err != nil {
			return err
		}
		p = p[len(piece):]
	}
	return nil
}

// Exec is a process to run in a guest.
type Exec struct {
	Args   []string
	Env    []string // NAME=value
	User   string
	Dir    string
	TTY    bool
	Stdin  io.Reader      // nil: empty
	Stdout io.Writer      // nil: not looked at
	Stderr io.Writer      // likewise; unused with TTY
	Size   WinSize        // first size of the terminal, with TTY
	Resize <-chan WinSize // later ones; may be nil
}

// Exec runs a process in a guest and returns its exit code. A daemon that stops ends the process; the error is then a problem
// with code unavailable. It does not wait for a Read of Stdin that is under way.
func (c *Client) Exec(ctx context.Context, tenant, name string, e Exec) (int, error) {
	q := url.Values{"cmd": e.Args, "env": e.Env}
	for key, value := range map[string]string{"user": e.User, "cwd": e.Dir} {
		if value != "" {
			q.Set(key, value)
		}
	}
	if e.TTY {
		q.Set("tty", "true")
		q.Set("rows", strconv.Itoa(int(e.Size.Rows)))
		q.Set("cols", strconv.Itoa(int(e.Size.Cols)))
	}
	conn, err := c.dial(ctx, tenant, name, "exec", q)
	if err != nil {
		return 0, err
	}
	defer conn.CloseNow() //nolint:errcheck // after Close it has nothing to say
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if e.Stdout == nil {
		e.Stdout = io.Discard
	}
	if e.Stderr == nil {
		e.Stderr = io.Discard
	}
	go sendInput(ctx, conn, e.Stdin)
	go sendSizes(ctx, conn, e.Resize)
	for {
		_, message, err := conn.Read(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			return 0, fmt.Errorf("the connection to the process was lost: %w", err)
		}
		code, done, err := e.take(message)
		if done || err != nil {
			conn.Close(websocket.StatusNormalClosure, "") //nolint:errcheck // the daemon closes too
			return code, err
		}
	}
}

// take handles one message of the daemon; done says that it was the last.
func (e *Exec) take(message []byte) (code int, done bool, err error) {
	channel, data, err := frame.Decode(message)
	if err != nil {
		return 0, true, err
	}
	switch channel {
	case frame.Stdout:
		_, err = e.Stdout.Write(data)
	case frame.Stderr:
		_, err = e.Stderr.Write(data)
	case frame.Ctl:
		control, err := frame.DecodeControl(data)
		switch {
		case err != nil:
			return 0, true, err
		case control.Error != nil:
			return 0, true, control.Error
		case control.Exit != nil:
			return *control.Exit, true, nil
		}
	}
	return 0, err != nil, err
}

// sendInput sends stdin and its end. It ends with the connection, or with stdin.
func sendInput(ctx context.Context, conn *websocket.Conn, stdin io.Reader) {
	if stdin != nil {
		buf := make([]byte, 32<<10)
		for {
			n, err := stdin.Read(buf)
			if n > 0 && sendData(ctx, conn, buf[:n]) != nil {
				return
			}
			if err != nil {
				break
			}
		}
	}
	conn.Write(ctx, websocket.MessageBinary, frame.Encode(frame.Stdin, nil)) //nolint:errcheck // the process may have ended
}

func sendSizes(ctx context.Context, conn *websocket.Conn, sizes <-chan WinSize) {
	for {
		select {
		case <-ctx.Done():
			return
		case size, ok := <-sizes:
			if !ok {
				return
			}
			control := frame.Control{Resize: &frame.Size{Rows: size.Rows, Cols: size.Cols}}
			if conn.Write(ctx, websocket.MessageBinary, frame.EncodeControl(control)) != nil {
				return
			}
		}
	}
}

// Log reads what a server's console has printed; with follow it goes on until ctx ends. Close it.
func (c *Client) Log(ctx context.Context, tenant, name string, follow bool) (io.ReadCloser, error) {
	q := url.Values{}
	if follow {
		q.Set("follow", "true")
	}
	answer, err := c.do(ctx, request{method: http.MethodGet, path: c.Servers(tenant).item(name) + "/log", query: q})
	if err != nil {
		return nil, err
	}
	return answer.Body, nil
}

// Display connects to a server's graphical console, which speaks RFB (RFC 6143).
func (c *Client) Display(ctx context.Context, tenant, name string) (io.ReadWriteCloser, error) {
	conn, err := c.dial(ctx, tenant, name, "display", nil)
	if err != nil {
		return nil, err
	}
	conn.SetReadLimit(1 << 24)
	return websocket.NetConn(ctx, conn, websocket.MessageBinary), nil
}

// IsNotFound tells whether err says that there is no such resource.
func IsNotFound(err error) bool {
	var p *api.Problem
	return errors.As(err, &p) && p.Code == api.CodeNotFound
}
