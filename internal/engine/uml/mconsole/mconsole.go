// Package mconsole speaks to the management console of a User-Mode Linux kernel: a unix datagram socket on which the
// guest's kernel takes commands (Documentation/virt/uml/user_mode_linux_howto_v2.rst, "The UML management console").
//
// The socket lies in a directory that the guest's process can write to, and a guest's root can run code in that process.
// So nothing there is trusted: the socket is opened without following links and its owner is checked, the client's own
// socket lies elsewhere, and replies are bounded in size and time.
package mconsole

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrSilent says that the guest's kernel did not answer in time.
var ErrSilent = errors.New("the guest's kernel does not answer")

// Refused is the guest's kernel's answer that it did not do a command.
type Refused struct{ Command, Reason string }

func (r *Refused) Error() string { return fmt.Sprintf("%s refused: %s", r.Command, r.Reason) }

// Client sends commands to one guest. Its methods may be called concurrently; each command has a socket of its own.
type Client struct {
	// Dir and Name are the directory and name of the guest's socket: uml_dir/umid, and "mconsole".
	Dir, Name string
	// Local is a directory for the client's own sockets, which only the client can write to.
	Local string
	// Owner is the user that the guest's process runs as.
	Owner uint32
	// Timeout is the longest that the guest may take for a command; zero is 5 s.
	Timeout time.Duration
}

// New makes a client for the guest that was started with uml_dir=dir/.. and umid=base(dir), as user owner.
func New(dir, local string, owner uint32) *Client {
	return &Client{Dir: dir, Name: "mconsole", Local: local, Owner: owner}
}

// Version asks for the guest kernel's uname.
func (c *Client) Version(ctx context.Context) (string, error) { return c.Do(ctx, "version") }

// Stop halts the guest until Go. Stopping a stopped guest is no error.
func (c *Client) Stop(ctx context.Context) error { return c.unless(ctx, "stop", "Already stopped") }

// Go continues a stopped guest. Continuing a running guest is no error.
func (c *Client) Go(ctx context.Context) error { return c.unless(ctx, "go", "Not stopped") }

// CtrlAltDel presses Ctrl-Alt-Del: the guest's init decides what that means (reboot(2), LINUX_REBOOT_CMD_CAD_OFF).
func (c *Client) CtrlAltDel(ctx context.Context) error { return c.unless(ctx, "cad", "") }

// Halt ends the guest's kernel at once. It may end before it answers.
func (c *Client) Halt(ctx context.Context) error { return c.unless(ctx, "halt", "") }

// SysRq does what the magic key does (Documentation/admin-guide/sysrq.rst).
func (c *Client) SysRq(ctx context.Context, key byte) error {
	return c.unless(ctx, "sysrq "+string(rune(key)), "")
}

// Config reads the configuration of a device, such as "ubda".
func (c *Client) Config(ctx context.Context, device string) (string, error) {
	return c.Do(ctx, "config "+device)
}

// Configure changes the configuration of a device. For "mem" the value is "-64M" or "+64M": memory that the guest hands
// back to the host, or gets back of what it handed back.
func (c *Client) Configure(ctx context.Context, device, value string) error {
	return c.unless(ctx, "config "+device+"="+value, "")
}

// unless does a command whose refusal with the reason harmless is no error.
func (c *Client) unless(ctx context.Context, command, harmless string) error {
	_, err := c.Do(ctx, command)
	var refused *Refused
	if harmless != "" && errors.As(err, &refused) && refused.Reason == harmless {
		return nil
	}
	return err
}

// Do does a command and returns the answer. An answer that says no is a *Refused; fs.ErrNotExist is wrapped where the
// guest has no socket (yet).
func (c *Client) Do(ctx context.Context, command string) (string, error) {
	answer, err := c.do(ctx, command)
	if err != nil {
		return "", fmt.Errorf("mconsole: %w", err)
	}
	return answer, nil
}

var sockets atomic.Uint64

func (c *Client) do(ctx context.Context, command string) (string, error) {
	request, err := encode(command)
	if err != nil {
		return "", err
	}
	guest, err := c.open()
	if err != nil {
		return "", err
	}
	defer unix.Close(guest)
	local := filepath.Join(c.Local, fmt.Sprintf("mc%d.%d", os.Getpid(), sockets.Add(1)))
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: local})
	if err != nil {
		return "", err
	}
	defer os.Remove(local)
	defer conn.Close()
	// The guest's process answers to this socket, so it has to be able to write to it.
	if err := os.Lchown(local, int(c.Owner), -1); err != nil {
		return "", err
	}
	timeout := c.Timeout
	if timeout == 0 {
		timeout = 5 * time.Second
	}
	conn.SetDeadline(time.Now().Add(timeout))
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()

	to := &net.UnixAddr{Net: "unixgram", Name: fmt.Sprintf("/proc/self/fd/%d", guest)}
	if _, err := conn.WriteTo(request, to); err != nil {
		return "", c.wrap(ctx, err)
	}
	answer, failed, err := receive(conn)
	if err != nil {
		return "", c.wrap(ctx, err)
	}
	if failed {
		return "", &Refused{Command: command, Reason: answer}
	}
	return answer, nil
}

// open opens the guest's socket as a path descriptor, without following links.
func (c *Client) open() (int, error) {
	path := filepath.Join(c.Dir, c.Name)
	dir, err := unix.Open(c.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: c.Dir, Err: err}
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, c.Name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		unix.Close(fd)
		return -1, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFSOCK || stat.Uid != c.Owner {
		unix.Close(fd)
		return -1, fmt.Errorf("%s is not a socket of user %d", path, c.Owner)
	}
	return fd, nil
}

// receive puts the packets of an answer together.
func receive(conn *net.UnixConn) (answer string, failed bool, err error) {
	var data []byte
	packet := make([]byte, header+maxData+1)
	for {
		n, err := conn.Read(packet)
		if err != nil {
			return "", false, err
		}
		r, err := decode(packet[:n])
		if err != nil {
			return "", false, err
		}
		if len(data)+len(r.data) > maxReply {
			return "", false, fmt.Errorf("%w: more than %d bytes", errPacket, maxReply)
		}
		data = append(data, r.data...)
		failed = failed || r.failed
		if !r.more {
			return string(data), failed, nil
		}
	}
}

// wrap makes a deadline's error tell whose deadline it was.
func (c *Client) wrap(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ErrSilent
	}
	return err
}
