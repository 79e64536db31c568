package qmp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Message is one message from QEMU: exactly one of its kinds is set (QEMU, docs/interop/qmp-spec.rst).
type Message struct {
	Greeting *Greeting
	Return   json.RawMessage // of a command, with ID
	Error    *Error          // of a command, with ID where QEMU could read the command
	Event    *Event
	ID       uint64 // of the command that this answers
	HasID    bool
}

// Greeting is what QEMU opens a connection with.
type Greeting struct {
	Version struct {
		QEMU struct {
			Major int `json:"major"`
			Minor int `json:"minor"`
			Micro int `json:"micro"`
		} `json:"qemu"`
		Package string `json:"package"`
	} `json:"version"`
	Capabilities []string `json:"capabilities"`
}

// String writes the version as QEMU's own --version does: "7.2.22".
func (g *Greeting) String() string {
	v := g.Version.QEMU
	return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)
}

// Event is something that happened in QEMU.
type Event struct {
	Name string
	Data json.RawMessage
	Time time.Time // of QEMU's clock; zero where it had none
}

// Error is QEMU's refusal of a command.
type Error struct {
	Class string `json:"class"` // "GenericError", "CommandNotFound", "DeviceNotFound", …
	Desc  string `json:"desc"`  // for people
}

func (e *Error) Error() string { return e.Desc }

// IsClass tells whether err is QEMU's refusal with an error of the class.
func IsClass(err error, class string) bool {
	var refused *Error
	return errors.As(err, &refused) && refused.Class == class
}

// form is a message as it is written.
type form struct {
	QMP       *Greeting       `json:"QMP"`
	Return    json.RawMessage `json:"return"`
	Error     *Error          `json:"error"`
	Event     *string         `json:"event"`
	Data      json.RawMessage `json:"data"`
	ID        json.RawMessage `json:"id"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// Decode reads one message. An ID that is none of ours (ours are whole numbers) counts as one that nobody waits for.
func Decode(line []byte) (Message, error) {
	var f form
	if err := json.Unmarshal(line, &f); err != nil {
		return Message{}, fmt.Errorf("not a QMP message: %w", err)
	}
	var m Message
	kinds := 0
	if f.QMP != nil {
		m.Greeting, kinds = f.QMP, kinds+1
	}
	if f.Return != nil {
		m.Return, kinds = f.Return, kinds+1
	}
	if f.Error != nil {
		m.Error, kinds = f.Error, kinds+1
	}
	if f.Event != nil {
		m.Event, kinds = &Event{Name: *f.Event, Data: f.Data}, kinds+1
		// QEMU writes -1 for both where the host's clock failed it.
		if t := f.Timestamp; t.Seconds > 0 {
			m.Event.Time = time.Unix(t.Seconds, t.Microseconds*1000)
		}
	}
	if kinds != 1 {
		return Message{}, fmt.Errorf("not a QMP message: it is of %d kinds at once", kinds)
	}
	if m.Return != nil || m.Error != nil {
		m.HasID = len(f.ID) > 0 && !bytes.Equal(f.ID, []byte("null"))
		if m.HasID && json.Unmarshal(f.ID, &m.ID) != nil {
			m.ID = 0 // ours begin with 1
		}
	}
	return m, nil
}

// command is what is sent: "execute", or "exec-oob" for one that QEMU runs at once, past those that wait.
type command struct {
	Execute   string `json:"execute,omitempty"`
	OOB       string `json:"exec-oob,omitempty"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id"`
}
