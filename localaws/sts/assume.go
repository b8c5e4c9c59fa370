package sts

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

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

// roleInput is what all ways to assume a role share.
type roleInput struct {
	sizeInput
	RoleARN         string      `json:"RoleArn"`
	DurationSeconds *int        `json:"DurationSeconds"`
	Policy          string      `json:"Policy"`
	PolicyARNs      []policyARN `json:"PolicyArns"`
}

// nameInput is how a caller names the session itself.
type nameInput struct {
	RoleSessionName string `json:"RoleSessionName"`
}

type policyARN struct {
	ARN string `json:"arn"`
}

type assumeRoleInput struct {
	roleInput
	nameInput
	ExternalID        string            `json:"ExternalId"`
	SerialNumber      string            `json:"SerialNumber"`
	TokenCode         string            `json:"TokenCode"`
	SourceIdentity    string            `json:"SourceIdentity"`
	Tags              []tag             `json:"Tags"`
	TransitiveTagKeys []string          `json:"TransitiveTagKeys"`
	ProvidedContexts  []providedContext `json:"ProvidedContexts"`
}

// providedContext is what an identity centre says of the caller; nothing here reads it.
type providedContext struct {
	ProviderARN      string `json:"ProviderArn"`
	ContextAssertion string `json:"ContextAssertion"`
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

// check returns for how long the role is assumed.
func (in *roleInput) check(c *checks) (seconds int) {
	in.sizeInput.check(c)
	c.length("roleArn", in.RoleARN, leastARN, mostARN)
	return c.number("durationSeconds", in.DurationSeconds, leastSeconds, mostRoleSeconds, defaultRoleSeconds)
}

func (in *nameInput) check(c *checks) {
	c.length("roleSessionName", in.RoleSessionName, 2, 64)
	c.pattern("roleSessionName", in.RoleSessionName, namePattern)
}

// role returns the role, if all checks were passed.
func (in *roleInput) role(c *checks) (arn.ARN, error) {
	if err := c.err(); err != nil {
		return arn.ARN{}, err
	}
	role, ok := parseRole(in.RoleARN)
	if !ok {
		return arn.ARN{}, errValidation.With("%s is invalid", in.RoleARN)
	}
	return role, checkPolicy(in.Policy)
}

// The limits of an ARN in a request.
const (
	leastARN = 20
	mostARN  = 2048
)

// parseRole reads the ARN of a role.
func parseRole(text string) (_ arn.ARN, ok bool) {
	role, err := arn.Parse(text)
	kind, _ := role.Split()
	name := roleName(role)
	return role, err == nil && role.Service == "iam" && arn.IsAccount(role.Account) &&
		kind == "role" && name != "" && len(name) <= maxRoleName
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
	seconds := in.roleInput.check(&c)
	in.checkOwn(&c)
	role, err := in.role(&c)
	if err != nil {
		return nil, err
	}
	caller, _ := s.caller(api.CallOf(ctx))
	if caller.Role != "" && seconds > mostChainedSeconds {
		return nil, errValidation.With("The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining")
	}
	source := in.SourceIdentity
	if caller.SourceIdentity != "" {
		if source != "" && source != caller.SourceIdentity {
			return nil, errAccessDenied.With("The source identity of the session is %s and cannot be changed", caller.SourceIdentity)
		}
		source = caller.SourceIdentity
	}
	out := s.assume(role, in.RoleSessionName, source, seconds, in.least())
	out.PackedPolicySize = packedSize(in.Policy, in.PolicyARNs, in.Tags)
	return out, nil
}

// checkOwn checks what no other way to assume a role has.
func (in *assumeRoleInput) checkOwn(c *checks) {
	in.nameInput.check(c)
	if in.SourceIdentity != "" {
		c.length("sourceIdentity", in.SourceIdentity, 2, 64)
		c.pattern("sourceIdentity", in.SourceIdentity, namePattern)
	}
	c.tags(in.Tags)
	c.items("transitiveTagKeys", len(in.TransitiveTagKeys), 0, maxTags)
	c.items("providedContexts", len(in.ProvidedContexts), 0, maxContexts)
	for i, p := range in.ProvidedContexts {
		at := fmt.Sprintf("providedContexts.%d.member.", i+1)
		if p.ProviderARN != "" {
			c.length(at+"providerArn", p.ProviderARN, leastARN, mostARN)
		}
		if p.ContextAssertion != "" {
			c.secret(at+"contextAssertion", p.ContextAssertion, maxContext)
		}
	}
}

// AWS's limits of the contexts of a session.
const (
	maxContexts = 5
	maxContext  = 3072
)

// assume gives out the credentials of a role, in a session of that name and of a source identity,
// which may be empty. The path of a role's name is not part of a session's.
func (s *Service) assume(role arn.ARN, name, source string, seconds, least int) *assumeRoleOutput {
	user := &assumedRoleUser{
		AssumedRoleID: s.newID("AROA", role.String()) + ":" + name,
		ARN:           arn.ARN{Partition: role.Partition, Service: "sts", Account: role.Account, Resource: "assumed-role/" + roleName(role) + "/" + name}.String(),
	}
	given := s.issue(Session{
		Identity: Identity{Account: role.Account, ARN: user.ARN, UserID: user.AssumedRoleID}, Role: role.String(), SourceIdentity: source,
	}, seconds, least)
	return &assumeRoleOutput{Credentials: given, AssumedRoleUser: user, SourceIdentity: source, sizeOutput: given.size()}
}

type assumeRoleWithWebIdentityInput struct {
	roleInput
	nameInput
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
	seconds := in.roleInput.check(&c)
	in.nameInput.check(&c)
	c.secret("webIdentityToken", in.WebIdentityToken, maxWebToken)
	role, err := in.role(&c)
	if err != nil {
		return nil, err
	}
	token, err := parseClaims(in.WebIdentityToken)
	if err != nil {
		return nil, err
	}
	if now := s.clock.Now(); token.over(now) {
		return nil, errTokenOver.With("Token expired: current date/time %d must be before the expiration date/time %d", now.Unix(), int64(token.Expires))
	}
	out := &assumeRoleWithWebIdentityOutput{
		assumeRoleOutput:            *s.assume(role, in.RoleSessionName, "", seconds, in.least()),
		SubjectFromWebIdentityToken: token.Subject, Audience: token.audience(), Provider: strings.TrimPrefix(token.Issuer, "https://"),
	}
	out.PackedPolicySize = packedSize(in.Policy, in.PolicyARNs, nil)
	return out, nil
}

// maxWebToken is the longest JWT in bytes that AWS takes.
const maxWebToken = 20_000

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

// over reports whether the token has ended; one without an end never does.
func (c *claims) over(now time.Time) bool { return c.Expires > 0 && float64(now.Unix()) >= c.Expires }

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
