package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPurged removes the package, with servers that are stopped on disk, and finds nothing of it.
func TestPurged(t *testing.T) {
	host(t)
	serves(t)
	run(t, "dpkg", "--purge", "croft")
	for what, args := range map[string][]string{
		"process":           {"pgrep", "-a", "-f", "^/usr/bin/croft|/var/lib/croft|/run/croft"},
		"mount":             {"grep", "-E", "/var/lib/croft|/run/croft", "/proc/self/mountinfo"},
		"network device":    {"sh", "-c", "ip -o link | grep -vE ': (lo|en[a-z0-9]+):'"},
		"network namespace": {"sh", "-c", "ip netns list | grep ."},
		"rules":             {"sh", "-c", "nft list tables 2>/dev/null | grep -i croft"},
	} {
		if out, err := try(args[0], args[1:]...); err == nil {
			t.Errorf("%s left:\n%s", what, out)
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/croft*", stateDir, runDir, "/var/lib/croft-ids", "/etc/default/croft", "/etc/systemd/system/*.wants/" + unit, "/usr/bin/croft"} {
		left, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		if len(left) > 0 {
			t.Errorf("left: %s", strings.Join(left, " "))
		}
	}
	if loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file"); len(loops) > 0 {
		for _, file := range loops {
			name, _ := os.ReadFile(file)
			t.Errorf("loop device of %s left", strings.TrimSpace(string(name)))
		}
	}
}
