package httpapi

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/httpapi/frame"
)

const serverPath = "/v1/tenants/{tenant}/servers/{name}"

// guestRoutes registers what reaches into a running guest.
func (s *server) guestRoutes() {
	s.powerRoutes()
	s.usageRoutes()
	s.streamRoute("console", s.console, "Attach to the console (WebSocket; framing as in exec)", nil)
	s.streamRoute("exec", s.exec, "Run a process in the guest (WebSocket)", []*huma.Param{
		queryParam("cmd", true, "The command and its arguments, one each."),
		queryParam("env", true, "NAME=value, one each."),
		queryParam("user", false, "user or user:group, by name or number; default root."),
		queryParam("cwd", false, "Working directory."),
		queryParam("tty", false, "true gives the process a terminal."),
		queryParam("rows", false, "With tty: the terminal's first height."),
		queryParam("cols", false, "With tty: the terminal's first width."),
	})
	s.streamRoute("display", s.display, "Connect to the graphical console (WebSocket; binary messages carry RFB, RFC 6143)", nil)
	s.streamRoute("log", s.consoleLog, "Read what the console printed", []*huma.Param{
		queryParam("follow", false, "true goes on with what is printed from now on."),
	})
}

func queryParam(name string, repeated bool, doc string) *huma.Param {
	p := &huma.Param{Name: name, In: "query", Description: doc, Schema: &huma.Schema{Type: huma.TypeString}}
	if repeated {
		explode := true
		p.Explode, p.Schema = &explode, &huma.Schema{Type: huma.TypeArray, Items: p.Schema}
	}
	return p
}

// framing is the description of the streams, for the OpenAPI document.
const framing = "The first byte of every binary message is its channel: 0 stdin (client to server; a message without data is the end " +
	"of input), 1 stdout, 2 stderr (server to client), 3 control: a JSON object {\"resize\":{\"rows\":24,\"cols\":80}} (client to " +
	"server), {\"exit\":0} or {\"error\":{problem}} (server to client, the last message of an exec). When the daemon stops, an exec's " +
	"process is ended, with an error of code unavailable; other streams are closed with status 1001 (RFC 6455), and the guest goes on."

type guestHandler func(w http.ResponseWriter, r *http.Request, tenant, name string) error

// streamRoute registers a handler below a server. The handler returns an error only while it can still be answered as a problem.
func (s *server) streamRoute(verb string, h guestHandler, summary string, params []*huma.Param) {
	path := serverPath + "/" + verb
	names := &kind[api.Server, api.ServerSpec]{singular: "server"}
	s.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		tenant, name := r.PathValue("tenant"), r.PathValue("name")
		end, err := s.lasting.begin()
		if err == nil {
			defer end()
			err = names.checkNames(tenant, name)
		}
		if err == nil {
			err = h(w, r, tenant, name)
		}
		if err != nil {
			s.fail(w, r, err)
		}
	})
	op := &huma.Operation{OperationID: verb + "-server", Tags: []string{"servers"}, Summary: summary, Parameters: params}
	for _, name := range []string{"tenant", "name"} {
		op.Parameters = append(op.Parameters, &huma.Param{Name: name, In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}})
	}
	if verb == "log" {
		op.Responses = map[string]*huma.Response{"200": {Description: "The log.", Content: map[string]*huma.MediaType{
			"text/plain": {Schema: &huma.Schema{Type: huma.TypeString}}}}}
	} else {
		op.Description = framing
		op.Responses = map[string]*huma.Response{"101": {Description: "The stream."}}
	}
	s.describe(http.MethodGet, path, op)
}

// needUpgrade refuses a request that is no WebSocket handshake while that can be said as a problem.
func needUpgrade(r *http.Request) error {
	if r.Header.Get("Upgrade") == "" {
		return api.Errorf(api.CodeMalformed, "this is a stream: connect to it by WebSocket")
	}
	return nil
}

// accept makes the request a WebSocket. Pages of other origins are refused by the library.
func accept(w http.ResponseWriter, r *http.Request) (*websocket.Conn, error) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return nil, err
	}
	c.SetReadLimit(frame.Limit + 1)
	return c, nil
}

func (s *server) console(w http.ResponseWriter, r *http.Request, tenant, name string) error {
	if err := needUpgrade(r); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	resize := make(chan engine.WinSize, 1)
	console, err := s.guests.Console(ctx, callerOf(ctx), tenant, name, resize)
	if err != nil {
		return err
	}
	defer console.Close() //nolint:errcheck // it is detached from; there is nothing left to lose
	c, err := accept(w, r)
	if err != nil {
		return nil // the library has answered
	}
	defer c.CloseNow()                   //nolint:errcheck // after Close it has nothing to say
	detach := func() { console.Close() } //nolint:errcheck // ends the copy below
	defer s.lasting.at(detach)()
	go func() {
		defer cancel()
		readFrames(ctx, c, console, resize)
		detach()
	}()
	_, err = io.CopyBuffer(frameWriter{ctx, c, frame.Stdout}, onlyReader{console}, make([]byte, frame.Limit-1))
	if err != nil && ctx.Err() == nil {
		s.log.Debug("console ended", "server", name, "error", err)
	}
	s.lasting.farewell(c)
	return nil
}

// inputQueue is how many messages of input may wait for a process that does not read, before its client is no longer
// listened to.
const inputQueue = 256

// readFrames hands what the client sends to stdin and resize until the client goes.
func readFrames(ctx context.Context, c *websocket.Conn, stdin io.Writer, resize chan engine.WinSize) {
	queue := make(chan []byte, inputQueue)
	defer close(queue)
	go writeInput(queue, stdin)
	for {
		kind, message, err := c.Read(ctx)
		if err != nil {
			return
		}
		channel, data, err := frame.Decode(message)
		if err != nil || kind != websocket.MessageBinary {
			c.Close(websocket.StatusUnsupportedData, "messages are binary, with a channel byte") //nolint:errcheck // it ends either way
			return
		}
		switch channel {
		case frame.Stdin:
			select {
			case queue <- data:
			case <-ctx.Done():
				return
			}
		case frame.Ctl:
			if control, err := frame.DecodeControl(data); err == nil && control.Resize != nil {
				sendSize(resize, engine.WinSize{Rows: control.Resize.Rows, Cols: control.Resize.Cols})
			}
		}
	}
}

// writeInput writes what is queued; empty data is the end of input. After an error the rest is dropped: the process no
// longer reads, but its output goes on.
func writeInput(queue <-chan []byte, stdin io.Writer) {
	broken := false
	for data := range queue {
		switch {
		case broken:
		case len(data) > 0:
			_, err := stdin.Write(data)
			broken = err != nil
		default:
			if pipe, ok := stdin.(*io.PipeWriter); ok {
				pipe.Close() //nolint:errcheck // of a pipe it never fails
				broken = true
			}
		}
	}
}

// sendSize leaves the newest size in the channel, whether or not the one before was taken.
func sendSize(resize chan engine.WinSize, size engine.WinSize) {
	for {
		select {
		case resize <- size:
			return
		default:
		}
		select {
		case <-resize:
		default:
		}
	}
}

// frameWriter writes each piece as a message of a channel.
type frameWriter struct {
	ctx     context.Context
	conn    *websocket.Conn
	channel frame.Channel
}

func (f frameWriter) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		piece := rest[:min(len(rest), frame.Limit-1)]
		if err := f.conn.Write(f.ctx, websocket.MessageBinary, frame.Encode(f.channel, piece)); err != nil {
			return len(p) - len(rest), err
		}
		rest = rest[len(piece):]
	}
	return len(p), nil
}

// onlyReader hides every other method, so that io.CopyBuffer uses its buffer.
type onlyReader struct{ io.Reader }

func (s *server) exec(w http.ResponseWriter, r *http.Request, tenant, name string) error {
	if err := needUpgrade(r); err != nil {
		return err
	}
	process, err := processOf(r)
	if err != nil {
		return err
	}
	c, err := accept(w, r)
	if err != nil {
		return nil // the library has answered
	}
	defer c.CloseNow() //nolint:errcheck // after Close it has nothing to say
	connected, hangUp := context.WithCancel(r.Context())
	defer hangUp()
	ctx, cancel := context.WithCancel(connected)
	defer cancel()
	defer s.lasting.at(cancel)()
	input, stdin := io.Pipe()
	resize := make(chan engine.WinSize, 1)
	if process.TTY {
		q := r.URL.Query()
		rows, _ := strconv.ParseUint(q.Get("rows"), 10, 16)
		cols, _ := strconv.ParseUint(q.Get("cols"), 10, 16)
		if rows > 0 && cols > 0 {
			resize <- engine.WinSize{Rows: uint16(rows), Cols: uint16(cols)}
		}
	}
	process.Stdin, process.Resize = input, resize
	process.Stdout, process.Stderr = frameWriter{connected, c, frame.Stdout}, frameWriter{connected, c, frame.Stderr}
	go func() {
		readFrames(connected, c, stdin, resize)
		hangUp()                                  // the client is gone, and with it whoever waits for the process
		stdin.CloseWithError(io.ErrUnexpectedEOF) //nolint:errcheck // of a pipe it never fails
	}()
	code, err := s.guests.Exec(ctx, callerOf(ctx), tenant, name, process)
	input.Close() //nolint:errcheck // of a pipe it never fails
	last := frame.Control{Exit: &code}
	if err != nil && s.lasting.over() {
		err = api.Errorf(api.CodeUnavailable, "the daemon stops, and has ended the process")
	}
	if err != nil {
		note(r.Context(), err)
		last = frame.Control{Error: asProblem(err)}
	}
	if err := c.Write(connected, websocket.MessageBinary, frame.EncodeControl(last)); err == nil {
		c.Close(websocket.StatusNormalClosure, "") //nolint:errcheck // the client may be gone
	}
	return nil
}

// processOf reads what to run from the query.
func processOf(r *http.Request) (engine.Process, error) {
	q := r.URL.Query()
	p := engine.Process{Args: q["cmd"], Env: q["env"], Dir: q.Get("cwd"), User: q.Get("user")}
	if len(p.Args) == 0 || p.Args[0] == "" {
		return p, api.Errorf(api.CodeInvalid, "there is no command to run: give cmd, once for each word")
	}
	for _, entry := range p.Env {
		if name, _, ok := strings.Cut(entry, "="); !ok || name == "" {
			return p, api.Errorf(api.CodeInvalid, "env is %q; it must be NAME=value", clip(entry))
		}
	}
	if tty := q.Get("tty"); tty != "" {
		on, err := strconv.ParseBool(tty)
		if err != nil {
			return p, api.Errorf(api.CodeInvalid, "tty is %q; it must be true or false", clip(tty))
		}
		p.TTY = on
	}
	return p, nil
}

func (s *server) display(w http.ResponseWriter, r *http.Request, tenant, name string) error {
	if err := needUpgrade(r); err != nil {
		return err
	}
	guest, err := s.guests.Display(r.Context(), callerOf(r.Context()), tenant, name)
	if err != nil {
		return err
	}
	defer guest.Close() //nolint:errcheck // it was only looked at
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"binary"}, CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return nil // the library has answered
	}
	defer c.CloseNow() //nolint:errcheck // after Close it has nothing to say
	c.SetReadLimit(1 << 20)
	defer s.lasting.at(func() { guest.Close() })() //nolint:errcheck // ends the copy below
	client := websocket.NetConn(r.Context(), c, websocket.MessageBinary)
	go func() {
		io.Copy(guest, client) //nolint:errcheck // either side may end it
		guest.Close()          //nolint:errcheck // ends the copy below
	}()
	io.Copy(client, guest) //nolint:errcheck // either side may end it
	s.lasting.farewell(c)
	return nil
}

func (s *server) consoleLog(w http.ResponseWriter, r *http.Request, tenant, name string) error {
	follow := false
	if text := r.URL.Query().Get("follow"); text != "" {
		on, err := strconv.ParseBool(text)
		if err != nil {
			return api.Errorf(api.CodeInvalid, "follow is %q; it must be true or false", clip(text))
		}
		follow = on
	}
	log, err := s.guests.ConsoleLog(r.Context(), callerOf(r.Context()), tenant, name, follow)
	if err != nil {
		return err
	}
	defer log.Close()                            //nolint:errcheck // it was only read
	defer s.lasting.at(func() { log.Close() })() //nolint:errcheck // ends the copy below
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	out := io.Writer(w)
	if follow {
		controller := http.NewResponseController(w)
		out = flushWriter{w, controller}
		if err := controller.Flush(); err != nil {
			return err
		}
	}
	io.Copy(out, onlyReader{log}) //nolint:errcheck // the client is gone, or the log ended
	if follow && s.lasting.over() {
		panic(http.ErrAbortHandler) // the client sees that it was broken off
	}
	return nil
}

// flushWriter sends every piece at once.
type flushWriter struct {
	w io.Writer
	c *http.ResponseController
}

func (f flushWriter) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err == nil {
		err = f.c.Flush()
	}
	return n, err
}
