package cli_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
)

// onTerminal runs croft on a real terminal. What it prints is gathered; expect waits for a text in it.
type onTerminal struct {
	*testing.T
	cmd  *exec.Cmd
	tty  *os.File
	read chan []byte
	seen bytes.Buffer
}

func startOnTerminal(t *testing.T, socket string, args ...string) *onTerminal {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Args[0] = "croft"
	return startCommandOnTerminal(t, socket, cmd)
}

func startCommandOnTerminal(t *testing.T, socket string, cmd *exec.Cmd) *onTerminal {
	t.Helper()
	cmd.Env = append(os.Environ(), "CROFT_SOCKET="+socket, "TERM=xterm", "NO_COLOR=")
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 30, Cols: 100})
	if err != nil {
		t.Fatal(err)
	}
	o := &onTerminal{T: t, cmd: cmd, tty: tty, read: make(chan []byte, 64)}
	t.Cleanup(func() {
		cmd.Process.Kill()
		tty.Close()
	})
	go func() {
		defer close(o.read)
		for {
			buf := make([]byte, 4096)
			n, err := tty.Read(buf)
			if n > 0 {
				o.read <- buf[:n]
			}
			if err != nil {
				return // EIO: the other side is closed
			}
		}
	}()
	return o
}

func (o *onTerminal) expect(want string) {
	o.Helper()
	timeout := time.After(20 * time.Second)
	for !strings.Contains(o.seen.String(), want) {
		select {
		case data, ok := <-o.read:
			if !ok {
				o.Fatalf("it ended before %q: %q", want, o.seen.String())
			}
			o.seen.Write(data)
		case <-timeout:
			o.Fatalf("no %q in %q", want, o.seen.String())
		}
	}
	_, rest, _ := strings.Cut(o.seen.String(), want)
	o.seen.Reset()
	o.seen.WriteString(rest)
}

func (o *onTerminal) typeKeys(text string) {
	o.Helper()
	if _, err := o.tty.WriteString(text); err != nil {
		o.Fatal(err)
	}
}

// end waits for the program and returns its exit code.
func (o *onTerminal) end() int {
	o.Helper()
	for data := range o.read {
		o.seen.Write(data)
	}
	err := o.cmd.Wait()
	if err != nil && o.cmd.ProcessState == nil {
		o.Fatal(err)
	}
	return o.cmd.ProcessState.ExitCode()
}

// raw tells whether the terminal hands every key on.
func (o *onTerminal) raw() bool {
	o.Helper()
	state, err := unix.IoctlGetTermios(int(o.tty.Fd()), unix.TCGETS)
	if err != nil {
		o.Fatal(err)
	}
	return state.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) == 0
}

func newServer(t *testing.T, socket, name string) {
	t.Helper()
	c, err := client.New(client.Options{Address: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Servers("default").Create(t.Context(), client.Create[api.ServerSpec]{Name: name, Spec: api.ServerSpec{Model: api.ModelOS, Image: "micro"}}); err != nil {
		t.Fatal(err)
	}
}

func TestConsoleOnTerminal(t *testing.T) {
	socket, _, guests := serve(t)
	newServer(t, socket, "web")
	o := startOnTerminal(t, socket, "server", "console", "web")
	o.expect("attached to web; detach with ctrl-]")
	o.expect("web login: ")
	<-guests.Resized()
	if s := guests.Sizes()[0]; s.Rows != 30 || s.Cols != 100 {
		t.Errorf("first size %+v", s)
	}
	if !o.raw() {
		t.Error("the terminal is not in raw mode")
	}
	o.typeKeys("root\x03") // ctrl-C is the guest's
	o.expect("ROOT\x03")
	if err := pty.Setsize(o.tty, &pty.Winsize{Rows: 50, Cols: 132}); err != nil {
		t.Fatal(err)
	}
	<-guests.Resized()
	if s := guests.Sizes(); s[len(s)-1].Rows != 50 || s[len(s)-1].Cols != 132 {
		t.Errorf("sizes %+v", s)
	}
	o.typeKeys("\x1d")
	o.expect("detached from web")
	if code := o.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if o.raw() {
		t.Error("the terminal is still in raw mode")
	}
}

func TestDetachKeysOfTwo(t *testing.T) {
	socket, _, _ := serve(t)
	newServer(t, socket, "web")
	o := startOnTerminal(t, socket, "server", "console", "web", "--detach-keys", "ctrl-p,ctrl-q")
	o.expect("web login: ")
	o.typeKeys("\x1d\x10x") // ctrl-p x is the guest's
	o.expect("\x1d\x10X")
	o.typeKeys("\x10\x10") // and so is the first of two ctrl-p
	o.expect("\x10")
	o.typeKeys("\x11")
	o.expect("detached from web")
	if code := o.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestExecOnTerminal(t *testing.T) {
	socket, _, _ := serve(t)
	newServer(t, socket, "web")
	o := startOnTerminal(t, socket, "server", "exec", "web", "size")
	o.expect("30x100")
	if code := o.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	o = startOnTerminal(t, socket, "server", "exec", "web", "line")
	o.typeKeys("hello\n")
	o.expect(`got "hello\n"`)
	if code := o.end(); code != 3 {
		t.Errorf("exit code %d", code)
	}
	if o.raw() {
		t.Error("the terminal is still in raw mode")
	}
}

// A shell's job in the background would be stopped if it read the terminal or set its mode.
func TestExecInBackground(t *testing.T) {
	socket, _, _ := serve(t)
	newServer(t, socket, "web")
	o := startCommandOnTerminal(t, socket, exec.Command("sh", "-c", "set -m; croft server exec web env & wait; croft server exec web cat & wait; echo over"))
	o.expect("tty=false")
	o.expect("over")
	if code := o.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// On a terminal progress is one line, and phases have colours.
func TestProgressOnTerminal(t *testing.T) {
	socket, _, _ := serve(t)
	o := startOnTerminal(t, socket, "server", "create", "web", "--model", "os", "--image", "micro", "--network", "corp")
	o.expect("\r\x1b[Kweb: creating… \x1b[32mrunning\x1b[0m (0.")
	o.expect(" s) 10.0.0.5\r\n")
	if code := o.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	o = startOnTerminal(t, socket, "server", "show", "nope")
	o.expect("\x1b[31merror:\x1b[0m there is no server")
	if code := o.end(); code != 1 {
		t.Errorf("exit code %d", code)
	}
	o = startOnTerminal(t, socket, "top", "--interval", "1s")
	o.expect("\x1b[HSERVER")
	o.expect("\x1b[J\x1b[HSERVER")
	o.typeKeys("\x03")
	if code := o.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// The whole program, from exec to exit, without a daemon's answer.
func TestProcessStartsFast(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	best := time.Hour
	for range 5 {
		cmd := exec.Command(exe, "server", "create", "--help")
		cmd.Args[0] = "croft"
		began := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatal(err, string(out))
		}
		best = min(best, time.Since(began))
	}
	t.Log(fmt.Sprint("best of five: ", best))
}
