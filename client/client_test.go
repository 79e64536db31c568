package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/httpapi/httpapitest"
)

func serve(t *testing.T) (*client.Client, *httpapitest.Fake, *httpapitest.Guests) {
	t.Helper()
	c, fake, guests, _ := daemon(t)
	return c, fake, guests
}

// daemon also returns what stops it, as the daemon does.
func daemon(t *testing.T) (*client.Client, *httpapitest.Fake, *httpapitest.Guests, func(context.Context) error) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	fake := httpapitest.New()
	guests := httpapitest.NewGuests(fake)
	l, err := httpapi.Listen(filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	handler := httpapi.New(httpapi.Options{Control: fake, Guests: guests, Version: "test"})
	server := httpapi.Server(handler, nil)
	server.RegisterOnShutdown(handler.Stop)
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	c, err := client.New(client.Options{Address: l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, fake, guests, func(ctx context.Context) error {
		err := server.Shutdown(ctx)
		handler.Wait(ctx)
		return errors.Join(err, ctx.Err())
	}
}

func create(t *testing.T, c *client.Client, name string) *api.Server {
	t.Helper()
	s, err := c.Servers("default").Create(t.Context(), client.Create[api.ServerSpec]{
		Name: name, Labels: map[string]string{"a": "b"}, Spec: api.ServerSpec{Model: api.ModelOS, Image: "micro", Memory: api.Memory{Limit: api.GiB}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestResources(t *testing.T) {
	c, fake, _ := serve(t)
	ctx := t.Context()
	servers := c.Servers("default")
	s := create(t, c, "web")
	if fake.LastCaller().Key == "" {
		t.Error("a create has no key")
	}
	got, err := servers.Get(ctx, "web")
	if err != nil || got.ID != s.ID || got.Spec.Memory.Limit != api.GiB {
		t.Fatalf("%+v %v", got, err)
	}
	patched, err := servers.Patch(ctx, "web", map[string]any{"spec": map[string]any{"cpu": map[string]any{"count": 2}}}, got.Revision)
	if err != nil || patched.Spec.CPU.Count != 2 {
		t.Fatalf("%+v %v", patched, err)
	}
	if _, err := servers.Patch(ctx, "web", map[string]any{}, got.Revision); !errors.Is(err, &api.Problem{Code: api.CodeConflict}) {
		t.Errorf("stale patch: %v", err)
	}
	replaced, err := servers.Replace(ctx, "web", client.Update[api.ServerSpec]{Name: "www", Spec: patched.Spec, Revision: patched.Revision})
	if err != nil || replaced.Name != "www" || replaced.Labels != nil {
		t.Fatalf("%+v %v", replaced, err)
	}
	stopped, err := c.Power(ctx, "default", "www", api.PowerStop, false)
	if err != nil || stopped.Spec.State != api.StateStopped {
		t.Fatalf("%+v %v", stopped, err)
	}
	if _, err := servers.Delete(ctx, "www", client.DeleteOptions{Revision: stopped.Revision}); err != nil {
		t.Fatal(err)
	}
	_, err = servers.Get(ctx, "www")
	var p *api.Problem
	if !errors.As(err, &p) || p.Code != api.CodeNotFound || !client.IsNotFound(err) {
		t.Errorf("%v", err)
	}
	if _, err := servers.Get(ctx, "../../hosts"); !client.IsNotFound(err) {
		t.Errorf("a path in a name: %v", err)
	}
	if v, err := c.Version(ctx); err != nil || v.Version != "test" {
		t.Errorf("%+v %v", v, err)
	}
	create(t, c, "u")
	if u, err := c.Usage(ctx, "default"); err != nil || len(u) != 1 || u[0].CPU != 250 {
		t.Errorf("%+v %v", u, err)
	}
}

func TestListGoesThroughPages(t *testing.T) {
	c, _, _ := serve(t)
	for i := range 7 {
		create(t, c, fmt.Sprint("w", i))
	}
	var names []string
	for s, err := range c.Servers("default").List(t.Context(), client.ListOptions{Limit: 3, Labels: map[string]string{"a": "b"}}) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, s.Name)
	}
	if got := strings.Join(names, " "); got != "w0 w1 w2 w3 w4 w5 w6" {
		t.Error(got)
	}
	for _, err := range c.Servers("default").List(t.Context(), client.ListOptions{Filter: map[string]string{"nope": "x"}}) {
		if api.CodeOf(err) != api.CodeUnknownField {
			t.Errorf("%v", err)
		}
	}
}

// A watch that breaks goes on where it ended.
func TestWatchResumes(t *testing.T) {
	c, fake, _ := serve(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	create(t, c, "first")
	var last int64
	created := make(chan struct{})
	for change, err := range c.Servers("default").Watch(ctx, client.ListOptions{}, 0) {
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case change.Object.Name == "first" && last == 0:
			fake.BreakServerWatches()
			last = change.Revision
			go func() {
				defer close(created)
				<-fake.Watched // the first
				<-fake.Watched // the resumed one
				create(t, c, "second")
			}()
		case change.Object.Name == "second":
			if froms := fake.WatchedFrom(); froms[0] != 0 || froms[1] < last {
				t.Errorf("watched from %v, last was %d", froms, last)
			}
			<-created
			return
		}
	}
	t.Error("the watch ended")
}

func TestExec(t *testing.T) {
	c, _, _ := serve(t)
	create(t, c, "web")
	big := strings.Repeat("0123456789abcdef", 20_000)
	for name, e := range map[string]struct {
		exec        client.Exec
		code        int
		out, errOut string
		problem     api.Code
	}{
		"output":  {exec: client.Exec{Args: []string{"echo", "a  b", "c"}}, out: "a  b c\n"},
		"errors":  {exec: client.Exec{Args: []string{"err", "x"}}, errOut: "x\n"},
		"code":    {exec: client.Exec{Args: []string{"exit"}}, code: 7},
		"stdin":   {exec: client.Exec{Args: []string{"cat"}, Stdin: strings.NewReader(big)}, out: big},
		"size":    {exec: client.Exec{Args: []string{"size"}, TTY: true, Size: client.WinSize{Rows: 24, Cols: 80}}, out: "24x80\n"},
		"env":     {exec: client.Exec{Args: []string{"env"}, Env: []string{"A=1", "B=2"}, User: "u:g", Dir: "/srv"}, out: "A=1,B=2 user=u:g dir=/srv tty=false\n"},
		"unknown": {exec: client.Exec{Args: []string{"nope"}}, problem: api.CodeInvalid},
		"nothing": {exec: client.Exec{}, problem: api.CodeInvalid},
		"a name":  {exec: client.Exec{Args: []string{"env"}, Env: []string{"A"}}, problem: api.CodeInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			e.exec.Stdout, e.exec.Stderr = &out, &errOut
			code, err := c.Exec(t.Context(), "default", "web", e.exec)
			if e.problem != "" {
				if api.CodeOf(err) != e.problem {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil || code != e.code || out.String() != e.out || errOut.String() != e.errOut {
				t.Errorf("%d %v %.100q %q", code, err, out.String(), errOut.String())
			}
		})
	}
	if _, err := c.Exec(t.Context(), "default", "nope", client.Exec{Args: []string{"echo"}}); !client.IsNotFound(err) {
		t.Errorf("no server: %v", err)
	}
}

func TestConsole(t *testing.T) {
	c, fake, guests := serve(t)
	create(t, c, "web")
	console, err := c.Console(t.Context(), "default", "web")
	if err != nil {
		t.Fatal(err)
	}
	expect := func(want string) {
		t.Helper()
		buf := make([]byte, len(want))
		if _, err := io.ReadFull(console, buf); err != nil || string(buf) != want {
			t.Fatalf("%q %v", buf, err)
		}
	}
	expect("web login: ")
	if _, err := io.WriteString(console, "root\n"); err != nil {
		t.Fatal(err)
	}
	expect("ROOT\n")
	if err := console.Resize(client.WinSize{Rows: 50, Cols: 132}); err != nil {
		t.Fatal(err)
	}
	<-guests.Resized()
	if s := guests.Sizes(); s[0].Rows != 50 || s[0].Cols != 132 {
		t.Errorf("%v", s)
	}
	if err := console.Close(); err != nil {
		t.Error(err)
	}
	fake.SetServer("default", "web", func(s *api.Server) { s.Status.Phase = api.PhaseStopped })
	if _, err := c.Console(t.Context(), "default", "web"); api.CodeOf(err) != api.CodeWrongState {
		t.Errorf("console of a stopped server: %v", err)
	}
}

func TestDisplayAndLog(t *testing.T) {
	c, _, guests := serve(t)
	create(t, c, "web")
	display, err := c.Display(t.Context(), "default", "web")
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 12)
	if _, err := io.ReadFull(display, buf); err != nil || string(buf) != "RFB 003.008\n" {
		t.Fatalf("%q %v", buf, err)
	}
	display.Close()
	log, err := c.Log(t.Context(), "default", "web", true)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	for _, want := range []string{"booted\n", "more\n"} {
		buf := make([]byte, len(want))
		if _, err := io.ReadFull(log, buf); err != nil || string(buf) != want {
			t.Fatalf("%q %v", buf, err)
		}
		if want == "booted\n" {
			guests.More <- "more\n"
		}
	}
}

func TestImport(t *testing.T) {
	c, _, _ := serve(t)
	data := bytes.Repeat([]byte("x"), 3<<20)
	var sent int64
	job, err := c.Import(t.Context(), "default", client.Import{
		Name: "tree", Body: bytes.NewReader(data), Size: int64(len(data)), Labels: map[string]string{"k": "v"}, Progress: func(n int64) { sent = n },
	})
	if err != nil || job.Status.Phase != api.JobDone || sent != int64(len(data)) {
		t.Fatalf("%+v %v, sent %d", job, err, sent)
	}
	if job, err := c.Import(t.Context(), "default", client.Import{Name: "bad", Body: strings.NewReader("x")}); err != nil || job.Status.Phase != api.JobFailed {
		t.Errorf("%+v %v", job, err)
	}
	if job, err := c.Import(t.Context(), "default", client.Import{Name: "reg", Registry: "localhost/x:1"}); err != nil || job.Spec.Source != "localhost/x:1" {
		t.Errorf("%+v %v", job, err)
	}
	if job, err := c.Build(t.Context(), "default", "deb", "debian-12", false); err != nil || job.Spec.Object != "deb" {
		t.Errorf("%+v %v", job, err)
	}
}

func TestUnreachable(t *testing.T) {
	c, err := client.New(client.Options{Address: filepath.Join(t.TempDir(), "none.sock")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Version(t.Context())
	var u *client.Unreachable
	if !errors.As(err, &u) || !strings.Contains(err.Error(), "does not run") || !strings.Contains(u.Hint(), "systemctl start croft") {
		t.Errorf("%v", err)
	}
	if _, err := c.Console(t.Context(), "default", "web"); !errors.As(err, &u) {
		t.Errorf("%v", err)
	}
}

// A client that goes away ends the process, even one that does not read what it was sent.
func TestExecEndsWithItsClient(t *testing.T) {
	c, _, guests := serve(t)
	create(t, c, "web")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-guests.Started
		cancel()
	}()
	_, err := c.Exec(ctx, "default", "web", client.Exec{Args: []string{"sleep"}, Stdin: strings.NewReader("unread"), Stdout: io.Discard})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	<-guests.Ended
}

// A daemon that stops ends what lasts, and says so.
func TestStop(t *testing.T) {
	c, _, guests, stop := daemon(t)
	create(t, c, "web")
	console, err := c.Console(t.Context(), "default", "web")
	if err != nil {
		t.Fatal(err)
	}
	log, err := c.Log(t.Context(), "default", "web", true)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	display, err := c.Display(t.Context(), "default", "web")
	if err != nil {
		t.Fatal(err)
	}
	type end struct {
		of  string
		err error
	}
	watching, ends := make(chan struct{}), make(chan end)
	watched, unwatch := context.WithCancel(t.Context())
	defer unwatch()
	go func() {
		begun := sync.OnceFunc(func() { close(watching) })
		for range c.Servers("default").Watch(watched, client.ListOptions{}, 0) {
			begun()
		}
	}()
	for name, run := range map[string]func() error{
		"exec": func() error {
			_, err := c.Exec(t.Context(), "default", "web", client.Exec{Args: []string{"sleep"}})
			return err
		},
		"console": func() error { _, err := io.ReadAll(console); return err },
		"log":     func() error { _, err := io.ReadAll(log); return err },
		"display": func() error { _, err := io.ReadAll(display); return err },
	} {
		go func() { ends <- end{name, run()} }()
	}
	<-guests.Started
	<-watching
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := stop(ctx); err != nil {
		t.Errorf("it waited for clients: %v", err)
	}
	<-guests.Ended
	got := map[string]error{}
	for range 4 {
		e := <-ends
		got[e.of] = e.err
	}
	for name, said := range map[string]string{"exec": "the daemon stops, and has ended the process", "console": "the daemon stops; the server goes on"} {
		if err := got[name]; api.CodeOf(err) != api.CodeUnavailable || err.Error() != said {
			t.Errorf("%s ended with %v", name, err)
		}
	}
	if !errors.Is(got["log"], io.ErrUnexpectedEOF) || got["display"] != nil {
		t.Errorf("the log ended with %v, the display with %v", got["log"], got["display"])
	}
}

// A daemon that does not remember where a watch ended lets it begin anew.
func TestWatchBeginsAnewWhenForgotten(t *testing.T) {
	c, fake, _ := serve(t)
	create(t, c, "web")
	puts := 0
	for change, err := range c.Servers("default").Watch(t.Context(), client.ListOptions{}, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if change.Object.Name == "web" {
			puts++
		}
		if puts == 2 {
			break
		}
		fake.Forget()
		fake.BreakServerWatches()
	}
	if froms := fake.WatchedFrom(); len(froms) < 3 || froms[1] == 0 || froms[2] != 0 {
		t.Errorf("watched from %v", froms)
	}
	for _, err := range c.Servers("default").Watch(t.Context(), client.ListOptions{}, 1) {
		if api.CodeOf(err) != api.CodeExpired {
			t.Errorf("%v", err)
		}
	}
}
