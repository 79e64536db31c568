package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/test/world"
)

// groups are the control groups of a server, of every hierarchy, with those below.
func groups(w *world.World, id string) []string {
	var found []string
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, "/"+w.Group()+"/"+id) {
			found = append(found, path)
		}
		return nil
	})
	return found
}

// groupFile reads a file of the server's own groups; v1 and v2 have different ones.
func groupFile(t testing.TB, w *world.World, id, file string) []string {
	t.Helper()
	var out []string
	for _, dir := range groups(w, id) {
		if filepath.Base(dir) != id {
			continue
		}
		if data, err := os.ReadFile(filepath.Join(dir, file)); err == nil {
			out = append(out, strings.TrimSpace(string(data)))
		}
	}
	return out
}

// pids are the processes of a server on the host, the first one first.
func pids(t testing.TB, w *world.World, id string) []int {
	t.Helper()
	var out []int
	for _, dir := range groups(w, id) {
		if !strings.Contains(dir, "/pids/") && !strings.Contains(dir, "/sys/fs/cgroup/"+w.Group()) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue
		}
		for _, line := range strings.Fields(string(data)) {
			pid, err := strconv.Atoi(line)
			if err != nil {
				t.Fatalf("%s holds %q", dir, line)
			}
			out = append(out, pid)
		}
	}
	if len(out) == 0 {
		t.Fatalf("server %s has no process on the host", id)
	}
	return out
}

// kill ends processes, as a crash would.
func kill(t testing.TB, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
			t.Fatalf("kill %d: %v", pid, err)
		}
	}
}
