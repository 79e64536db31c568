package qemu_test

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
)

// residentBeyond is the memory that a QEMU holds apart from its guest's, by /proc/PID/smaps: what is private to it or
// shared, without the mapping of the guest's memory's size.
func residentBeyond(t *testing.T, pid int, m *engine.Machine) api.Bytes {
	t.Helper()
	file, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var total, size api.Bytes
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var kib int64
		name, value, _ := strings.Cut(lines.Text(), ":")
		if _, err := fmt.Sscanf(value, "%d kB", &kib); err != nil {
			continue
		}
		switch name {
		case "Size":
			size = api.Bytes(kib) * api.KiB
		case "Rss":
			if size < m.Spec.Memory.Limit {
				total += api.Bytes(kib) * api.KiB
			}
		}
	}
	return total
}
