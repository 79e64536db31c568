package keeper

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// The protocol, on DIR/keeper.sock: the client sends a hello and the keeper answers with a welcome. Then either requests
// and replies follow, paired by their number, with events (number 0) between them; or, where the hello asked to attach,
// the connection is the guest's terminal: raw bytes from the keeper, frames to it. Hello, welcome, requests
// and replies are one line of JSON each; unknown fields are ignored, an unknown operation is answered with an error, so
// that a daemon can talk to the keeper that an older or newer one started.
const protocol = 1

var (
	// ErrUnknown says that the keeper knows no process of that ID.
	ErrUnknown = errors.New("no such process")
	// ErrEnded says that the process has ended and can't be signalled.
	ErrEnded = errors.New("process has ended")
	// ErrRunning says that the process still runs and can't be forgotten, or that the keeper still holds one.
	ErrRunning = errors.New("process is running")
	// ErrNoConsole says that a process has no console, or has lost it because its keeper was killed.
	ErrNoConsole = errors.New("process has no console")
)

type hello struct {
	Version int    `json:"version"`
	Attach  string `json:"attach,omitempty"` // ID of the process whose console the connection becomes
}

type welcome struct {
	Version int      `json:"version"`
	PID     int      `json:"pid"`
	Error   *failure `json:"error,omitempty"`
}

type operation string

const (
	opStart    operation = "start"
	opGet      operation = "get"
	opList     operation = "list"
	opSignal   operation = "signal"
	opForget   operation = "forget"
	opShutdown operation = "shutdown"
)

type request struct {
	Seq     uint64        `json:"seq"`
	Op      operation     `json:"op"`
	ID      string        `json:"id,omitempty"`
	Spec    *Spec         `json:"spec,omitempty"`
	Signal  int           `json:"signal,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"` // of a start
}

// reply answers the request of its number. With number 0 it is an event: a process became ready, or ended.
type reply struct {
	Seq    uint64   `json:"seq"`
	Error  *failure `json:"error,omitempty"`
	Status *Status  `json:"status,omitempty"`
	List   []Status `json:"list,omitempty"`

	shutdown bool // the keeper ends once this is sent
}

// failure is an error on the wire.
type failure struct {
	Code    string `json:"code,omitempty"`
	Message string `json:"message"`
}

var codes = map[string]error{
	"unknown": ErrUnknown, "ended": ErrEnded, "running": ErrRunning, "noConsole": ErrNoConsole, "deadline": context.DeadlineExceeded,
}

func encodeError(err error) *failure {
	if err == nil {
		return nil
	}
	for code, known := range codes {
		if errors.Is(err, known) {
			return &failure{code, err.Error()}
		}
	}
	return &failure{"", err.Error()}
}

// remoteError is a keeper's failure at the client: its message, and errors.Is on what it stands for.
type remoteError struct {
	message string
	known   error
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error { return e.known }

func decodeError(f *failure) error {
	if f == nil {
		return nil
	}
	return &remoteError{f.Message, codes[f.Code]}
}

// Frames from an attached client: kind, length (big endian, 2 bytes), payload.
const (
	frameInput  = 0 // bytes typed
	frameResize = 1 // rows, columns: 2 bytes each, big endian
	frameMax    = 4096
)

// WinSize is the size of a terminal, in characters.
type WinSize struct{ Rows, Cols uint16 }

func appendFrame(b []byte, kind byte, payload []byte) []byte {
	b = append(b, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	return append(b, payload...)
}

// readFrame reads one frame; the payload is in buf, which holds frameMax bytes.
func readFrame(r io.Reader, buf []byte) (kind byte, payload []byte, err error) {
	var head [3]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := int(binary.BigEndian.Uint16(head[1:]))
	if n > len(buf) {
		return 0, nil, fmt.Errorf("frame of %d bytes", n)
	}
	_, err = io.ReadFull(r, buf[:n])
	return head[0], buf[:n], err
}
