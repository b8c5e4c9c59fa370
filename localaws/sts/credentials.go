package sts

import (
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/sigv4"
)

// Session is what a session token carries.
type Session struct {
	Identity
	AccessKey string `json:"Key"`
	// Ends is in seconds since 1970.
	Ends int64 `json:"Ends"`
	// Role is the ARN of the role that was assumed; empty for other identities.
	Role string `json:"Role,omitempty"`
	// SourceIdentity is whom the first role of a chain was assumed for; empty for nobody.
	SourceIdentity string `json:"SourceIdentity,omitempty"`
	// Padding makes the token as long as the caller asked.
	Padding string `json:"Padding,omitempty"`
}

const (
	purposeToken  = "sts session token"
	purposeSecret = "sts secret key"
)

// maxTokenBytes is AWS's limit of a session token.
const maxTokenBytes = 4096

// sizeInput asks for a session token of a least size.
type sizeInput struct {
	MinimumSessionTokenSize *int `json:"MinimumSessionTokenSize"`
}

// sizeOutput is how large a session token is, in bytes and in percent of the most.
type sizeOutput struct {
	SessionTokenSize        int `json:"SessionTokenSize"`
	SessionTokenUtilization int `json:"SessionTokenUtilization"`
}

func (in sizeInput) check(c *checks) {
	c.number("minimumSessionTokenSize", in.MinimumSessionTokenSize, 0, maxTokenBytes, 0)
}

func (in sizeInput) least() int {
	if in.MinimumSessionTokenSize == nil {
		return 0
	}
	return *in.MinimumSessionTokenSize
}

func (c *credentials) size() sizeOutput {
	n := len(c.SessionToken)
	return sizeOutput{n, (100*n + maxTokenBytes - 1) / maxTokenBytes}
}

// credentials are temporary ones as they are given out.
type credentials struct {
	AccessKeyID     string   `json:"AccessKeyId"`
	SecretAccessKey string   `json:"SecretAccessKey"`
	SessionToken    string   `json:"SessionToken"`
	Expiration      api.Time `json:"Expiration"`
}

// issue makes credentials for a session that hold for that many seconds, with a session token of at
// least so many bytes. Of the session, access key and end are filled in.
func (s *Service) issue(session Session, seconds, least int) *credentials {
	ends := s.clock.Now().Add(time.Duration(seconds) * time.Second).Truncate(time.Second)
	session.AccessKey, session.Ends = s.newKey("ASIA", session.Account), ends.Unix()
	token := s.seal(session)
	if len(token) < least {
		session.Padding = "." // with its name in JSON
		token = s.seal(session)
		session.Padding += strings.Repeat(".", max(0, (least-len(token)+1)*3/4))
		token = s.seal(session)
	}
	return &credentials{
		AccessKeyID: session.AccessKey, SecretAccessKey: s.secret(session.AccessKey),
		SessionToken: token, Expiration: api.Time{Time: ends},
	}
}

func (s *Service) seal(session Session) string {
	content, err := json.Marshal(session)
	if err != nil {
		panic(err) // strings and a number always encode
	}
	return s.key.Seal(purposeToken, content)
}

// secret returns the secret of an access key that was given out here.
func (s *Service) secret(accessKey string) string {
	sum := s.key.Derive(purposeSecret, accessKey)
	return base64.StdEncoding.EncodeToString(sum[:30]) // forty characters, like AWS's
}

// Open returns what a session token carries. It returns an *api.Error for a token that was not
// made here for that access key, or is over.
func (s *Service) Open(accessKey, token string) (*Session, error) {
	content, ok := s.key.Open(purposeToken, token)
	if !ok {
		return nil, sigv4.ErrUnknownKey
	}
	var session Session
	if err := json.Unmarshal(content, &session); err != nil || session.AccessKey != accessKey {
		return nil, sigv4.ErrUnknownKey
	}
	if s.clock.Now().Unix() >= session.Ends {
		return nil, sigv4.ErrExpiredToken
	}
	return &session, nil
}

// Secret returns the secret key of temporary credentials; its errors are those of Open.
func (s *Service) Secret(accessKey, token string) (string, error) {
	if _, err := s.Open(accessKey, token); err != nil {
		return "", err
	}
	return s.secret(accessKey), nil
}

// An access key is four letters for its kind and 80 bits in base 32: a first bit that is set, the
// account in 40, and the rest at random.
var keyText = base32.StdEncoding

const maxAccount = 999_999_999_999

func (s *Service) newKey(kind, account string) string {
	number, err := strconv.ParseUint(account, 10, 40)
	if err != nil {
		number = 0 // an account that is no number; its keys then name none
	}
	var raw [16]byte
	random := s.ids.Uint64()
	binary.BigEndian.PutUint64(raw[:8], 1<<63|number<<23|random>>41)
	binary.BigEndian.PutUint16(raw[8:10], uint16(random))
	return kind + keyText.EncodeToString(raw[:10])
}

// idChars is how long an identifier of IAM is, its kind included.
const idChars = 21

// newID returns an identifier that always follows from a name: the role id of a role's ARN.
func (s *Service) newID(kind, name string) string {
	sum := s.key.Derive("sts id", name)
	return (kind + keyText.EncodeToString(sum[:]))[:idChars]
}

// accountOfKey returns the account in a temporary access key.
func accountOfKey(key string) (string, bool) {
	if len(key) != 20 || key[:4] != "ASIA" {
		return "", false
	}
	raw, err := keyText.DecodeString(key[4:])
	if err != nil || raw[0]&0x80 == 0 {
		return "", false
	}
	number := binary.BigEndian.Uint64(raw[:8]) >> 23 & (1<<40 - 1)
	return fmt.Sprintf("%012d", number), number <= maxAccount
}
