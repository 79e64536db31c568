package cli_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.yaml.in/yaml/v3"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/cli"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/httpapi/httpapitest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"croft": func() { os.Exit(cli.Run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
	})
}

// serve serves a fake control plane on a unix socket.
func serve(t *testing.T) (socket string, fake *httpapitest.Fake, guests *httpapitest.Guests) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	fake = httpapitest.New()
	guests = httpapitest.NewGuests(fake)
	fake.Refuse = func(s *api.ServerSpec) error {
		if s.Memory.Limit > 100*api.GiB {
			p := api.Errorf(api.CodeCapacity, "no host has room for the server")
			p.Short = []api.Shortage{{Resource: "memory", Where: "host-1", Asked: s.Memory.Limit.String(), Free: "15GiB", Short: (s.Memory.Limit - 15*api.GiB).String()}}
			return p
		}
		return nil
	}
	l, err := httpapi.Listen(filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := httpapi.Server(httpapi.New(httpapi.Options{
		Control: fake, Guests: guests, Version: "test",
		Debug: func(_ context.Context, w io.Writer) error {
			_, err := io.WriteString(w, "bundle")
			return err
		},
	}), nil)
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return l.Addr().String(), fake, guests
}

// Each script runs the real program against a server of its own. Besides the usual commands it knows
// "phase SERVER PHASE [MESSAGE]", which sets what the host reports, and "documents KIND NAME…", which takes standard output
// for JSON or YAML documents of these resources and nothing else.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		socket, fake, _ := serve(t)
		testscript.Run(t, testscript.Params{
			Files:               []string{file},
			RequireExplicitExec: true,
			Setup: func(e *testscript.Env) error {
				e.Setenv("CROFT_SOCKET", socket)
				e.Setenv("NO_COLOR", "1")
				e.Setenv("HOME", e.WorkDir)
				return nil
			},
			Cmds: map[string]func(*testscript.TestScript, bool, []string){
				"phase": func(ts *testscript.TestScript, _ bool, args []string) {
					fake.SetServer("default", args[0], func(s *api.Server) {
						s.Status.Phase, s.Status.Observed = api.Phase(args[1]), s.Revision
						if len(args) > 2 {
							s.Status.Message = args[2]
						}
					})
				},
				"documents": documents,
				"hold":      func(*testscript.TestScript, bool, []string) { fake.Hold = true },
			},
		})
	}
}

func documents(ts *testscript.TestScript, _ bool, want []string) {
	text := ts.ReadFile("stdout")
	decode := yaml.NewDecoder(strings.NewReader(text)).Decode
	if strings.HasPrefix(text, "{") {
		decode = json.NewDecoder(strings.NewReader(text)).Decode
	}
	var got []string
	for {
		var doc struct{ Kind, Name string }
		err := decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		ts.Check(err)
		got = append(got, doc.Kind+" "+doc.Name)
	}
	if !slices.Equal(got, want) {
		ts.Fatalf("got %q, want %q", got, want)
	}
}

// A shell starts the program for every completion and every line of a script.
func TestStartsFast(t *testing.T) {
	began := time.Now()
	const rounds = 20
	for range rounds {
		if code := cli.Run(t.Context(), []string{"server", "create", "--help"}, nil, io.Discard, io.Discard); code != 0 {
			t.Fatal(code)
		}
	}
	if took := time.Since(began) / rounds; took > 10*time.Millisecond {
		t.Errorf("building and running the root command takes %s", took)
	} else {
		t.Log(fmt.Sprint(took))
	}
}
