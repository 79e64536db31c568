package world

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
)

// Leaks lists what is left of the host besides its state: processes, mounts, namespaces, devices, rules, control groups,
// loop devices, ids, files of servers, and what the daemon, where it runs, still promises. After the last server was
// deleted and the keeper has ended there must be nothing.
func (w *World) Leaks() []string {
	var left []string
	left = append(left, w.processes()...)
	left = append(left, w.mounts()...)
	left = append(left, w.links()...)
	left = append(left, w.tables()...)
	left = append(left, w.groups()...)
	left = append(left, w.loops()...)
	left = append(left, w.ids()...)
	left = append(left, w.files()...)
	left = append(left, w.promises()...)
	return left
}

// NoTrace waits until no server has left anything on the host, but for the daemon and the keeper where they run.
func (w *World) NoTrace(t testing.TB) {
	t.Helper()
	var left []string
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); <-tick.C {
		left = left[:0]
		for _, l := range w.Leaks() {
			own := strings.HasPrefix(l, "process ") && (strings.Contains(l, " daemon --state-dir ") || strings.Contains(l, " keeper --dir "))
			if !own || !w.running() {
				left = append(left, l)
			}
		}
		if len(left) == 0 {
			return
		}
	}
	for _, l := range left {
		t.Errorf("left on the host: %s", l)
	}
}

// running tells whether the daemon is meant to run.
func (w *World) running() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.daemon != nil
}

// processes whose command line, root or working directory names the host's directories.
func (w *World) processes() (left []string) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if e.Name()[0] < '0' || e.Name()[0] > '9' {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		text := strings.ReplaceAll(string(cmdline), "\x00", " ")
		if e.Name() == fmt.Sprint(os.Getpid()) {
			continue
		}
		for _, link := range []string{"root", "cwd"} {
			target, _ := os.Readlink(filepath.Join(dir, link))
			text += " " + target
		}
		if strings.Contains(text, w.StateDir) || strings.Contains(text, w.RunDir) {
			left = append(left, fmt.Sprintf("process %s: %s", e.Name(), text))
		}
	}
	return left
}

func (w *World) mounts() (left []string) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if strings.Contains(lines.Text(), w.StateDir) || strings.Contains(lines.Text(), w.RunDir+"/") {
			left = append(left, "mount: "+lines.Text())
		}
	}
	return left
}

// links in the host's namespace besides its loopback and uplink.
func (w *World) links() (left []string) {
	ns, err := netns.GetFromPath(w.NetNS)
	if err != nil {
		return []string{err.Error()}
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return []string{err.Error()}
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return []string{err.Error()}
	}
	for _, l := range links {
		switch name := l.Attrs().Name; name {
		case "lo", "up0", "sit0", "tunl0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6gre0":
		default:
			left = append(left, "network device "+name)
		}
	}
	return left
}

// tables of rules in the host's namespace.
func (w *World) tables() (left []string) {
	ns, err := netns.GetFromPath(w.NetNS)
	if err != nil {
		return []string{err.Error()}
	}
	defer ns.Close()
	c, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		return []string{err.Error()}
	}
	tables, err := c.ListTables()
	if err != nil {
		return []string{err.Error()}
	}
	for _, t := range tables {
		if strings.HasPrefix(t.Name, "croft-") {
			left = append(left, "table of rules "+t.Name)
		}
	}
	return left
}

// groups of servers; the daemon's parent group may stay.
func (w *World) groups() (left []string) {
	parent := w.Group()
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		rel, _ := filepath.Rel("/sys/fs/cgroup", path)
		parts := strings.Split(rel, string(filepath.Separator))
		for i, p := range parts {
			if p == parent+"-probe" || p == parent && i < len(parts)-1 {
				left = append(left, "control group "+path)
				return fs.SkipDir
			}
		}
		if len(parts) > 4 {
			return fs.SkipDir
		}
		return nil
	})
	return left
}

func (w *World) loops() (left []string) {
	entries, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, e := range entries {
		if data, _ := os.ReadFile(e); strings.Contains(string(data), w.StateDir) {
			left = append(left, "loop device of "+strings.TrimSpace(string(data)))
		}
	}
	return left
}

// idDir is where daemons of the machine claim ids.
const idDir = "/var/lib/croft-ids"

// ids that are claimed for servers.
func (w *World) ids() (left []string) {
	claims, _ := os.ReadDir(idDir)
	for _, c := range claims {
		if server, _ := os.Readlink(filepath.Join(idDir, c.Name())); strings.HasPrefix(server, w.StateDir+"/") {
			left = append(left, "ids from "+c.Name()+" of "+server)
		}
	}
	return left
}

// stays is what may be in a directory that has no servers.
var stays = map[string]string{
	"state/servers":    "",
	"state/volumes":    ".templates",
	"run":              "croft.sock engines.json keeper net.lock netns oci ports s",
	"run/s":            "",
	"run/netns":        "",
	"run/oci":          "",
	"run/ports":        "",
	"run/keeper/run":   "",
	"run/keeper/exits": "",
}

// files of servers in the directories, and images in the making.
func (w *World) files() (left []string) {
	for dir, may := range stays {
		where, below, _ := strings.Cut(dir, "/")
		dir = filepath.Join(map[string]string{"state": w.StateDir, "run": w.RunDir}[where], below)
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if !slices.Contains(strings.Fields(may), e.Name()) {
				left = append(left, "file "+filepath.Join(dir, e.Name()))
			}
		}
	}
	making, _ := filepath.Glob(filepath.Join(w.StateDir, "images", ".*"))
	for _, path := range making {
		left = append(left, "file "+path)
	}
	return left
}

// promises that the ledgers of hosts and tenants hold, as a daemon that runs tells them.
func (w *World) promises() (left []string) {
	if !w.running() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	for h, err := range w.Hosts().List(ctx, client.ListOptions{}) {
		if err != nil {
			return append(left, err.Error())
		}
		if h.Status.Allocated != (api.Resources{}) {
			left = append(left, fmt.Sprintf("promises of host %s: %+v", h.Name, h.Status.Allocated))
		}
	}
	for t, err := range w.Tenants().List(ctx, client.ListOptions{}) {
		if err != nil {
			return append(left, err.Error())
		}
		if t.Status.Used != (api.Resources{}) {
			left = append(left, fmt.Sprintf("promises to tenant %s: %+v", t.Name, t.Status.Used))
		}
	}
	return left
}

// Group is the control group that is the parent of the host's servers', as the daemon names it.
func (w *World) Group() string {
	sum := sha256.Sum256([]byte(w.StateDir))
	return "croft-" + hex.EncodeToString(sum[:3])
}

// DropGroups removes the daemon's own control groups, which outlive it by intent.
func (w *World) DropGroups() {
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		for _, name := range []string{w.Group(), w.Group() + "-keeper"} {
			dirs, _ := filepath.Glob(pattern + name)
			for _, d := range dirs {
				for _, child := range []string{"/probe", ""} {
					_ = os.Remove(d + child) // it is empty, or what is in it was complained of
				}
			}
		}
	}
}
