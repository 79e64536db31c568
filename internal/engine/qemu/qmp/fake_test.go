package qmp

import (
	"bufio"
	"encoding/json"
	"net"
	"testing"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "test"}, "capabilities": ["oob"]}}`

// fake is the other end of a connection: a QEMU that does what a test makes it do.
type fake struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Scanner
}

// received is a command as the fake got it.
type received struct {
	Execute   string          `json:"execute"`
	OOB       string          `json:"exec-oob"`
	Arguments json.RawMessage `json:"arguments"`
	ID        json.RawMessage `json:"id"`
}

// newFake makes a connection whose fake end has not greeted yet.
func newFake(t *testing.T) (*fake, net.Conn) {
	ours, theirs := net.Pipe()
	t.Cleanup(func() { _ = ours.Close(); _ = theirs.Close() })
	return &fake{t: t, conn: theirs, in: bufio.NewScanner(theirs)}, ours
}

// connected makes a fake that has greeted and negotiated, and a client of it.
func connected(t *testing.T, events *Events) (*fake, *Client) {
	f, conn := newFake(t)
	go func() {
		f.say(greeting)
		f.answer(f.next(), `{}`)
	}()
	c, err := New(t.Context(), conn, events)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return f, c
}

func (f *fake) say(text string) {
	_, _ = f.conn.Write([]byte(text + "\r\n"))
}

func (f *fake) next() received {
	var r received
	if f.in.Scan() {
		if err := json.Unmarshal(f.in.Bytes(), &r); err != nil {
			f.t.Errorf("the client sent %q: %v", f.in.Bytes(), err)
		}
	}
	return r
}

func (f *fake) answer(r received, result string) {
	f.say(`{"return": ` + result + `, "id": ` + string(r.ID) + `}`)
}
