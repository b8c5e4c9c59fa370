package sqs

import (
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
)

// handleBytes is a receipt handle: queue, message, nonce, checksum. The nonce makes the handle of
// every receive its own.
const handleBytes = 8 + 8 + 8 + 4

// receipt is what a handle says.
type receipt struct{ seq, nonce uint64 }

func (q *queue) handle(m *message) string {
	var b [handleBytes]byte
	binary.BigEndian.PutUint64(b[0:], q.uid)
	binary.BigEndian.PutUint64(b[8:], m.seq)
	binary.BigEndian.PutUint64(b[16:], m.nonce)
	binary.BigEndian.PutUint32(b[24:], crc32.ChecksumIEEE(b[:24]))
	return base64.StdEncoding.EncodeToString(b[:])
}

func (q *queue) parseHandle(handle string) (receipt, error) {
	if handle == "" {
		return receipt{}, missing("ReceiptHandle")
	}
	b, err := base64.StdEncoding.DecodeString(handle)
	if err != nil || len(b) != handleBytes || binary.BigEndian.Uint32(b[24:]) != crc32.ChecksumIEEE(b[:24]) ||
		binary.BigEndian.Uint64(b) != q.uid {
		return receipt{}, errBadHandle.With("The input receipt handle %q is not a valid receipt handle.", handle)
	}
	return receipt{binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])}, nil
}
