package sandbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/croftproject/croft/internal/cgroup"
	"github.com/croftproject/croft/internal/image"
)

// Groups are the control groups that sandboxes get theirs in.
type Groups interface {
	Set(name string, l cgroup.Limits) error
	Path(name string) string
	Kill(ctx context.Context, name string) error
	Remove(ctx context.Context, name string) error
	List() ([]string, error)
}

// Shares of a sandbox's group: next to servers' groups, which are entitled to theirs, it is a hundredth of a CPU.
const Shares = 10

const (
	// mostTasks is for the program's threads and those of one qemu-img.
	mostTasks = 256
	// freeTime is for the kernel to take back what was killed.
	freeTime = 10 * time.Second
	// oomScore has the kernel rather end a sandbox than a guest (proc_pid_oom_score_adj(5)); it would inherit the caller's.
	oomScore = 1000
)

// Enclose puts a process into a group of its own, with limits, and has it end before a guest where memory runs short.
// free ends and removes the group; it is never nil. Without groups the process stays in the caller's.
func Enclose(groups Groups, pid int, l cgroup.Limits) (free func(), err error) {
	free = func() {}
	err = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(oomScore)), 0)
	if err != nil || groups == nil {
		return free, err
	}
	name := image.GroupPrefix + strings.ToLower(rand.Text()[:10])
	free = func() { _ = end(groups, name) } // what is left of it is swept at the next start
	if err := groups.Set(name, l); err != nil {
		return free, err
	}
	place, err := cgroup.Open(groups.Path(name))
	if err != nil {
		return free, err
	}
	return free, place.Take(pid)
}

func end(groups Groups, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), freeTime)
	defer cancel()
	return errors.Join(groups.Kill(ctx, name), groups.Remove(ctx, name))
}

// Sweep ends what an earlier daemon left in groups that Enclose made.
func Sweep(groups Groups) error {
	names, err := groups.List()
	if err != nil {
		return fmt.Errorf("sweep sandboxes: %w", err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, image.GroupPrefix) {
			err = errors.Join(err, end(groups, name))
		}
	}
	return err
}
