// Package sts is AWS STS: who a caller is, and temporary credentials.
//
// Where to read: sts.go holds the service and the operations that name identities; assume.go,
// saml.go, privileged.go and session.go give out temporary credentials; credentials.go makes and
// opens them; token.go gives out a JWT, sign.go signs it; check.go is validation in AWS's words.
//
// Nothing is kept. A session token carries the identity it stands for and its end, sealed with the
// key of this AWS; the secret key follows from the access key. Any role may be assumed by anybody,
// and any assertion is believed: there is no IAM here that could refuse.
package sts

import (
	"context"
	"net/http"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/arn"
	"github.com/stepfleet/stepfleet/localaws/clock"
	"github.com/stepfleet/stepfleet/localaws/seal"
)

// Options is what the service needs from outside; every field is required.
type Options struct {
	Clock clock.Clock
	IDs   *api.IDs
	Key   seal.Key
}

// Service is STS.
type Service struct {
	clock   clock.Clock
	ids     *api.IDs
	key     seal.Key
	signers signers
}

// New returns an STS. Those with one key take each other's session tokens.
func New(o Options) *Service {
	return &Service{clock: o.Clock, ids: o.IDs, key: o.Key, signers: newSigners()}
}

// API returns the service's table of operations.
func (s *Service) API() api.Service {
	return api.Service{
		Name: "sts", Namespace: "com.amazonaws.sts",
		Query: &api.Query{Version: "2011-06-15", Namespace: "https://sts.amazonaws.com/doc/2011-06-15/"},
		Ops: map[string]api.Operation{
			"GetCallerIdentity":          api.Op(s.getCallerIdentity),
			"GetAccessKeyInfo":           api.Op(s.getAccessKeyInfo),
			"AssumeRole":                 api.Op(s.assumeRole),
			"AssumeRoleWithSAML":         api.Op(s.assumeRoleWithSAML).Unsigned(),
			"AssumeRoleWithWebIdentity":  api.Op(s.assumeRoleWithWebIdentity).Unsigned(),
			"AssumeRoot":                 api.Op(s.assumeRoot),
			"GetDelegatedAccessToken":    api.Op(s.getDelegatedAccessToken),
			"GetWebIdentityToken":        api.Op(s.getWebIdentityToken),
			"GetSessionToken":            api.Op(s.getSessionToken),
			"GetFederationToken":         api.Op(s.getFederationToken),
			"DecodeAuthorizationMessage": api.Op(s.decodeAuthorizationMessage),
		},
	}
}

// Identity is who a caller is.
type Identity struct {
	Account string `json:"Account"`
	ARN     string `json:"Arn"`
	UserID  string `json:"UserId"`
}

// caller returns who makes the call: the holder of a session token of ours, or the root of the
// account that the call is for.
func (s *Service) caller(c *api.Call) (session Session, temporary bool) {
	if session, err := s.Open(c.AccessKey, c.SessionToken); err == nil {
		return *session, true
	}
	return Session{Identity: rootOf(arn.Partition(c.Region), c.Account)}, false
}

func rootOf(partition, account string) Identity {
	root := arn.ARN{Partition: partition, Service: "iam", Account: account, Resource: "root"}
	return Identity{Account: account, ARN: root.String(), UserID: account}
}

// principal returns the ARN of whom the session acts for: the role, where it is one's.
func (s *Session) principal() string {
	if s.Role != "" {
		return s.Role
	}
	return s.ARN
}

func (s *Service) getCallerIdentity(ctx context.Context, _ *struct{}) (*Identity, error) {
	caller, _ := s.caller(api.CallOf(ctx))
	return &caller.Identity, nil
}

type getAccessKeyInfoInput struct {
	AccessKeyID string `json:"AccessKeyId"`
}

type getAccessKeyInfoOutput struct {
	Account string `json:"Account"`
}

var keyPattern = newPattern(`[\w]*`)

// getAccessKeyInfo knows the accounts of keys that are account numbers and of those given out here.
// AWS reads the account out of any key; here a key that was made up belongs to the caller's account,
// where its calls go.
func (s *Service) getAccessKeyInfo(ctx context.Context, in *getAccessKeyInfoInput) (*getAccessKeyInfoOutput, error) {
	var c checks
	c.length("accessKeyId", in.AccessKeyID, 12, 128)
	c.pattern("accessKeyId", in.AccessKeyID, keyPattern)
	if err := c.err(); err != nil {
		return nil, err
	}
	if arn.IsAccount(in.AccessKeyID) {
		return &getAccessKeyInfoOutput{in.AccessKeyID}, nil
	}
	if account, ok := accountOfKey(in.AccessKeyID); ok {
		return &getAccessKeyInfoOutput{account}, nil
	}
	return &getAccessKeyInfoOutput{api.CallOf(ctx).Account}, nil
}

type decodeAuthorizationMessageInput struct {
	EncodedMessage string `json:"EncodedMessage"`
}

var errInvalidMessage = &api.Error{
	Type: "InvalidAuthorizationMessageException", Status: http.StatusBadRequest, Message: "Message is not valid",
}

// decodeAuthorizationMessage refuses every message: nothing here encodes one.
func (s *Service) decodeAuthorizationMessage(_ context.Context, in *decodeAuthorizationMessageInput) (*api.Empty, error) {
	var c checks
	c.length("encodedMessage", in.EncodedMessage, 1, 10_240)
	if err := c.err(); err != nil {
		return nil, err
	}
	return nil, errInvalidMessage
}
