package api

import (
	"encoding/hex"
	"math/rand/v2"
	"sync"
)

// IDs makes identifiers; the same seed makes the same ones in the same order.
type IDs struct {
	mu     sync.Mutex
	random *rand.Rand
}

// NewIDs returns a source that follows the seed.
func NewIDs(seed uint64) *IDs { return &IDs{random: rand.New(rand.NewPCG(seed, 0x1d5))} }

// Uint64 returns 64 random bits.
func (s *IDs) Uint64() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.random.Uint64()
}

// UUID returns a version 4 UUID.
func (s *IDs) UUID() string {
	s.mu.Lock()
	hi, lo := s.random.Uint64(), s.random.Uint64()
	s.mu.Unlock()
	var b [16]byte
	for i := range 8 {
		b[i], b[8+i] = byte(hi>>(8*i)), byte(lo>>(8*i))
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	var text [36]byte
	hex.Encode(text[0:8], b[0:4])
	hex.Encode(text[9:13], b[4:6])
	hex.Encode(text[14:18], b[6:8])
	hex.Encode(text[19:23], b[8:10])
	hex.Encode(text[24:], b[10:])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	return string(text[:])
}
