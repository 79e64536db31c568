package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sort"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/agent"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/keeper"
)

// guests reaches into the running guests of this host, for those who may see the server.
type guests struct {
	control httpapi.Control
	agent   *agent.Agent
	keeper  *keeper.Client
	dir     string // StateDir/servers
}

var _ httpapi.Guests = (*guests)(nil)

// running finds the running guest of a server.
func (g *guests) running(ctx context.Context, who httpapi.Caller, tenant, name string) (*api.Server, engine.Guest, error) {
	s, err := g.control.Servers().Get(ctx, who, tenant, name)
	if err != nil {
		return nil, nil, err
	}
	guest, _ := g.agent.Guest(s.ID)
	if guest == nil {
		return nil, nil, api.Errorf(api.CodeWrongState, "server %s is %s: start it first", name, s.Status.Phase)
	}
	return s, guest, nil
}

// Console attaches to the server's console.
func (g *guests) Console(ctx context.Context, who httpapi.Caller, tenant, name string, resize <-chan engine.WinSize) (io.ReadWriteCloser, error) {
	s, _, err := g.running(ctx, who, tenant, name)
	if err != nil {
		return nil, err
	}
	stream, err := g.keeper.Attach(ctx, s.ID, sizes(ctx, resize))
	switch {
	case errors.Is(err, keeper.ErrNoConsole):
		return nil, api.Errorf(api.CodeWrongState, "the console of server %s was lost with the keeper that held it: restart the server to have one again", name)
	case errors.Is(err, keeper.ErrEnded), errors.Is(err, keeper.ErrUnknown):
		return nil, api.Errorf(api.CodeWrongState, "server %s has just ended", name)
	case err != nil:
		return nil, fmt.Errorf("console of %s: %w", name, err)
	}
	return stream, nil
}

// sizes passes window sizes on in the keeper's type.
func sizes(ctx context.Context, in <-chan engine.WinSize) <-chan keeper.WinSize {
	if in == nil {
		return nil
	}
	out := make(chan keeper.WinSize)
	go func() {
		defer close(out)
		for {
			select {
			case size, more := <-in:
				if !more {
					return
				}
				select {
				case out <- keeper.WinSize{Rows: size.Rows, Cols: size.Cols}:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// ConsoleLog reads what the console has printed, the rotated part first; with follow it goes on until ctx ends.
func (g *guests) ConsoleLog(ctx context.Context, who httpapi.Caller, tenant, name string, follow bool) (io.ReadCloser, error) {
	s, err := g.control.Servers().Get(ctx, who, tenant, name)
	if err != nil {
		return nil, err
	}
	path := engine.ConsoleLog(&engine.Machine{Dir: filepath.Join(g.dir, s.ID)})
	var parts []io.Reader
	var files files
	for _, p := range []string{path + ".1", path} {
		f, err := os.Open(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			files.Close()
			return nil, err
		}
		files = append(files, f)
		parts = append(parts, f)
	}
	if follow {
		live, err := g.Console(ctx, who, tenant, name, nil)
		if err != nil {
			files.Close()
			return nil, err
		}
		// The attached console begins with the last output, which the log ends with: it alone is shown.
		files.Close()
		return live, nil
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(parts...), files}, nil
}

type files []*os.File

func (f files) Close() error {
	var errs []error
	for _, file := range f {
		errs = append(errs, file.Close())
	}
	return errors.Join(errs...)
}

// Exec runs a process in the guest.
func (g *guests) Exec(ctx context.Context, who httpapi.Caller, tenant, name string, p engine.Process) (int, error) {
	s, guest, err := g.running(ctx, who, tenant, name)
	if err != nil {
		return 0, err
	}
	e, ok := guest.(engine.Execer)
	if !ok {
		return 0, api.Errorf(api.CodeUnsupported, "engine %s can't run processes in its guests: use the console, or ssh", s.Status.Engine)
	}
	code, err := e.Exec(ctx, p)
	if errors.Is(err, engine.ErrProcess) {
		err = api.Errorf(api.CodeInvalid, "%v", err)
	}
	return code, err
}

// Display connects to the guest's VNC server.
func (g *guests) Display(ctx context.Context, who httpapi.Caller, tenant, name string) (net.Conn, error) {
	s, guest, err := g.running(ctx, who, tenant, name)
	if err != nil {
		return nil, err
	}
	d, ok := guest.(engine.Displayer)
	if !ok {
		return nil, api.Errorf(api.CodeUnsupported, "servers of engine %s have no graphical console: use the console", s.Status.Engine)
	}
	return d.Display(ctx)
}

// Usage of the tenant's servers on this host.
func (g *guests) Usage(ctx context.Context, who httpapi.Caller, tenant string) ([]api.Usage, error) {
	if tenant == "" && !who.Operator {
		return nil, api.Errorf(api.CodeForbidden, "only the operator sees every tenant's usage")
	}
	if tenant != "" {
		if _, err := g.control.Tenants().Get(ctx, who, "", tenant); err != nil {
			return nil, err
		}
	}
	out := []api.Usage{}
	for _, u := range g.agent.Usage(ctx) {
		if tenant == "" || u.Tenant == tenant {
			out = append(out, u)
		}
	}
	sort.Slice(out, func(i, j int) bool {
		return out[i].Tenant < out[j].Tenant || out[i].Tenant == out[j].Tenant && out[i].Server < out[j].Server
	})
	return out, nil
}
