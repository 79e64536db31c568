package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrBusy says that a group still has live processes.
var ErrBusy = errors.New("has live processes")

const (
	freezeTime = 10 * time.Second // for every process to stop
	killTime   = 10 * time.Second // for every process to end: one may hang in the kernel, and ends some time later
	retryFirst = time.Millisecond // between two looks where the kernel gives no event
	retryLast  = 50 * time.Millisecond
)

// retry calls try, with growing pauses, until it is done, and returns its error.
func retry(ctx context.Context, try func() (done bool, err error)) error {
	for pause := retryFirst; ; pause = min(2*pause, retryLast) {
		done, err := try()
		if done {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(ctx.Err(), err)
		}
	}
}

// Freeze stops every process in the group and below, and returns once they stand.
func (t *Tree) Freeze(name string) error { return t.freezer(name, "FROZEN", "1") }

// Thaw lets them go on.
func (t *Tree) Thaw(name string) error { return t.freezer(name, "THAWED", "0") }

func (t *Tree) freezer(name, v1, v2 string) error {
	ctx, cancel := context.WithTimeout(context.Background(), freezeTime)
	defer cancel()
	var err error
	if h, ok := t.mounts.find("freezer"); ok {
		file := h.dir(t.Path(name), "freezer.state")
		err = retry(ctx, func() (bool, error) {
			// Written each time: a process that was forked meanwhile leaves the group at FREEZING.
			if err := write(file, v1); err != nil {
				return true, err
			}
			state, err := read(file)
			return state == v1 || err != nil, err
		})
	} else if h, ok := t.mounts.unified(); ok {
		dir := h.dir(t.Path(name))
		if err = write(filepath.Join(dir, "cgroup.freeze"), v2); err == nil {
			err = await(ctx, filepath.Join(dir, "cgroup.events"), "frozen "+v2)
		}
	} else {
		err = errors.New("the host has no freezer")
	}
	if err != nil {
		return fmt.Errorf("set cgroup %s %s: %w", t.Path(name), strings.ToLower(v1), err)
	}
	return nil
}

// await waits until a line is in a v2 events file, which signals its changes as exceptional conditions (poll(2)).
func await(ctx context.Context, file, line string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 256)
	for {
		n, err := f.ReadAt(buf, 0)
		if n == 0 && err != nil {
			return err
		}
		if slices.Contains(strings.Split(string(buf[:n]), "\n"), line) {
			return nil
		}
		if err := poll(ctx, unix.PollFd{Fd: int32(f.Fd()), Events: unix.POLLPRI}); err != nil {
			return err
		}
	}
}

// poll waits for an event. It looks at ctx now and then.
func poll(ctx context.Context, fd unix.PollFd) error {
	fds := []unix.PollFd{fd}
	for {
		n, err := unix.Poll(fds, 50)
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		}
	}
}

// Kill kills every process in the group and below, frozen or not, and returns once they are gone. Where some do not end
// within ten seconds, its error names them.
func (t *Tree) Kill(ctx context.Context, name string) error {
	within, cancel := context.WithTimeout(ctx, t.killTime)
	defer cancel()
	err := t.kill(within, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if within.Err() != nil && ctx.Err() == nil && err != nil {
		err = fmt.Errorf("processes %v did not end within %v (they may hang in the kernel): %w", t.members(name), t.killTime, err)
	}
	if err != nil {
		return fmt.Errorf("kill cgroup %s: %w", t.Path(name), err)
	}
	return nil
}

func (t *Tree) kill(ctx context.Context, name string) error {
	if h, ok := t.mounts.unified(); ok && t.mounts.mode == V2 && exists(h.dir(t.Path(name), "cgroup.kill")) {
		return killV2(ctx, h.dir(t.Path(name)))
	}
	return t.killAll(ctx, name)
}

// killV2 uses cgroup.kill, which also takes what is forked meanwhile.
func killV2(ctx context.Context, dir string) error {
	if err := write(filepath.Join(dir, "cgroup.kill"), "1"); err != nil {
		return err
	}
	return await(ctx, filepath.Join(dir, "cgroup.events"), "populated 0")
}

// stubborn is how many rounds of killing a group gets before it is frozen for the next: it forks faster than it is
// killed.
const stubborn = 5

// killAll kills what it finds until it finds nothing.
func (t *Tree) killAll(ctx context.Context, name string) error {
	for round := 0; ; round++ {
		freeze := round >= stubborn
		if freeze {
			if err := t.Freeze(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		dying, err := t.killOnce(name)
		// A frozen process of v1 dies once it is thawed.
		err = errors.Join(err, t.thawAll(name))
		for _, fd := range dying {
			if err == nil {
				err = poll(ctx, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
			}
			unix.Close(fd)
		}
		if err != nil || len(dying) == 0 {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// killOnce kills every process of the group once and returns their pidfds, which tell when they are gone.
func (t *Tree) killOnce(name string) (dying []int, err error) {
	for _, pid := range t.members(name) {
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return dying, err
		}
		dying = append(dying, fd)
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return dying, err
		}
	}
	return dying, nil
}

// SetOOMScore gives every process of the group and below an oom_score_adj (proc_pid_oom_score_adj(5)); what they start
// has it from them. Those that were just being forked are found in a further round.
func (t *Tree) SetOOMScore(name string, score int) error {
	done := map[int]bool{}
	for again := true; again; {
		again = false
		for _, pid := range t.members(name) {
			if done[pid] {
				continue
			}
			done[pid], again = true, true
			err := write(fmt.Sprintf("/proc/%d/oom_score_adj", pid), number(int64(score)))
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("score cgroup %s: %w", t.Path(name), err)
			}
		}
	}
	return nil
}

// thawAll thaws the group and those below it.
func (t *Tree) thawAll(name string) error {
	h, ok := t.mounts.find("freezer")
	file, value := "freezer.state", "THAWED"
	if !ok {
		if h, ok = t.mounts.unified(); !ok {
			return nil
		}
		file, value = "cgroup.freeze", "0"
	}
	for _, dir := range subtree(h.dir(t.Path(name))) {
		if err := write(filepath.Join(dir, file), value); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
	return nil
}

// members lists the processes of the group and below.
func (t *Tree) members(name string) []int {
	var pids []int
	for _, h := range t.mounts.all {
		for _, dir := range subtree(h.dir(t.Path(name))) {
			pids = append(pids, leaders(dir)...)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}

// leaders lists the processes of one group whose first thread is in it. In v1 a process may also have another thread
// there: the keeper has, for the moment in which it starts a guest (Place.Start), and must not be taken for one.
func leaders(dir string) []int {
	pids := numbers(filepath.Join(dir, "cgroup.procs"))
	if tasks := filepath.Join(dir, "tasks"); len(pids) > 0 && exists(tasks) {
		threads := numbers(tasks)
		return slices.DeleteFunc(pids, func(pid int) bool { return !slices.Contains(threads, pid) })
	}
	return pids
}

// numbers reads a list of ids; none where the group has gone.
func numbers(file string) []int {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	var out []int
	for _, f := range strings.Fields(string(b)) {
		if n, err := strconv.Atoi(f); err == nil && n > 0 {
			out = append(out, n)
		}
	}
	return out
}

// removeAll removes a group's directories, children first. Those of processes that are just ending are busy for a moment.
func removeAll(ctx context.Context, dir string) error {
	dirs := subtree(dir)
	slices.Reverse(dirs)
	for _, d := range dirs {
		err := retry(ctx, func() (bool, error) {
			err := unix.Rmdir(d)
			switch {
			case err == nil, errors.Is(err, unix.ENOENT):
				return true, nil
			case !errors.Is(err, unix.EBUSY):
				return true, fmt.Errorf("%s: %w", d, err)
			case len(leaders(d)) > 0:
				return true, fmt.Errorf("%s %w", d, ErrBusy)
			}
			return false, fmt.Errorf("%s: %w", d, err)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
