// Package seal makes opaque texts that only their maker can make: tokens of list operations and of
// temporary credentials. A text says what it is for, so that one cannot stand for another, and is
// refused when a byte of it changed. Its content can be read by anybody who decodes it.
package seal

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
)

// Key seals and opens. Each AWS has one.
type Key [sha256.Size]byte

// NewKey returns the key that follows from a seed.
func NewKey(seed uint64) Key {
	return sha256.Sum256(binary.BigEndian.AppendUint64([]byte("localaws seal "), seed))
}

// tagBytes is the length of the code in front of the content.
const tagBytes = 16

// MaxBytes bounds a sealed text: the longest name of a metric, with its thirty dimensions, has room.
const MaxBytes = 64 << 10

// Seal returns content as a text for that purpose.
func (k Key) Seal(purpose string, content []byte) string {
	return base64.RawURLEncoding.EncodeToString(append(k.tag(purpose, content), content...))
}

// Open returns the content of a text that Seal made for the same purpose, and false for any other.
func (k Key) Open(purpose, text string) ([]byte, bool) {
	if len(text) > MaxBytes {
		return nil, false
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) < tagBytes {
		return nil, false
	}
	content := raw[tagBytes:]
	return content, hmac.Equal(raw[:tagBytes], k.tag(purpose, content))
}

// Derive returns bytes that follow from the key, a purpose and a name.
func (k Key) Derive(purpose, name string) [sha256.Size]byte {
	mac := hmac.New(sha256.New, k[:])
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(purpose))))
	mac.Write([]byte(purpose))
	mac.Write([]byte(name))
	return [sha256.Size]byte(mac.Sum(nil))
}

func (k Key) tag(purpose string, content []byte) []byte {
	sum := k.Derive("seal "+purpose, string(content))
	return sum[:tagBytes]
}
