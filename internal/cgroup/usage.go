package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/croftproject/croft/api"
)

// Usage reads what the group and those below it have used. What the host does not account for is zero.
func (t *Tree) Usage(name string) (Usage, error) {
	r := reader{mounts: t.mounts, path: t.Path(name)}
	var u Usage
	if _, v2 := r.file("cpuacct", ""); !v2 {
		u.CPUTime = time.Duration(r.number("cpuacct", "cpuacct.usage"))
	} else {
		u.CPUTime = time.Duration(r.key("cpu", "cpu.stat", "usage_usec")) * time.Microsecond
	}
	u.PIDs = r.number("pids", "pids.current")
	if t.layout.v2("memory") {
		u.Memory = api.Bytes(r.number("memory", "memory.current") - r.key("memory", "memory.stat", "inactive_file"))
		u.OOMKills = r.key("memory", "memory.events", "oom_kill")
	} else {
		u.Memory = api.Bytes(r.number("memory", "memory.usage_in_bytes") - r.key("memory", "memory.stat", "total_inactive_file"))
		u.OOMKills = r.oomKills()
	}
	u.Memory = max(u.Memory, 0)
	if t.layout.v2("io") {
		u.Read, u.Written = r.ioStat()
	} else {
		u.Read, u.Written = r.throttled()
	}
	if r.err != nil {
		return Usage{}, fmt.Errorf("read usage of cgroup %s: %w", t.Path(name), r.err)
	}
	return u, nil
}

// reader reads control files of one group; the first error stays.
type reader struct {
	mounts mounts
	path   string
	err    error
}

// file is the path of a controller's file; empty where the host has no such controller. cpuacct is part of v2's cpu.
func (r *reader) file(controller, file string) (path string, v2 bool) {
	h, ok := r.mounts.find(controller)
	if !ok {
		return "", controller == "cpuacct"
	}
	return h.dir(r.path, file), h.unified
}

// text reads a file. One that the kernel does not have is empty, but the group must be there.
func (r *reader) text(controller, file string) string {
	path, _ := r.file(controller, file)
	if path == "" || r.err != nil {
		return ""
	}
	s, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.Stat(filepath.Dir(path))
	}
	r.err = err
	return s
}

func (r *reader) number(controller, file string) int64 { return number64(r.text(controller, file)) }

// key reads a value of a flat keyed file: "key value" lines.
func (r *reader) key(controller, file, key string) int64 { return keyed(r.text(controller, file), key) }

func keyed(text, key string) int64 {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, key+" "); ok {
			return number64(strings.TrimSpace(value))
		}
	}
	return 0
}

// number64 reads a count; the kernel's are never malformed, "max" is none.
func number64(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// oomKills sums up v1's counts, each of which is its group's own.
func (r *reader) oomKills() (kills int64) {
	dir, _ := r.file("memory", "")
	if dir == "" {
		return 0
	}
	for _, d := range subtree(dir) {
		text, err := read(filepath.Join(d, "memory.oom_control"))
		if err != nil {
			continue // it has gone
		}
		kills += keyed(text, "oom_kill")
	}
	return kills
}

// ioStat sums up the devices of io.stat: "8:0 rbytes=1 wbytes=2 rios=…".
func (r *reader) ioStat() (read, written api.Bytes) {
	for _, field := range strings.Fields(r.text("io", "io.stat")) {
		if v, ok := strings.CutPrefix(field, "rbytes="); ok {
			read += api.Bytes(number64(v))
		} else if v, ok := strings.CutPrefix(field, "wbytes="); ok {
			written += api.Bytes(number64(v))
		}
	}
	return read, written
}

// throttled sums up the devices of v1's count: "8:0 Read 1".
func (r *reader) throttled() (read, written api.Bytes) {
	for line := range strings.Lines(r.text("blkio", "blkio.throttle.io_service_bytes_recursive")) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		switch f[1] {
		case "Read":
			read += api.Bytes(number64(f[2]))
		case "Write":
			written += api.Bytes(number64(f[2]))
		}
	}
	return read, written
}
