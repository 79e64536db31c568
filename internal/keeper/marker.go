package keeper

import "bytes"

// marker finds a text in a stream that is read in pieces.
type marker struct {
	text  []byte
	carry []byte // the end of what was read, shorter than text
}

// saw reports whether the text appeared with this piece.
func (m *marker) saw(p []byte) bool {
	joined := append(m.carry, p...)
	if bytes.Contains(joined, m.text) {
		return true
	}
	keep := min(len(joined), len(m.text)-1)
	m.carry = append(m.carry[:0], joined[len(joined)-keep:]...)
	return false
}
