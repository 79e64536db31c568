package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrHeld says that another keeper serves the directory.
var ErrHeld = errors.New("directory has a keeper")

const (
	socketName = "keeper.sock"
	lockName   = "keeper.lock"
	logName    = "keeper.log"
	logLimit   = 256 << 10 // bytes
	forksMax   = 4         // at a time: each takes a thread of its own
)

// keeper is the state of the keeper process.
type keeper struct {
	dir     string
	log     *slog.Logger
	records records
	reaper  *reaper
	forks   chan struct{}
	score   *score

	mu      sync.Mutex
	procs   map[string]*process
	conns   map[*conn]struct{}
	closing bool
	cut     func() // set once the socket was removed: ends the keeper
}

// Run is the keeper process: it serves DIR/keeper.sock until ctx is cancelled, or Client.Shutdown, or SIGTERM while it
// holds no process. Guests are left running. It writes a line to standard output once it serves.
func Run(ctx context.Context, dir string) error {
	ownsStderr.Store(os.Getenv(stderrVariable) != "")
	os.Unsetenv(stderrVariable)
	debug.SetGCPercent(20)
	runtime.GOMAXPROCS(min(2, runtime.NumCPU()))
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	journal, err := openJournal(filepath.Join(dir, logName))
	if err != nil {
		return err
	}
	k := &keeper{
		dir: dir, log: slog.New(slog.NewTextHandler(journal, nil)), reaper: newReaper(), score: newScore(),
		forks: make(chan struct{}, forksMax), procs: map[string]*process{}, conns: map[*conn]struct{}{},
	}
	if k.records, err = openRecords(dir); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	go k.reaper.run(ctx.Done(), func(f func()) { k.guard("end of a process", f) })
	if err := k.adoptAll(); err != nil {
		return err
	}
	go k.heed(ctx, stop)
	return k.serve(ctx, stop)
}

// lockDir makes the directory and takes it for this process. A keeper that is just ending is waited for.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", dir, ErrHeld)
	}
	return f, nil
}

// heed takes the signals that end other processes. A keeper that holds guests stays.
func (k *keeper) heed(ctx context.Context, stop context.CancelFunc) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	defer signal.Stop(signals)
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			if s != unix.SIGTERM && s != unix.SIGINT {
				continue
			}
			if err := k.shutdown(); err != nil {
				k.log.Warn("signal ignored", "signal", s.String(), "reason", err)
				continue
			}
			stop()
		}
	}
}

// protect turns a panic into an error, so that one guest's trouble is not every guest's.
func (k *keeper) protect(what string, f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			k.log.Error("panic", "in", what, "value", r, "stack", string(debug.Stack()))
			err = fmt.Errorf("%s: keeper failed: %v", what, r)
		}
	}()
	return f()
}

// guard runs f, which has nobody to return an error to.
func (k *keeper) guard(what string, f func()) {
	k.protect(what, func() error { f(); return nil })
}

// journal is the keeper's own log, DIR/keeper.log, of bounded size. It is also standard error, for a crash of
// the Go runtime.
type journal struct {
	mu  sync.Mutex
	log *rollingLog
}

func openJournal(path string) (*journal, error) {
	log, err := openLog(path, logLimit)
	if err != nil {
		return nil, err
	}
	return &journal{log: log}, nil
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	before := j.log.file
	n, err := j.log.Write(p)
	if f := j.log.file; f != nil && f != before && ownsStderr.Load() {
		unix.Dup3(int(rawFD(f)), 2, 0)
	}
	return n, err
}

// ownsStderr says that standard error is the keeper's log, because Connect started this process.
var ownsStderr atomic.Bool

// score is the keeper's protection from the OOM killer (oom_score_adj, proc_pid_oom_score_adj(5)): guests that it
// starts must not inherit it.
type score struct{ normal string }

const protectedScore = "-900"

func newScore() *score {
	const own = "/proc/self/oom_score_adj"
	before, err := os.ReadFile(own)
	if err != nil || os.WriteFile(own, []byte(protectedScore), 0) != nil {
		return nil // not privileged
	}
	return &score{string(before)}
}

// give gives a process that was just started its own score; without one, that which the keeper had.
func (s *score) give(pid, own int) {
	text := strconv.Itoa(own)
	if own == 0 {
		if s == nil {
			return // it has that
		}
		text = s.normal
	}
	os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte(text), 0)
}

// patience is how long the keeper waits for a client that has connected to say what it wants.
const patience = 10 * time.Second
