// Package qmp speaks to QEMU by its machine protocol (QEMU, docs/interop/qmp-spec.rst).
//
// One goroutine reads and hands on: answers to whoever waits for them, by id, and events to queues that never block it.
// QEMU runs guests of strangers and may be dead, hung or taken over, so nothing that it sends or fails to send holds a
// caller longer than its context, and a message is bounded in size. A message that is none ends the connection.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// ErrLost says that the connection to QEMU is gone; it is wrapped with the cause.
var ErrLost = errors.New("connection to QEMU lost")

// MessageLimit is the longest message that is taken, in bytes. QEMU's own are far below it.
const MessageLimit = 16 << 20

// Client is a connection to one QEMU. Its methods may be called concurrently.
type Client struct {
	conn     net.Conn
	greeting Greeting
	oob      bool
	writing  chan struct{} // holds a token while nobody writes

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan Message
	queues  []*Events
	err     error
	done    chan struct{}
}

// New takes QEMU's greeting on conn and negotiates, with out-of-band commands where QEMU offers them. events, if not
// nil, gets every event from the beginning. The client owns conn from now on, even on error.
func New(ctx context.Context, conn net.Conn, events *Events) (*Client, error) {
	c := &Client{
		conn:    conn,
		writing: make(chan struct{}, 1),
		waiting: map[uint64]chan Message{},
		done:    make(chan struct{}),
	}
	c.writing <- struct{}{}
	if events != nil {
		c.queues = append(c.queues, events)
	}
	greeted := make(chan Greeting, 1)
	go c.read(greeted)
	if err := c.negotiate(ctx, greeted); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("negotiate with QEMU: %w", err)
	}
	return c, nil
}

func (c *Client) negotiate(ctx context.Context, greeted <-chan Greeting) error {
	select {
	case c.greeting = <-greeted:
	case <-c.done:
		return c.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
	type enable struct {
		Enable []string `json:"enable,omitempty"`
	}
	var wanted enable
	if slices.Contains(c.greeting.Capabilities, "oob") {
		wanted.Enable = []string{"oob"}
	}
	if err := c.Execute(ctx, "qmp_capabilities", wanted, nil); err != nil {
		return err
	}
	c.oob = wanted.Enable != nil
	return nil
}

// Greeting is what QEMU said of itself.
func (c *Client) Greeting() Greeting { return c.greeting }

// Subscribe gives a queue all events from now on.
func (c *Client) Subscribe(events *Events) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		events.close(c.err)
		return
	}
	c.queues = append(c.queues, events)
}

// Execute runs a command and decodes what it returns into result. arguments and result may be nil. Where QEMU refuses,
// the error wraps *Error; where the connection is lost, ErrLost; where ctx ends first, its error, and the answer is
// dropped when it comes.
func (c *Client) Execute(ctx context.Context, name string, arguments, result any) error {
	return c.do(ctx, name, command{Execute: name, Arguments: arguments}, result)
}

// ExecuteNow is Execute for commands that QEMU can run out of band (qmp-spec, 2.3.1), past one that hangs. Where that
// was not negotiated it is Execute.
func (c *Client) ExecuteNow(ctx context.Context, name string, arguments, result any) error {
	if !c.oob {
		return c.Execute(ctx, name, arguments, result)
	}
	return c.do(ctx, name, command{OOB: name, Arguments: arguments}, result)
}

func (c *Client) do(ctx context.Context, name string, cmd command, result any) error {
	answer, err := c.send(ctx, cmd)
	if err == nil && answer.Error != nil {
		err = answer.Error
	}
	if err == nil && result != nil {
		err = json.Unmarshal(answer.Return, result)
	}
	if err != nil {
		return fmt.Errorf("qmp %s: %w", name, err)
	}
	return nil
}

// send writes a command and waits for its answer.
func (c *Client) send(ctx context.Context, cmd command) (Message, error) {
	answer := make(chan Message, 1)
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return Message{}, c.err
	}
	c.last++
	cmd.ID = c.last
	c.waiting[cmd.ID] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, cmd.ID)
		c.mu.Unlock()
	}()

	line, err := json.Marshal(cmd)
	if err != nil {
		return Message{}, err
	}
	if err := c.write(ctx, append(line, '\n')); err != nil {
		return Message{}, err
	}
	select {
	case m := <-answer:
		return m, nil
	case <-ctx.Done():
		return Message{}, ctx.Err()
	case <-c.done:
		// The answer may have been the last thing that was read.
		select {
		case m := <-answer:
			return m, nil
		default:
			return Message{}, c.Err()
		}
	}
}

// write sends one line, whole. A line that ctx cut in the middle would spoil the stream, so then the connection ends.
func (c *Client) write(ctx context.Context, line []byte) error {
	select {
	case <-c.writing:
	case <-c.done:
		return c.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { c.writing <- struct{}{} }()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.conn.SetWriteDeadline(time.Time{}); err != nil {
		return c.fail(err)
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.conn.SetWriteDeadline(time.Unix(1, 0))
		close(fired)
	})
	n, err := c.conn.Write(line)
	if !stop() {
		<-fired // or it would cut the next line
	}
	if err == nil {
		return nil
	}
	if n == 0 && ctx.Err() != nil {
		return ctx.Err()
	}
	return c.fail(err)
}

// read is the goroutine that reads all messages until the connection ends.
func (c *Client) read(greeted chan<- Greeting) {
	lines := bufio.NewScanner(c.conn)
	lines.Buffer(nil, MessageLimit)
	for lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue
		}
		m, err := Decode(lines.Bytes())
		if err != nil {
			_ = c.fail(err)
			return
		}
		if err := c.dispatch(m, greeted); err != nil {
			_ = c.fail(err)
			return
		}
	}
	err := lines.Err()
	if err == nil {
		err = io.EOF
	}
	_ = c.fail(err)
}

func (c *Client) dispatch(m Message, greeted chan<- Greeting) error {
	switch {
	case m.Greeting != nil:
		select {
		case greeted <- *m.Greeting:
			return nil
		default:
			return errors.New("QEMU greeted twice")
		}
	case m.Event != nil:
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, queue := range c.queues {
			queue.add(*m.Event)
		}
		return nil
	case !m.HasID:
		// Without an ID the answer belongs to a command that QEMU could not read; whose it was can't be told.
		return fmt.Errorf("QEMU answered a command that it can't name: %v", m.Error)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if answer := c.waiting[m.ID]; answer != nil {
		delete(c.waiting, m.ID) // a second answer with this ID is dropped
		answer <- m
	}
	return nil
}

// fail ends the connection for everyone who waits, and tells why. The first reason stays.
func (c *Client) fail(cause error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = fmt.Errorf("%w: %w", ErrLost, cause)
		close(c.done)
		_ = c.conn.Close()
		for _, queue := range c.queues {
			queue.close(c.err)
		}
	}
	return c.err
}

// Done is closed when the connection is gone.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is why the connection is gone; nil while it stands.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection. QEMU and its guest go on.
func (c *Client) Close() error {
	_ = c.fail(net.ErrClosed)
	return nil
}
