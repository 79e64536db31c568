package uml_test

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/engine/enginetest"
)

func within(t testing.TB, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

func TestContract(t *testing.T) {
	w := newWorld(t)
	enginetest.Run(t, enginetest.Harness{
		New:     w.engine,
		Machine: w.machine,
		Ready: func(ctx context.Context, t testing.TB, m *engine.Machine) {
			w.shell(ctx, t, m).wait(ready)
		},
		PowerOff: func(ctx context.Context, t testing.TB, m *engine.Machine) {
			s := w.shell(ctx, t, m)
			if _, err := io.WriteString(s.conn, "poweroff -f\n"); err != nil {
				t.Fatal(err)
			}
		},
		Console: func(ctx context.Context, m *engine.Machine) (io.ReadWriteCloser, error) {
			return w.keeper.Attach(ctx, m.ID, nil)
		},
		Bad: []enginetest.BadSpec{
			{Name: "two CPUs", Change: func(s *api.ServerSpec) { s.CPU.Count = 2 }, Pointer: "/spec/cpu/count"},
			{Name: "no memory", Change: func(s *api.ServerSpec) { s.Memory.Limit = api.MiB }, Pointer: "/spec/memory/limit"},
			{Name: "huge pages", Change: func(s *api.ServerSpec) { s.Memory.HugePages = true }, Pointer: "/spec/memory/hugePages"},
			{Name: "CD-ROM", Change: func(s *api.ServerSpec) { s.CDROM = "debian" }, Pointer: "/spec/cdrom"},
			{Name: "application", Change: func(s *api.ServerSpec) { s.App = &api.App{} }, Pointer: "/spec/app"},
			{Name: "device", Change: grant(api.Grant{Kind: api.GrantDevice, Source: "/dev/null"}), Pointer: "/spec/grants/0/kind"},
			{Name: "relative directory", Change: grant(api.Grant{Kind: api.GrantDirectory, Source: "srv"}), Pointer: "/spec/grants/0/source"},
			{Name: "directory with an option in it", Change: grant(api.Grant{Kind: api.GrantDirectory, Source: "/srv ubd2=/etc/passwd"}), Pointer: "/spec/grants/0/source"},
			{Name: "target with a comma", Change: grant(api.Grant{Kind: api.GrantDirectory, Source: "/srv", Target: "/a,rw"}), Pointer: "/spec/grants/0/target"},
			{Name: "whole host", Change: grant(api.Grant{Kind: api.GrantDirectory, Source: "/"}), Pointer: "/spec/grants/0/source"},
		},
		Leaks: func(t testing.TB, m *engine.Machine) []string { return processesOf(m.IDs.Base) },
	})
}

func grant(g api.Grant) func(*api.ServerSpec) {
	return func(s *api.ServerSpec) { s.Grants = []api.Grant{g} }
}

// processesOf names the processes of a user: a guest's user has no others.
func processesOf(uid uint32) (found []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*/status")
	for _, path := range dirs {
		status, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(status), "\nUid:\t"+strconv.Itoa(int(uid))+"\t") && !strings.Contains(string(status), "State:\tZ") {
			found = append(found, "process "+path+" of user "+strconv.Itoa(int(uid)))
		}
	}
	return found
}
