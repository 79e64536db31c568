package dir

import (
	"crypto/rand"
	"encoding/binary"
)

func randomUint32() uint32 {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand
	return binary.LittleEndian.Uint32(b[:])
}
