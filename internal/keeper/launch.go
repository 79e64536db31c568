package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/cgroup"
)

// launch starts the process of p and registers it. On error nothing of it runs, except what a detaching command left
// although it failed, which is the runtime's to delete.
func (k *keeper) launch(p *process, timeout time.Duration) (err error) {
	l := &launch{keeper: k, p: p, spec: p.spec}
	defer func() { l.release(err != nil) }()
	if err := l.prepare(); err != nil {
		return err
	}
	start := k.reaper.begin()
	defer k.reaper.finish(start)
	pid, err := l.fork()
	if err != nil {
		return err
	}
	began := time.Now()
	if p.spec.PIDFile != "" {
		if pid, err = l.detach(pid, start, timeout); err != nil {
			return err
		}
	}
	return l.register(pid, start, began)
}

// launch is a start under way.
type launch struct {
	keeper *keeper
	p      *process
	spec   Spec

	place   *cgroup.Place
	stdio   []*os.File // descriptors of the process from 0 on
	log     *rollingLog
	in      *os.File // what the console reads, until there is a console
	socket  *net.UnixListener
	errors  *os.File // read end of a command's messages
	console *console
	stderr  *console // of a process whose standard error goes to a file
	// consoleFD is the process' descriptor of the console's other end.
	consoleFD int
}

// prepare opens everything that the process needs.
func (l *launch) prepare() (err error) {
	s := l.spec
	if s.Cgroup != "" {
		if l.place, err = cgroup.Open(s.Cgroup); err != nil {
			return err
		}
	}
	if s.Log != "" {
		if l.log, err = openLog(s.Log, s.LogLimit); err != nil {
			return fmt.Errorf("open console log: %w", err)
		}
	}
	if s.PIDFile != "" {
		if err := remove(s.PIDFile); err != nil {
			return err
		}
	}
	if s.ConsoleSocket != "" {
		if err := remove(s.ConsoleSocket); err != nil {
			return err
		}
		if l.socket, err = net.ListenUnix("unix", &net.UnixAddr{Name: s.ConsoleSocket, Net: "unix"}); err != nil {
			return err
		}
	}
	if err := l.openStdio(); err != nil {
		return err
	}
	for _, f := range s.Files {
		file, err := openFile(f)
		if err != nil {
			return err
		}
		l.stdio = append(l.stdio, file)
	}
	// The process itself keeps its console open for a next keeper (see adopt). A command that detaches is not the
	// process, which has its standard output.
	switch {
	case l.in != nil && s.PIDFile != "":
		l.consoleFD = unix.Stdout
	case l.in != nil:
		other, err := dup(l.in)
		if err != nil {
			return err
		}
		l.consoleFD = len(l.stdio)
		l.stdio = append(l.stdio, other)
	}
	return nil
}

// openStdio makes standard input, output and error, and what reads them.
func (l *launch) openStdio() error {
	if l.spec.Terminal {
		master, err := openTerminal()
		if err != nil {
			return err
		}
		l.in = master
		slave, err := peer(master)
		if err != nil {
			return err
		}
		l.stdio = append(l.stdio, slave, slave, slave)
	} else {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		l.stdio = append(l.stdio, null)
		r, w, err := openPipe(0)
		if err != nil {
			return err
		}
		l.stdio = append(l.stdio, w, w)
		if l.spec.ConsoleSocket != "" {
			l.errors = r // the output is a command's, not the guest's
		} else {
			l.in = r
		}
	}
	if l.spec.Stderr != "" {
		log, err := openLog(l.spec.Stderr, StderrLimit)
		if err != nil {
			return fmt.Errorf("open file for errors: %w", err)
		}
		r, w, err := openPipe(unix.O_NONBLOCK)
		if err != nil {
			log.Close()
			return err
		}
		l.stdio[2] = w
		l.stderr = l.keeper.keepErrors(l.spec.ID, r, log)
	}
	return nil
}

// keepErrors takes standard error to its log.
func (k *keeper) keepErrors(id string, r *os.File, log *rollingLog) *console {
	c := newConsole(r, false, log, "", nil)
	go k.guard("errors of "+id, c.run)
	return c
}

// fork starts the program. The parent's death signal is not set: guests survive the keeper.
//
// A terminal is not made the controlling one: when a keeper is killed, its side of the terminal closes, and the kernel
// would send SIGHUP to the session that it controls. User-mode Linux, moreover, takes its console as the
// controlling terminal of a thread of its own to learn of window sizes.
func (l *launch) fork() (int, error) {
	s := l.spec
	attr := &syscall.ProcAttr{Dir: s.Dir, Env: s.Env, Sys: &syscall.SysProcAttr{Setsid: true}}
	if attr.Env == nil {
		attr.Env = []string{}
	}
	if s.Isolate {
		attr.Sys.Cloneflags = unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	}
	if s.User != 0 || s.Group != 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: s.User, Gid: s.Group, Groups: s.Groups}
	}
	for _, f := range l.stdio {
		attr.Files = append(attr.Files, rawFD(f))
	}
	l.keeper.forks <- struct{}{}
	pid, err := l.place.Start(s.Args[0], s.Args, attr)
	<-l.keeper.forks
	if err != nil {
		return 0, fmt.Errorf("execute %s: %w", s.Args[0], err)
	}
	l.keeper.score.give(pid, s.OOMScore)
	closeFiles(l.stdio)
	l.stdio = nil
	if l.in != nil {
		l.converse(l.in, s.Terminal)
		l.in = nil
	}
	return pid, nil
}

// converse opens the console.
func (l *launch) converse(in *os.File, tty bool) {
	k, p := l.keeper, l.p
	l.console = newConsole(in, tty, l.log, l.spec.Ready, func(at time.Time) { k.ran(p, at) })
	l.log = nil
	go k.guard("console of "+l.spec.ID, l.console.run)
}

// detachLimit is the most that a command may take to detach, whatever the client allows: whoever asks for its guest waits
// for it.
const detachLimit = 5 * time.Minute

// detach waits for a command that detaches from the guest and returns the guest's pid.
func (l *launch) detach(pid int, start uint64, timeout time.Duration) (int, error) {
	ended := make(chan unix.WaitStatus, 1)
	if !l.keeper.reaper.watch(pid, start, func(w unix.WaitStatus) { ended <- w }) {
		return 0, errors.New("command was reaped by another")
	}
	message := l.collect()
	terminal := l.receive()
	if timeout <= 0 || timeout > detachLimit {
		timeout = detachLimit
	}
	expired := time.NewTimer(timeout)
	defer expired.Stop()
	var w unix.WaitStatus
	select {
	case w = <-ended:
	case <-expired.C:
		unix.Kill(-pid, unix.SIGKILL) // its session: whatever it forked and still waits for
		<-ended
		return 0, fmt.Errorf("%s: %w: %s", l.spec.Args[0], context.DeadlineExceeded, message())
	}
	if code, _ := outcome(w); code != 0 {
		return 0, fmt.Errorf("%s ended with %d: %s", l.spec.Args[0], code, message())
	}
	if terminal != nil {
		// Sent before the command ended: it only has to be taken.
		l.socket.SetDeadline(time.Now().Add(time.Second))
		got := <-terminal
		if got.err != nil {
			return 0, fmt.Errorf("receive terminal: %w", got.err)
		}
		l.converse(got.file, true)
	}
	content, err := os.ReadFile(l.spec.PIDFile)
	if err != nil {
		return 0, err
	}
	guest, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil || guest <= 1 {
		return 0, fmt.Errorf("pid file holds %q", bytes.TrimSpace(content))
	}
	return guest, nil
}

// collect reads a command's messages; the function that it returns gives the last of them once the command has ended.
func (l *launch) collect() (message func() string) {
	if l.errors == nil {
		return func() string {
			l.console.finish()
			return strings.TrimSpace(l.console.last())
		}
	}
	r := l.errors
	l.errors = nil
	text := newConsole(r, false, nil, "", nil)
	go l.keeper.guard("messages of "+l.spec.ID, text.run)
	return func() string {
		text.finish()
		return strings.TrimSpace(text.last())
	}
}

type received struct {
	file *os.File
	err  error
}

// receive takes the guest's terminal from the runtime; nil where there is none to take.
func (l *launch) receive() <-chan received {
	if l.socket == nil {
		return nil
	}
	got := make(chan received, 1)
	socket := l.socket
	go l.keeper.guard("console socket of "+l.spec.ID, func() {
		file, err := receiveTerminal(socket)
		got <- received{file, err}
	})
	return got
}

// register makes the running process known. The record is on disk before anyone can learn of its end.
func (l *launch) register(pid int, start uint64, began time.Time) error {
	k, p := l.keeper, l.p
	rec := record{Spec: l.spec, Boot: bootID(), ConsoleFD: l.consoleFD}
	if st, err := readStat(pid); err == nil {
		rec.Start = st.start
	}
	k.mu.Lock()
	rec.Status = Status{ID: l.spec.ID, PID: pid, Started: began, Ready: p.record.Status.Ready}
	p.record, p.console, p.stderr = rec, l.console, l.stderr
	err := k.records.running(rec)
	k.mu.Unlock()
	if err == nil && !k.reaper.watch(pid, start, func(w unix.WaitStatus) {
		code, signal := outcome(w)
		k.ended(p, code, signal)
	}) {
		err = fmt.Errorf("process %d has not become a child of the keeper", pid)
	}
	if err != nil {
		if st, statErr := readStat(pid); statErr == nil && st.parent == os.Getpid() {
			unix.Kill(pid, unix.SIGKILL)
		}
		k.mu.Lock()
		p.record = record{}
		k.mu.Unlock()
		return errors.Join(err, k.records.forget(l.spec.ID))
	}
	l.console, l.stderr = nil, nil
	return nil
}

// release closes what a start has left open, whichever way it went.
func (l *launch) release(failed bool) {
	closeFiles(l.stdio)
	for _, c := range []io.Closer{l.in, l.errors} {
		if f := c.(*os.File); f != nil {
			f.Close()
		}
	}
	if l.socket != nil {
		l.socket.Close() // unlinks it
	}
	if l.log != nil {
		l.log.Close()
	}
	if failed && l.console != nil {
		l.console.finish()
	}
	if failed && l.stderr != nil {
		l.stderr.finish()
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close() // standard output and error may be one file: the second Close does nothing
	}
}

// dup returns another descriptor of the same open file.
func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(rawFD(f), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// rawFD is the descriptor of a file as it is; os.File.Fd would make it blocking.
func rawFD(f *os.File) (fd uintptr) {
	if raw, err := f.SyscallConn(); err == nil {
		raw.Control(func(n uintptr) { fd = n })
	}
	return fd
}
