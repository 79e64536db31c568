package keeper_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/keeper"
)

// TestMain makes the test binary every program that the tests need: the keeper, and a runtime that detaches.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "keeper":
			if err := keeper.Run(context.Background(), os.Args[3]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		case "detach":
			detach(os.Args[2:])
		case "connect":
			// A daemon that is killed: it holds its connection until then.
			c, err := keeper.Connect(context.Background(), os.Args[2], keeper.Options{})
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			if _, err := c.Start(context.Background(), shell("survivor", "exec tail -f /dev/null")); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			fmt.Println("started")
			select {}
		}
	}
	os.Exit(m.Run())
}

// detach is a runtime: it leaves a shell behind and writes its pid. Arguments: pid file, script, console socket or "".
func detach(args []string) {
	if args[1] == "fail" {
		fmt.Fprintln(os.Stderr, "runtime: no such container")
		os.Exit(3)
	}
	cmd := exec.Command("/bin/sh", "-c", args[1])
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if args[2] != "" {
		slave := sendTerminal(args[2])
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr.Setctty = true
	}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.WriteFile(args[0], []byte(fmt.Sprint(cmd.Process.Pid)), 0o600)
	os.Exit(0)
}

func sendTerminal(socket string) *os.File {
	must := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	must(err)
	must(unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	must(err)
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	must(err)
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(err)
	must(unix.Connect(s, &unix.SockaddrUnix{Name: socket}))
	must(unix.Sendmsg(s, []byte("/dev/ptmx"), unix.UnixRights(master), nil, 0))
	return slave
}

func shell(id, script string) keeper.Spec {
	return keeper.Spec{ID: id, Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin:/usr/bin:/sbin:/usr/sbin"}}
}

// open starts a keeper in a directory of its own, and at the end of the test ends it with all that it runs.
func open(t testing.TB) (*keeper.Client, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the keeper sets users and cgroups")
	}
	dir, err := os.MkdirTemp("/tmp", "ck")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Cleanup(func() { closeAll(t, dir) }) // after connect's: a client that is open starts a keeper again
	return connect(t, dir), dir
}

func connect(t testing.TB, dir string) *keeper.Client {
	t.Helper()
	c, err := keeper.Connect(t.Context(), dir, keeper.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func closeAll(t testing.TB, dir string) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := keeper.Connect(ctx, dir, keeper.Options{})
	if err != nil {
		t.Error(err)
		return
	}
	list, err := c.List(ctx)
	if err != nil {
		t.Error(err)
	}
	for _, s := range list {
		if err := c.Signal(ctx, s.ID, unix.SIGKILL); err != nil && !errors.Is(err, keeper.ErrEnded) {
			t.Error(err)
		}
		<-c.Done(s.ID)
	}
	if err := c.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if t.Failed() {
		log, _ := os.ReadFile(filepath.Join(dir, "keeper.log"))
		t.Logf("keeper.log:\n%s", log)
	}
}

func start(t testing.TB, c *keeper.Client, s keeper.Spec) keeper.Status {
	t.Helper()
	status, err := c.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// wait waits for the end and returns what is known then.
func wait(t testing.TB, c *keeper.Client, id string) keeper.Status {
	t.Helper()
	select {
	case <-c.Done(id):
	case <-time.After(20 * time.Second):
		t.Fatalf("%s does not end", id)
	}
	s, err := c.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func attach(t testing.TB, c *keeper.Client, id string, resize <-chan keeper.WinSize) *view {
	t.Helper()
	s, err := c.Attach(t.Context(), id, resize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &view{s, bufio.NewReader(s)}
}

// view is an attached console.
type view struct {
	io.WriteCloser
	*bufio.Reader
}

// expect reads just as far as the text has come.
func expect(t testing.TB, r *view, text string) {
	t.Helper()
	var got []byte
	for !strings.HasSuffix(string(got), text) {
		b, err := r.ReadByte()
		if err != nil {
			t.Fatalf("want %q in console, got %q: %v", text, got, err)
		}
		got = append(got, b)
	}
}

func TestExitCodes(t *testing.T) {
	c, _ := open(t)
	for name, test := range map[string]struct {
		script       string
		code, signal int
	}{
		"success": {"exit 0", 0, 0},
		"failure": {"exit 42", 42, 0},
		"signal":  {"kill -TERM $$", 128 + 15, 15},
	} {
		t.Run(name, func(t *testing.T) {
			start(t, c, shell(name, test.script))
			s := wait(t, c, name)
			if s.Code != test.code || s.Signal != test.signal || s.Ended.Before(s.Started) {
				t.Errorf("ended as %+v, want code %d, signal %d", s, test.code, test.signal)
			}
			if err := c.Forget(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Get(t.Context(), name); !errors.Is(err, keeper.ErrUnknown) {
				t.Errorf("Get after Forget: %v", err)
			}
		})
	}
}

func TestTerminal(t *testing.T) {
	c, dir := open(t)
	s := shell("tty", "stty size; echo hel''lo; read x; echo got $x; until stty size | grep '50 132'; do :; done; read x; exit 7")
	s.Terminal, s.Log, s.Ready = true, filepath.Join(dir, "console"), "hello"
	start(t, c, s)
	sizes := make(chan keeper.WinSize)
	tty := attach(t, c, "tty", sizes)
	expect(t, tty, "hello")
	sizes <- keeper.WinSize{Rows: 50, Cols: 132}
	fmt.Fprintln(tty, "input")
	expect(t, tty, "got input")
	expect(t, tty, "50 132")
	late := attach(t, c, "tty", nil)
	expect(t, late, "50 132") // the last output comes first
	fmt.Fprintln(late, "")
	if rest, err := io.ReadAll(tty); err != nil || len(rest) > 1 {
		t.Errorf("after the end: %q, %v", rest, err)
	}
	got := wait(t, c, "tty")
	if got.Code != 7 || got.Ready.IsZero() {
		t.Errorf("status %+v", got)
	}
	log, err := os.ReadFile(s.Log)
	if err != nil || !strings.Contains(string(log), "got input") {
		t.Errorf("log %q, %v", log, err)
	}
}

// What a client types before it hangs up, without having read, is typed all the same.
func TestTypeAndHangUp(t *testing.T) {
	c, _ := open(t)
	s := shell("tty", "stty -echo; echo ready; while read x; do echo got $x; done")
	s.Terminal = true
	start(t, c, s)
	watching := attach(t, c, "tty", nil)
	expect(t, watching, "ready")
	for i := range 200 {
		hasty, err := c.Attach(t.Context(), "tty", nil)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(hasty, i)
		hasty.Close()
		expect(t, watching, fmt.Sprintf("got %d\n", i))
	}
}

func TestDetach(t *testing.T) {
	c, dir := open(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	spec := func(id, script, socket string) keeper.Spec {
		pid := filepath.Join(dir, id+".pid")
		return keeper.Spec{
			ID: id, Args: []string{exe, "detach", pid, script, socket}, Env: os.Environ(),
			PIDFile: pid, ConsoleSocket: socket, Log: filepath.Join(dir, id+".log"),
		}
	}
	t.Run("ends by itself", func(t *testing.T) {
		for i := range 20 { // its end races with its being registered
			id := fmt.Sprint("quick", i)
			start(t, c, spec(id, "exit 9", ""))
			if s := wait(t, c, id); s.Code != 9 {
				t.Errorf("status %+v", s)
			}
		}
	})
	t.Run("terminal", func(t *testing.T) {
		s := spec("tty", "echo login:; read x; echo $x-$x; exit 3", filepath.Join(dir, "tty.sock"))
		s.Ready = "login:"
		start(t, c, s)
		tty := attach(t, c, "tty", nil)
		expect(t, tty, "login:")
		fmt.Fprintln(tty, "me")
		expect(t, tty, "me-me")
		if got := wait(t, c, "tty"); got.Code != 3 || got.Ready.IsZero() {
			t.Errorf("status %+v", got)
		}
	})
	t.Run("output", func(t *testing.T) {
		s := spec("out", "echo printed", "")
		start(t, c, s)
		wait(t, c, "out")
		if log, err := os.ReadFile(s.Log); string(log) != "printed\n" {
			t.Errorf("log %q, %v", log, err)
		}
	})
	t.Run("output under the next keeper", func(t *testing.T) {
		gate := filepath.Join(dir, "gate")
		if err := unix.Mkfifo(gate, 0o600); err != nil {
			t.Fatal(err)
		}
		s := spec("kept", "echo one; read x < "+gate+"; echo two; echo three; exec tail -f /dev/null", "")
		s.Ready = "three"
		running := start(t, c, s)
		expect(t, attach(t, c, "kept", nil), "one")
		killKeeper(t, running.PID)
		if err := os.WriteFile(gate, []byte("\n"), 0); err != nil {
			t.Fatal(err)
		}
		<-c.Ready("kept")
		if err := c.Signal(t.Context(), "kept", unix.SIGKILL); err != nil {
			t.Error(err)
		}
		wait(t, c, "kept")
		if log, err := os.ReadFile(s.Log); string(log) != "one\ntwo\nthree\n" {
			t.Errorf("log %q, %v", log, err)
		}
	})
	for name, socket := range map[string]string{"fails": "", "fails with terminal": filepath.Join(dir, "f.sock")} {
		t.Run(name, func(t *testing.T) {
			_, err := c.Start(t.Context(), spec("bad", "fail", socket))
			if err == nil || !strings.Contains(err.Error(), "runtime: no such container") {
				t.Errorf("error %v", err)
			}
			if _, err := c.Get(t.Context(), "bad"); !errors.Is(err, keeper.ErrUnknown) {
				t.Errorf("Get: %v", err)
			}
		})
	}
}
