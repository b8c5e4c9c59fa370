package sqs

import (
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
)

// handleBytes is a receipt handle: queue, message, nonce, checksum. The nonce makes the handle of
// every receive its own.
const handleBytes = 8 + 8 + 8 + 4

// handleChars is the length of a handle as text, in base64.
const handleChars = (handleBytes + 2) / 3 * 4

// receipt is what a handle says.
type receipt struct{ seq, nonce uint64 }

func (q *queue) appendHandle(text []byte, r receipt) []byte {
	var b [handleBytes]byte
	binary.BigEndian.PutUint64(b[0:], q.uid)
	binary.BigEndian.PutUint64(b[8:], r.seq)
	binary.BigEndian.PutUint64(b[16:], r.nonce)
	binary.BigEndian.PutUint32(b[24:], crc32.ChecksumIEEE(b[:24]))
	return base64.StdEncoding.AppendEncode(text, b[:])
}

// sign gives each delivery its handle. They come and go together, and so share one piece of memory.
func (q *queue) sign(got []delivery) {
	text := make([]byte, 0, len(got)*handleChars)
	for i := range got {
		text = q.appendHandle(text, got[i].receipt)
	}
	all := string(text)
	for i := range got {
		got[i].handle = all[i*handleChars : (i+1)*handleChars]
	}
}

func (q *queue) parseHandle(handle string) (receipt, error) {
	if handle == "" {
		return receipt{}, missing("ReceiptHandle")
	}
	var text, b [handleChars]byte
	n, err := base64.StdEncoding.Decode(b[:], text[:copy(text[:], handle)])
	if err != nil || len(handle) != handleChars || n != handleBytes || binary.BigEndian.Uint32(b[24:]) != crc32.ChecksumIEEE(b[:24]) ||
		binary.BigEndian.Uint64(b[:]) != q.uid {
		return receipt{}, errBadHandle.With("The input receipt handle %q is not a valid receipt handle.", handle)
	}
	return receipt{binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])}, nil
}
