package sts

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/arn"
)

// The limits of a role's sessions, in seconds. AWS has a further limit in each role, which IAM
// would know.
const (
	leastSeconds       = 900
	defaultRoleSeconds = 3_600
	mostRoleSeconds    = 43_200
	// mostChainedSeconds limits a role that is assumed with the credentials of another.
	mostChainedSeconds = 3_600
)

var namePattern = newPattern(`[\w+=,.@-]*`)

// roleInput is what both ways to assume a role share.
type roleInput struct {
	sizeInput
	RoleARN         string      `json:"RoleArn"`
	RoleSessionName string      `json:"RoleSessionName"`
	DurationSeconds *int        `json:"DurationSeconds"`
	Policy          string      `json:"Policy"`
	PolicyARNs      []policyARN `json:"PolicyArns"`
}

type policyARN struct {
	ARN string `json:"arn"`
}

type assumeRoleInput struct {
	roleInput
	ExternalID        string   `json:"ExternalId"`
	SerialNumber      string   `json:"SerialNumber"`
	TokenCode         string   `json:"TokenCode"`
	SourceIdentity    string   `json:"SourceIdentity"`
	Tags              []tag    `json:"Tags"`
	TransitiveTagKeys []string `json:"TransitiveTagKeys"`
}

type tag struct {
	Key   string `json:"Key"`
	Value string `json:"Value"`
}

type assumedRoleUser struct {
	AssumedRoleID string `json:"AssumedRoleId"`
	ARN           string `json:"Arn"`
}

type assumeRoleOutput struct {
	Credentials      *credentials     `json:"Credentials"`
	AssumedRoleUser  *assumedRoleUser `json:"AssumedRoleUser"`
	PackedPolicySize *int             `json:"PackedPolicySize"`
	SourceIdentity   string           `json:"SourceIdentity,omitempty"`
	sizeOutput
}

var (
	errMalformedPolicy = &api.Error{Type: "MalformedPolicyDocumentException", Code: "MalformedPolicyDocument", Status: http.StatusBadRequest}
	errInvalidToken    = &api.Error{
		Type: "InvalidIdentityTokenException", Code: "InvalidIdentityToken", Status: http.StatusBadRequest,
		Message: "The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)",
	}
	errTokenOver = &api.Error{Type: "ExpiredTokenException", Status: http.StatusBadRequest}
)

// check returns the role and for how long it is assumed.
func (in *roleInput) check(c *checks) (role arn.ARN, seconds int, err error) {
	in.sizeInput.check(c)
	c.length("roleArn", in.RoleARN, 20, 2048)
	c.length("roleSessionName", in.RoleSessionName, 2, 64)
	c.pattern("roleSessionName", in.RoleSessionName, namePattern)
	seconds = c.number("durationSeconds", in.DurationSeconds, leastSeconds, mostRoleSeconds, defaultRoleSeconds)
	if err := c.err(); err != nil {
		return arn.ARN{}, 0, err
	}
	role, err = arn.Parse(in.RoleARN)
	kind, _ := role.Split()
	if name := roleName(role); err != nil || role.Service != "iam" || !accountNumber.MatchString(role.Account) ||
		kind != "role" || name == "" || len(name) > maxRoleName {
		return arn.ARN{}, 0, errValidation.With("%s is invalid", in.RoleARN)
	}
	return role, seconds, checkPolicy(in.Policy)
}

// maxRoleName is IAM's limit.
const maxRoleName = 64

// roleName returns the name of a role without its path.
func roleName(role arn.ARN) string {
	return role.Resource[strings.LastIndexByte(role.Resource, '/')+1:]
}

func checkPolicy(policy string) error {
	var document map[string]any
	if policy != "" && json.Unmarshal([]byte(policy), &document) != nil {
		return errMalformedPolicy.With("Syntax errors in policy.")
	}
	return nil
}

// packedSize returns how much of the room for policies and tags a call uses, in percent; nil for
// one that has neither. AWS compresses them in a way that it does not publish.
func packedSize(policy string, policies []policyARN, tags []tag) *int {
	const room = 2048
	n := len(policy)
	for _, p := range policies {
		n += len(p.ARN)
	}
	for _, t := range tags {
		n += len(t.Key) + len(t.Value)
	}
	if n == 0 {
		return nil
	}
	percent := min(100, (100*n+room-1)/room)
	return &percent
}

func (s *Service) assumeRole(ctx context.Context, in *assumeRoleInput) (*assumeRoleOutput, error) {
	var c checks
	if in.SourceIdentity != "" {
		c.length("sourceIdentity", in.SourceIdentity, 2, 64)
		c.pattern("sourceIdentity", in.SourceIdentity, namePattern)
	}
	role, seconds, err := in.check(&c)
	if err != nil {
		return nil, err
	}
	if identity, temporary := s.caller(api.CallOf(ctx)); temporary && seconds > mostChainedSeconds && strings.Contains(identity.ARN, ":assumed-role/") {
		return nil, errValidation.With("The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining")
	}
	out := s.assume(role, &in.roleInput, seconds)
	out.SourceIdentity = in.SourceIdentity
	out.PackedPolicySize = packedSize(in.Policy, in.PolicyARNs, in.Tags)
	return out, nil
}

// assume gives out the credentials of a role. The path of a role's name is not part of a session's.
func (s *Service) assume(role arn.ARN, in *roleInput, seconds int) *assumeRoleOutput {
	session := in.RoleSessionName
	user := &assumedRoleUser{
		AssumedRoleID: s.newID("AROA", role.String()) + ":" + session,
		ARN:           arn.ARN{Partition: role.Partition, Service: "sts", Account: role.Account, Resource: "assumed-role/" + roleName(role) + "/" + session}.String(),
	}
	identity := Identity{Account: role.Account, ARN: user.ARN, UserID: user.AssumedRoleID}
	given := s.issue(identity, seconds, in.least())
	return &assumeRoleOutput{Credentials: given, AssumedRoleUser: user, sizeOutput: given.size()}
}

type assumeRoleWithWebIdentityInput struct {
	roleInput
	WebIdentityToken string `json:"WebIdentityToken"`
	ProviderID       string `json:"ProviderId"`
}

type assumeRoleWithWebIdentityOutput struct {
	assumeRoleOutput
	SubjectFromWebIdentityToken string `json:"SubjectFromWebIdentityToken"`
	Audience                    string `json:"Audience,omitempty"`
	Provider                    string `json:"Provider,omitempty"`
}

// assumeRoleWithWebIdentity believes what the token says: no provider is known here that could
// have signed it.
func (s *Service) assumeRoleWithWebIdentity(_ context.Context, in *assumeRoleWithWebIdentityInput) (*assumeRoleWithWebIdentityOutput, error) {
	var c checks
	c.length("webIdentityToken", in.WebIdentityToken, 4, 20_000)
	role, seconds, err := in.check(&c)
	if err != nil {
		return nil, err
	}
	token, err := parseClaims(in.WebIdentityToken)
	if err != nil {
		return nil, err
	}
	if now := s.clock.Now(); token.Expires > 0 && float64(now.Unix()) >= token.Expires {
		return nil, errTokenOver.With("Token expired: current date/time %d must be before the expiration date/time %d", now.Unix(), int64(token.Expires))
	}
	out := &assumeRoleWithWebIdentityOutput{
		assumeRoleOutput:            *s.assume(role, &in.roleInput, seconds),
		SubjectFromWebIdentityToken: token.Subject, Audience: token.audience(), Provider: strings.TrimPrefix(token.Issuer, "https://"),
	}
	out.PackedPolicySize = packedSize(in.Policy, in.PolicyARNs, nil)
	return out, nil
}

// claims is what a JWT says that we need.
type claims struct {
	Issuer      string          `json:"iss"`
	Subject     string          `json:"sub"`
	Expires     float64         `json:"exp"`
	RawAudience json.RawMessage `json:"aud"`
}

func parseClaims(token string) (*claims, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, errInvalidToken
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return nil, errInvalidToken
	}
	var c claims
	if err := json.Unmarshal(payload, &c); err != nil {
		return nil, errInvalidToken
	}
	if c.Issuer == "" {
		return nil, errInvalidToken.With("Missing a required claim: iss")
	}
	if c.Subject == "" {
		return nil, errInvalidToken.With("Missing a required claim: sub")
	}
	return &c, nil
}

// audience returns the first audience; a token may have one or several.
func (c *claims) audience() string {
	var one string
	if json.Unmarshal(c.RawAudience, &one) == nil {
		return one
	}
	var several []string
	if json.Unmarshal(c.RawAudience, &several) == nil && len(several) > 0 {
		return several[0]
	}
	return ""
}
