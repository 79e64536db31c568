package keeper

import (
	"errors"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// reaper waits for every child of this process, also those that a detaching runtime left to it, so nobody else may wait.
//
// A child can end before the one who started it has asked to be told: the ends of unknown processes are kept while any
// start is under way. Starts and ends are numbered, so that the end of an earlier process with a reused pid is never
// taken for the new one's.
type reaper struct {
	mu      sync.Mutex
	clock   uint64
	watched map[int]func(unix.WaitStatus)
	starts  map[uint64]struct{} // under way
	unknown map[int]end
}

type end struct {
	at     uint64
	status unix.WaitStatus
}

func newReaper() *reaper {
	return &reaper{watched: map[int]func(unix.WaitStatus){}, starts: map[uint64]struct{}{}, unknown: map[int]end{}}
}

// run reaps until stop is closed. guard runs what the end of a child causes.
func (r *reaper) run(stop <-chan struct{}, guard func(func())) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD)
	defer signal.Stop(signals)
	for {
		for _, f := range r.reap() {
			go guard(f)
		}
		select {
		case <-signals:
		case <-stop:
			return
		}
	}
}

func (r *reaper) reap() (ended []func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return ended
		}
		r.clock++
		if f, ok := r.watched[pid]; ok {
			delete(r.watched, pid)
			ended = append(ended, func() { f(status) })
		} else if len(r.starts) > 0 {
			r.unknown[pid] = end{r.clock, status}
		}
	}
}

// begin announces a start: ends from now on are kept until finish.
func (r *reaper) begin() (start uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock++
	r.starts[r.clock] = struct{}{}
	return r.clock
}

func (r *reaper) finish(start uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.starts, start)
	oldest := r.clock + 1
	for s := range r.starts {
		oldest = min(oldest, s)
	}
	for pid, e := range r.unknown {
		if e.at < oldest {
			delete(r.unknown, pid)
		}
	}
}

// watch has f called once, with how the process ended, which began after start. It reports false where the process
// neither runs as a child of this one nor was reaped since.
func (r *reaper) watch(pid int, start uint64, f func(unix.WaitStatus)) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.unknown[pid]; ok {
		delete(r.unknown, pid)
		if e.at > start {
			go f(e.status)
			return true
		}
	}
	// A child can't go without being reaped, which needs the lock.
	if stat, err := readStat(pid); err != nil || stat.parent != os.Getpid() {
		return false
	}
	r.watched[pid] = f
	return true
}

// signal signals a watched process: as it has not been reaped, its pid is its own.
func (r *reaper) signal(pid int, sig unix.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.watched[pid]; !ok {
		return ErrEnded
	}
	return unix.Kill(pid, sig)
}
