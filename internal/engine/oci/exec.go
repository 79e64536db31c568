package oci

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/croftproject/croft/internal/engine"
)

// Exec runs a process beside the guest's own, with the same confinement. See engine.Execer.
func (g *Guest) Exec(ctx context.Context, p engine.Process) (int, error) {
	if g.ended() {
		return 0, fmt.Errorf("exec in %s: %w", g.m.ID, engine.ErrGone)
	}
	if paused, err := g.Paused(ctx); err != nil {
		return 0, fmt.Errorf("exec in %s: %w", g.m.ID, err)
	} else if paused {
		return 0, fmt.Errorf("%w: the guest is paused", engine.ErrProcess)
	}
	spec, err := g.processSpec(p)
	if err != nil {
		return 0, fmt.Errorf("exec in %s: %w", g.m.ID, err)
	}
	// The bundle takes them along, should this process not live to remove them: environments may hold secrets.
	s := &session{guest: g, process: p, files: bundleOf(g.m).file("exec-" + rand.Text())}
	defer s.remove()
	if p.TTY {
		s.size = firstSize(p.Resize)
		// The runtime itself sizes the terminal only once the process runs.
		spec.ConsoleSize = &specs.Box{Height: uint(s.size.Rows), Width: uint(s.size.Cols)}
	}
	if err := s.prepare(ctx, spec); err != nil {
		return 0, fmt.Errorf("exec in %s: %w", g.m.ID, err)
	}
	if p.TTY {
		err = s.runTerminal()
	} else {
		err = s.runPipes()
	}
	return s.result(ctx, err)
}

// processSpec is the guest's first process changed into p: it keeps capabilities, limits and environment.
func (g *Guest) processSpec(p engine.Process) (*specs.Process, error) {
	if len(p.Args) == 0 {
		return nil, fmt.Errorf("%w: no command", engine.ErrProcess)
	}
	data, err := os.ReadFile(bundleOf(g.m).file("config.json"))
	if err != nil {
		return nil, err
	}
	var config specs.Spec
	if err := json.Unmarshal(data, &config); err != nil {
		return nil, fmt.Errorf("read the guest's configuration: %w", err)
	}
	spec := config.Process
	who, err := g.account(p.User)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", engine.ErrProcess, err)
	}
	spec.User, spec.Terminal, spec.ConsoleSize, spec.Args = who.User, p.TTY, nil, p.Args
	spec.Env = execEnv(spec.Env, p, who)
	if p.Dir != "" {
		spec.Cwd = p.Dir
	}
	return spec, nil
}

func (g *Guest) account(who string) (account, error) {
	root, err := openTree(g.m.Root.Path)
	if err != nil {
		return account{}, err
	}
	defer root.close()
	return root.accounts().resolve(who, g.m.IDs.Size)
}

// execEnv is the first process's environment with the user's home, the terminal's kind, and what p says.
func execEnv(base []string, p engine.Process, who account) []string {
	env := slices.Clone(base)
	if who.Home != "" {
		env = setEnv(env, "HOME", who.Home)
	}
	if who.Name != "" {
		env = setEnv(env, "USER", who.Name)
	}
	if p.TTY {
		env = setEnv(env, "TERM", "xterm-256color")
	}
	for _, line := range p.Env {
		if name, value, ok := strings.Cut(line, "="); ok && name != "" {
			env = setEnv(env, name, value)
		}
	}
	return env
}

func setEnv(env []string, name, value string) []string {
	env = slices.DeleteFunc(env, func(line string) bool { return strings.HasPrefix(line, name+"=") })
	return append(env, name+"="+value)
}

// session is one run of the runtime's exec command.
type session struct {
	guest   *Guest
	process engine.Process
	files   string // what their paths begin with
	cmd     *exec.Cmd
	size    engine.WinSize // at the start, with a terminal
}

// lingerTime is how long output may still come once the process has ended: its children may hold the pipes for ever.
const lingerTime = 500 * time.Millisecond

func (s *session) prepare(ctx context.Context, spec *specs.Process) error {
	binary, err := s.guest.engine.runtime.path()
	if err != nil {
		return err
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.file("json"), data, 0o600); err != nil {
		return err
	}
	args := []string{
		binary, "--root", s.guest.engine.runtime.root, "--log", s.file("log"), "--log-format", "json",
		"exec", "--process", s.file("json"), "--pid-file", s.file("pid"),
	}
	if s.process.TTY {
		// The terminal is hung up when the process ends, whoever else has it open.
		args = append(args, "--tty", s.guest.m.ID)
	} else {
		args = append([]string{"/proc/self/exe", AttendCommand, s.file("pid")}, append(args, "--detach", s.guest.m.ID)...)
	}
	s.cmd = exec.CommandContext(ctx, args[0], args[1:]...)
	s.cmd.Cancel = s.kill
	s.cmd.WaitDelay = lingerTime
	return nil
}

func (s *session) file(name string) string { return s.files + "." + name }

func (s *session) remove() {
	for _, name := range []string{"json", "log", "pid"} {
		_ = os.Remove(s.file(name)) // what is left goes with the bundle
	}
}

// kill ends the process in the guest; who waits for it follows. Killed itself, the runtime would leave the process running.
func (s *session) kill() error {
	pid, ok := s.awaitPID()
	if !ok {
		return s.cmd.Process.Kill()
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return s.cmd.Process.Kill()
	}
	defer unix.Close(fd)
	// The number could be another's by now; with the descriptor open it stays whose it is.
	if !s.guest.owns(pid) {
		return s.cmd.Process.Kill()
	}
	return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
}

// startTime is how long the runtime may take to write down a process that it has started.
const startTime = 2 * time.Second

// awaitPID waits for the runtime's word of the process: it comes a little after the process has begun to run.
func (s *session) awaitPID() (int, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	for {
		if data, err := os.ReadFile(s.file("pid")); err == nil {
			pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
			return pid, err == nil && pid > 1
		}
		if s.cmd.Process.Signal(unix.Signal(0)) != nil || pause(ctx, settle) != nil {
			return 0, false
		}
	}
}

// owns tells whether a process is in the guest's control group.
func (g *Guest) owns(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return err == nil && strings.Contains(string(data), "/"+strings.Trim(guestGroup(g.m), "/"))
}

// runPipes runs it with plain streams.
func (s *session) runPipes() error {
	s.cmd.Stdout = s.process.Stdout
	if s.process.Stderr != nil {
		s.cmd.Stderr = &heard{Writer: s.process.Stderr, s: s}
	}
	var in io.WriteCloser
	if s.process.Stdin != nil {
		var err error
		if in, err = s.cmd.StdinPipe(); err != nil {
			return err
		}
	}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	if in != nil {
		// Whoever types may go on for ever; the process's end is not made to wait for it.
		go func() {
			_, _ = io.Copy(in, s.process.Stdin)
			in.Close()
		}()
	}
	return s.cmd.Wait()
}

// runTerminal runs it on a terminal: the runtime passes it, and its size, on to the one that it makes in the guest.
func (s *session) runTerminal() error {
	terminal, err := s.startOnTerminal()
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	var output sync.WaitGroup
	output.Go(func() {
		// It ends with EIO, once nobody has the other side open.
		_, _ = io.Copy(&heard{Writer: &lineEnds{to: writerOr(s.process.Stdout)}, s: s}, terminal)
	})
	if s.process.Stdin != nil {
		go func() { _, _ = io.Copy(terminal, s.process.Stdin) }()
	}
	go s.resize(terminal, ended)
	err = s.cmd.Wait()
	close(ended)
	_ = terminal.SetReadDeadline(time.Now().Add(lingerTime))
	output.Wait()
	terminal.Close()
	return err
}

// startOnTerminal starts the command on a terminal that passes everything on as it is, from the first byte: the one in the
// guest does the echo.
func (s *session) startOnTerminal() (*os.File, error) {
	master, slave, err := pty.Open()
	if err != nil {
		return nil, err
	}
	defer slave.Close()
	if _, err = term.MakeRaw(int(slave.Fd())); err == nil {
		err = keepLineEnds(slave)
	}
	if err == nil {
		err = pty.Setsize(master, &pty.Winsize{Rows: s.size.Rows, Cols: s.size.Cols})
	}
	if err == nil {
		s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = slave, slave, slave
		s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		err = s.cmd.Start()
	}
	if err != nil {
		master.Close()
		return nil, err
	}
	return master, nil
}

// keepLineEnds has a terminal never make CRLF of a newline; the runtime turns the processing of output on again.
func keepLineEnds(terminal *os.File) error {
	fd := int(terminal.Fd())
	mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	mode.Oflag &^= unix.ONLCR
	return unix.IoctlSetTermios(fd, unix.TCSETS, mode)
}

// lineEnds makes every newline CRLF, as a terminal does. The runtime has the one in the guest leave that off, but only
// once the process may have begun to write.
type lineEnds struct {
	to   io.Writer
	last byte
}

func (l *lineEnds) Write(p []byte) (int, error) {
	out := make([]byte, 0, len(p)+16)
	for _, b := range p {
		if b == '\n' && l.last != '\r' {
			out = append(out, '\r')
		}
		out = append(out, b)
		l.last = b
	}
	if _, err := l.to.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// firstSize is the size that is known already, else the usual one.
func firstSize(sizes <-chan engine.WinSize) engine.WinSize {
	select {
	case size, ok := <-sizes:
		if ok {
			return size
		}
	default:
	}
	return engine.WinSize{Rows: 24, Cols: 80}
}

func (s *session) resize(terminal *os.File, ended <-chan struct{}) {
	for {
		select {
		case size, ok := <-s.process.Resize:
			if !ok {
				return
			}
			_ = pty.Setsize(terminal, &pty.Winsize{Rows: size.Rows, Cols: size.Cols})
		case <-ended:
			return
		}
	}
}

func writerOr(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// result tells the process's exit code from the runtime's own failures: the runtime exits with the process's code, and
// with 255 or 1 and a message in its log where there was no process.
func (s *session) result(ctx context.Context, err error) (int, error) {
	if ctx.Err() != nil {
		return 0, fmt.Errorf("exec in %s: %w", s.guest.m.ID, ctx.Err())
	}
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return 0, nil
	case !errors.As(err, &exit):
		return 0, fmt.Errorf("exec in %s: %w", s.guest.m.ID, err)
	}
	if said := s.complaint(); said != "" {
		return 0, fmt.Errorf("%w: %s", engine.ErrProcess, said)
	}
	return exit.ExitCode(), nil
}

// started tells whether there is, or was, a process.
func (s *session) started() bool {
	_, err := os.Lstat(s.file("pid"))
	return err == nil
}

// complaint is why the runtime did not start the process; "" where it did, or has not said so.
func (s *session) complaint() string {
	if s.started() {
		return ""
	}
	log, _ := os.ReadFile(s.file("log"))
	return lastMessage(log)
}

// heard passes on what the process says. The runtime says there too why it did not start one, after it has logged that:
// the error tells it already.
type heard struct {
	io.Writer
	s       *session
	process bool // is known to have been started
}

func (h *heard) Write(p []byte) (int, error) {
	if h.process = h.process || h.s.started(); !h.process {
		if said := h.s.complaint(); said != "" && strings.TrimSpace(string(p)) == said {
			return len(p), nil
		}
	}
	return h.Writer.Write(p)
}
