package sts

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"sync"
)

// algorithms are those that a JWT can be signed by.
var algorithms = []string{"RS256", "ES384"}

// signers sign JWTs. Keys are made when they are first needed, and live as long as the service.
type signers struct {
	rsa   func() (*rsa.PrivateKey, error)
	ecdsa func() (*ecdsa.PrivateKey, error)
}

const rsaBits = 2048

func newSigners() signers {
	return signers{
		rsa:   sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, rsaBits) }),
		ecdsa: sync.OnceValues(func() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P384(), rand.Reader) }),
	}
}

// sign returns a JWT with that content.
func (s signers) sign(algorithm string, content []byte) (string, error) {
	if algorithm == "RS256" {
		return jwt(algorithm, "RSA_0", content, s.signRSA)
	}
	return jwt(algorithm, "EC384_0", content, s.signECDSA)
}

func jwt(algorithm, key string, content []byte, sign func(signed []byte) ([]byte, error)) (string, error) {
	header := fmt.Sprintf(`{"kid":%q,"typ":"JWT","alg":%q}`, key, algorithm)
	signed := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString(content)
	signature, err := sign([]byte(signed))
	if err != nil {
		return "", fmt.Errorf("sign a token by %s: %w", algorithm, err)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

func (s signers) signRSA(signed []byte) ([]byte, error) {
	key, err := s.rsa()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(signed)
	return rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
}

// signECDSA returns both numbers of a signature at their full length, as JWTs have them.
func (s signers) signECDSA(signed []byte) ([]byte, error) {
	key, err := s.ecdsa()
	if err != nil {
		return nil, err
	}
	sum := sha512.Sum384(signed)
	r, t, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		return nil, err
	}
	const half = 384 / 8
	signature := make([]byte, 2*half)
	r.FillBytes(signature[:half])
	t.FillBytes(signature[half:])
	return signature, nil
}
