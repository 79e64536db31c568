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
// shared, without the mapping of the guest's memory's size. It must be within what the engine says that it takes.
func residentBeyond(t *testing.T, e engine.Engine, g engine.Guest, m *engine.Machine) api.Bytes {
	t.Helper()
	file, err := os.Open(fmt.Sprintf("/proc/%d/smaps", g.PID()))
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
	if overhead := e.Overhead(m.Spec); total > overhead {
		t.Errorf("QEMU holds %v beyond the guest's memory, and the overhead says %v", total, overhead)
	}
	return total
}
