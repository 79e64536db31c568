package mconsole

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// The packets are those of arch/um/drivers/mconsole.h in the Linux tree: three 32-bit words in the host's byte order
// and up to 512 bytes of data.
const (
	magic    = 0xcafebabe
	version  = 2
	header   = 12
	maxData  = 512
	maxReply = 1 << 20 // most bytes of a reply of several packets that are kept
)

// errPacket says that a packet is no reply.
var errPacket = errors.New("malformed reply")

// encode writes a request. The data field ends with a zero byte that is not counted.
func encode(command string) ([]byte, error) {
	if len(command) >= maxData || strings.ContainsRune(command, 0) {
		return nil, fmt.Errorf("command of %d bytes does not fit a request", len(command))
	}
	packet := make([]byte, header, header+len(command))
	binary.NativeEndian.PutUint32(packet[0:], magic)
	binary.NativeEndian.PutUint32(packet[4:], version)
	binary.NativeEndian.PutUint32(packet[8:], uint32(len(command)))
	return append(packet, command...), nil
}

// reply is one packet of an answer.
type reply struct {
	failed bool
	more   bool // another packet follows
	data   []byte
}

func decode(packet []byte) (reply, error) {
	if len(packet) < header {
		return reply{}, fmt.Errorf("%w: %d bytes", errPacket, len(packet))
	}
	size := binary.NativeEndian.Uint32(packet[8:])
	if size > maxData || int(size) > len(packet)-header {
		return reply{}, fmt.Errorf("%w: says %d bytes of data, has %d", errPacket, size, len(packet)-header)
	}
	data := packet[header : header+int(size)]
	if n := len(data); n > 0 && data[n-1] == 0 {
		data = data[:n-1]
	}
	return reply{
		failed: binary.NativeEndian.Uint32(packet[0:]) != 0,
		more:   binary.NativeEndian.Uint32(packet[4:]) != 0,
		data:   data,
	}, nil
}
