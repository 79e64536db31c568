package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
)

type servers = kind[api.Server, api.ServerSpec]

func (a *app) consoleCommand(k *servers) *cobra.Command {
	var keys string
	cmd := &cobra.Command{
		Use: "console NAME", Short: "Attach to a server's console", Args: exactly("NAME"), ValidArgsFunction: k.names,
		RunE: func(cmd *cobra.Command, args []string) error {
			detach, err := parseKeys(keys)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			console, err := c.Console(ctx, a.tenant, args[0])
			if err != nil {
				return err
			}
			defer console.Close() //nolint:errcheck // detached either way
			fmt.Fprintf(cmd.ErrOrStderr(), "attached to %s; detach with %s\n", args[0], keys)
			return attach(ctx, cmd, console, args[0], detach)
		},
	}
	cmd.Flags().StringVar(&keys, "detach-keys", "ctrl-]", "keys that detach, separated by commas: ctrl-X, or a character")
	return cmd
}

// attach joins the terminal and a console until either side ends it, or the detach keys are typed.
func attach(ctx context.Context, cmd *cobra.Command, console *client.Console, name string, detach []byte) error {
	restore, err := rawTerminal(cmd.InOrStdin())
	if err != nil {
		return err
	}
	defer restore()
	sizes := windowSizes(ctx, cmd.OutOrStdout())
	typed := make(chan error, 1)
	printed := make(chan error, 1)
	activity := make(chan struct{}, 1)
	var quiet <-chan time.Time // set once the input has ended
	var refused error          // what the console said to the last input
	input := &detacher{r: cmd.InOrStdin(), keys: detach}
	go func() {
		_, err := io.Copy(console, input)
		typed <- err
	}()
	go func() {
		_, err := io.Copy(heard{cmd.OutOrStdout(), activity}, console)
		printed <- err
	}()
	ending := ""
	for ending == "" {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case size := <-sizes:
			if refused = console.Resize(size); refused != nil {
				sizes, quiet = nil, time.After(silence)
			}
		case err := <-typed:
			switch {
			case errors.Is(err, errDetached):
				ending = "detached from " + name
			case input.err != nil && !errors.Is(input.err, io.EOF):
				return input.err
			case err != nil:
				refused = err // it is closed, or lost: its output tells which
			}
			typed, quiet = nil, time.After(silence)
		case <-activity:
			if quiet != nil {
				quiet = time.After(silence)
			}
		case <-quiet:
			if refused != nil {
				return fmt.Errorf("the connection to the console was lost: %w", refused)
			}
			ending = "detached from " + name
		case err := <-printed:
			if err != nil {
				return fmt.Errorf("the connection to the console was lost: %w", err)
			}
			ending = "the console of " + name + " was closed"
		}
	}
	restore()
	fmt.Fprintf(cmd.ErrOrStderr(), "\n%s\n", ending)
	return nil
}

// silence is how long a console whose input came from a file is listened to after its last output.
const silence = time.Second

// heard tells of every write.
type heard struct {
	io.Writer
	activity chan<- struct{}
}

func (h heard) Write(p []byte) (int, error) {
	select {
	case h.activity <- struct{}{}:
	default:
	}
	return h.Writer.Write(p)
}

// rawTerminal hands every key to the guest. The function that it returns gives the terminal back, any number of times.
func rawTerminal(in io.Reader) (restore func(), err error) {
	f, ok := terminal(in)
	if !ok {
		return func() {}, nil
	}
	state, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("set the terminal to raw mode: %w", err)
	}
	return func() {
		term.Restore(int(f.Fd()), state) //nolint:errcheck // the terminal is gone
	}, nil
}

// windowSizes tells the size of the terminal, now and whenever it changes (SIGWINCH); nothing where there is none.
func windowSizes(ctx context.Context, out io.Writer) <-chan client.WinSize {
	f, ok := terminal(out)
	if !ok {
		return nil
	}
	sizes := make(chan client.WinSize)
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	go func() {
		defer signal.Stop(changed)
		for {
			if cols, rows, err := term.GetSize(int(f.Fd())); err == nil {
				select {
				case sizes <- client.WinSize{Rows: uint16(rows), Cols: uint16(cols)}:
				case <-ctx.Done():
					return
				}
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return sizes
}

var errDetached = errors.New("detached")

// detacher passes input on until the detach keys are typed. Keys that only begin like them are passed on late.
type detacher struct {
	r    io.Reader
	keys []byte
	held int // how many of the keys were typed
	out  []byte
	err  error
}

func (d *detacher) Read(p []byte) (int, error) {
	for len(d.out) == 0 {
		if d.err != nil {
			return 0, d.err
		}
		buf := make([]byte, len(p))
		n, err := d.r.Read(buf)
		d.err = err
		for _, b := range buf[:n] {
			if d.take(b) {
				d.err = errDetached
				break
			}
		}
	}
	n := copy(p, d.out)
	d.out = d.out[n:]
	return n, nil
}

// take handles one byte; it tells whether it was the last of the detach keys.
func (d *detacher) take(b byte) bool {
	if len(d.keys) == 0 {
		d.out = append(d.out, b)
		return false
	}
	if b != d.keys[d.held] {
		d.out = append(d.out, d.keys[:d.held]...)
		d.held = 0
	}
	if b == d.keys[d.held] {
		d.held++
		return d.held == len(d.keys)
	}
	d.out = append(d.out, b)
	return false
}

// parseKeys reads "ctrl-]" or "ctrl-p,ctrl-q"; an empty text is no keys at all.
func parseKeys(text string) ([]byte, error) {
	var keys []byte
	if text == "" {
		return nil, nil
	}
	for _, name := range strings.Split(text, ",") {
		letter, ctrl := strings.CutPrefix(strings.ToLower(name), "ctrl-")
		switch {
		case len(letter) != 1 || letter[0] > 126:
			return nil, usagef("--detach-keys %q: write keys as ctrl-] or a, separated by commas", text)
		case !ctrl:
			keys = append(keys, name[0])
		case letter[0] >= 'a' && letter[0] <= 'z':
			keys = append(keys, letter[0]-'a'+1)
		case letter[0] >= '@' && letter[0] <= '_':
			keys = append(keys, letter[0]-'@')
		default:
			return nil, usagef("--detach-keys %q: there is no ctrl-%s", text, letter)
		}
	}
	return keys, nil
}

func (a *app) logCommand(k *servers) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "log NAME", Short: "Show what a server's console printed", Args: exactly("NAME"), ValidArgsFunction: k.names,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			log, err := c.Log(cmd.Context(), a.tenant, args[0], follow)
			if err != nil {
				return err
			}
			defer log.Close() //nolint:errcheck // it was only read
			_, err = io.Copy(cmd.OutOrStdout(), log)
			switch {
			case err == nil || cmd.Context().Err() != nil:
				return nil
			case errors.Is(err, io.ErrUnexpectedEOF):
				return errors.New("the log broke off: the daemon has ended")
			}
			return fmt.Errorf("read the log: %w", err)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is printed from now on")
	return cmd
}
