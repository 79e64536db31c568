// Package frame is the framing of the console and exec streams over WebSocket (RFC 6455). It is pure.
//
// Every message is binary. Its first byte is the channel, the rest is data:
//
//	0 stdin    client to server; a message without data is the end of input
//	1 stdout   server to client; a console has only this one
//	2 stderr   server to client; unused with a terminal
//	3 control  JSON, one Control object
//
// The server ends an exec with exactly one control message that has exit or error, then closes the socket.
package frame

import (
	"encoding/json"
	"errors"

	"github.com/croftproject/croft/api"
)

// Channel is what the data of a message belongs to.
type Channel byte

const (
	Stdin Channel = iota
	Stdout
	Stderr
	Ctl
)

// Limit is the most bytes that one message may have; both sides read no more.
const Limit = 64 << 10

// Control is a message on the control channel; one of its fields is set.
type Control struct {
	Resize *Size        `json:"resize,omitempty"` // client to server: the terminal's new size
	Exit   *int         `json:"exit,omitempty"`   // server to client: the process ended with this code
	Error  *api.Problem `json:"error,omitempty"`  // server to client: the process could not be run
}

// Size of a terminal, in characters.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// ErrEmpty says that a message had no channel byte.
var ErrEmpty = errors.New("message without a channel")

// Encode makes a message.
func Encode(c Channel, data []byte) []byte {
	message := make([]byte, 1+len(data))
	message[0] = byte(c)
	copy(message[1:], data)
	return message
}

// EncodeControl makes a control message.
func EncodeControl(c Control) []byte {
	data, err := json.Marshal(c)
	if err != nil {
		panic(err) // the type has nothing that can't be encoded
	}
	return Encode(Ctl, data)
}

// Decode splits a message; data shares its memory.
func Decode(message []byte) (c Channel, data []byte, err error) {
	if len(message) == 0 {
		return 0, nil, ErrEmpty
	}
	return Channel(message[0]), message[1:], nil
}

// DecodeControl reads the data of a control message.
func DecodeControl(data []byte) (c Control, err error) {
	err = json.Unmarshal(data, &c)
	return c, err
}
