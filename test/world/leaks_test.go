package world

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/client"
)

// Each kind of leak is planted, and must be seen, and nothing else; taken away, there must be nothing.
func TestLeaksAreSeen(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes namespaces, control groups and devices")
	}
	dir, err := os.MkdirTemp("/var/tmp", "croft-l")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &World{StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), NetNS: "/run/netns/" + filepath.Base(dir)}
	ns := NewNetNS(t, filepath.Base(dir))
	for _, d := range []string{"state/servers", "state/volumes/.templates", "state/images/digest", "run/s", "run/netns", "run/oci", "run/ports", "run/keeper/run", "run/keeper/exits"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	file := func(path string) func() error {
		return func() error {
			path := filepath.Join(dir, path)
			return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o600))
		}
	}
	gone := func(path string) func() error {
		return func() error { return os.RemoveAll(filepath.Join(dir, path)) }
	}
	h, err := netlink.NewHandleAt(ns)
	must(t, err)
	defer h.Close()
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "leg"}}
	rules := func(change func(*nftables.Conn, *nftables.Table)) func() error {
		return func() error {
			c, err := nftables.New(nftables.WithNetNSFd(int(ns)))
			if err != nil {
				return err
			}
			change(c, &nftables.Table{Name: "croft-abc", Family: nftables.TableFamilyINet})
			return c.Flush()
		}
	}
	process := exec.Command("cat")
	process.Dir = w.StateDir
	input, err := process.StdinPipe()
	must(t, err)
	mounted, group, claim := filepath.Join(dir, "state", "mnt"), "", filepath.Join(idDir, "0")
	for _, v := range []string{"/sys/fs/cgroup/pids/", "/sys/fs/cgroup/"} {
		if _, err := os.Stat(v); err == nil {
			group = v + w.Group()
			break
		}
	}
	loop := ""
	ledgers := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprint(rw, `{"items": [{"name": "one", "status": {"allocated": {"servers": 1}, "used": {"servers": 0}}}]}`)
	}))
	defer ledgers.Close()
	if w.Client, err = client.New(client.Options{Address: ledgers.URL}); err != nil {
		t.Fatal(err)
	}

	for what, c := range map[string]struct {
		seen        string
		plant, undo func() error
	}{
		"process": {"process ", process.Start, func() error { return errors.Join(input.Close(), process.Wait()) }},
		"mount": {"mount: ", func() error {
			return errors.Join(os.MkdirAll(mounted, 0o755), unix.Mount("leak", mounted, "tmpfs", 0, ""))
		}, func() error { return unix.Unmount(mounted, 0) }},
		"device": {"network device leg", func() error { return h.LinkAdd(link) }, func() error { return h.LinkDel(link) }},
		"rules": {
			"table of rules croft-abc",
			rules(func(c *nftables.Conn, t *nftables.Table) { c.AddTable(t) }),
			rules(func(c *nftables.Conn, t *nftables.Table) { c.DelTable(t) }),
		},
		"group": {"control group ", func() error { return os.MkdirAll(filepath.Join(group, "server"), 0o755) },
			func() error { return errors.Join(os.Remove(filepath.Join(group, "server")), os.Remove(group)) }},
		"loop": {"loop device of ", func() error {
			image := filepath.Join(w.StateDir, "image")
			if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
				return err
			}
			out, err := exec.Command("losetup", "--find", "--show", image).Output()
			loop = strings.TrimSpace(string(out))
			return err
		}, func() error { return exec.Command("losetup", "--detach", loop).Run() }},
		"ids": {"ids from 0 of ", func() error {
			return errors.Join(os.MkdirAll(idDir, 0o700), os.Symlink(filepath.Join(w.StateDir, "servers", "gone"), claim))
		}, func() error { return os.Remove(claim) }},
		"ledger":                {"promises of host one", func() error { w.daemon = &exec.Cmd{}; return nil }, func() error { w.daemon = nil; return nil }},
		"server":                {"servers/id", file("state/servers/id/machine.json"), gone("state/servers/id")},
		"volume":                {"volumes/id", file("state/volumes/id/data"), gone("state/volumes/id")},
		"volume in the making":  {"volumes/.making-id", file("state/volumes/.making-id/data"), gone("state/volumes/.making-id")},
		"volume being deleted":  {"volumes/.deleting-id", file("state/volumes/.deleting-id/data"), gone("state/volumes/.deleting-id")},
		"image in the making":   {"images/.making-1", file("state/images/.making-1/disk"), gone("state/images/.making-1")},
		"exec":                  {"run/s/id", file("run/s/id/oci/exec-1.json"), gone("run/s/id")},
		"namespace":             {"netns/n-id", file("run/netns/n-id"), gone("run/netns/n-id")},
		"namespace, made":       {"netns/.n-id", file("run/netns/.n-id"), gone("run/netns/.n-id")},
		"port":                  {"run/ports/id", file("run/ports/id/port"), gone("run/ports/id")},
		"runtime":               {"run/oci/id", file("run/oci/id/state.json"), gone("run/oci/id")},
		"probe":                 {"run/uml-probe", file("run/uml-probe/log"), gone("run/uml-probe")},
		"forwarding":            {"run/uplink.json", file("run/uplink.json"), gone("run/uplink.json")},
		"guest of the keeper's": {"keeper/run/id.json", file("run/keeper/run/id.json"), gone("run/keeper/run/id.json")},
		"exit, kept":            {"keeper/exits/id.json", file("run/keeper/exits/id.json"), gone("run/keeper/exits/id.json")},
	} {
		t.Run(what, func(t *testing.T) {
			must(t, c.plant())
			seen := w.Leaks()
			must(t, c.undo())
			if len(seen) != 1 || !strings.Contains(seen[0], c.seen) {
				t.Errorf("saw %q", seen)
			}
			if left := w.Leaks(); len(left) > 0 {
				t.Errorf("saw %q, where there is nothing", left)
			}
		})
	}
}
