package sts

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
)

// The limits of a token of GetWebIdentityToken.
const (
	leastTokenSeconds   = 60
	defaultTokenSeconds = 300
	mostTokenSeconds    = 3_600
	maxAudiences        = 10
	maxAudience         = 1_000
)

type getWebIdentityTokenInput struct {
	Audience         []string `json:"Audience"`
	SigningAlgorithm string   `json:"SigningAlgorithm"`
	DurationSeconds  *int     `json:"DurationSeconds"`
	Tags             []tag    `json:"Tags"`
	SubjectMode      string   `json:"SubjectMode"`
	Scope            string   `json:"Scope"`
}

type getWebIdentityTokenOutput struct {
	WebIdentityToken string   `json:"WebIdentityToken"`
	Expiration       api.Time `json:"Expiration"`
}

var (
	errEscalation = &api.Error{
		Type: "SessionDurationEscalationException", Status: http.StatusForbidden,
		Message: "The requested token duration would extend the session beyond its original expiration time.",
	}
	errTokenTooLarge = &api.Error{
		Type: "JWTPayloadSizeExceededException", Status: http.StatusBadRequest,
		Message: "The requested token payload size exceeds the maximum allowed size.",
	}
)

func (in *getWebIdentityTokenInput) check() (seconds int, err error) {
	var c checks
	c.items("audience", len(in.Audience), 1, maxAudiences)
	for _, audience := range in.Audience {
		c.length("audience", audience, 1, maxAudience)
	}
	if c.length("signingAlgorithm", in.SigningAlgorithm, 5, 5); in.SigningAlgorithm != "" {
		c.oneOf("signingAlgorithm", in.SigningAlgorithm, algorithms...)
	}
	if in.SubjectMode != "" {
		c.oneOf("subjectMode", in.SubjectMode, "AWSIdentity", "OriginIdentity")
	}
	c.tags(in.Tags)
	seconds = c.number("durationSeconds", in.DurationSeconds, leastTokenSeconds, mostTokenSeconds, defaultTokenSeconds)
	if err := c.err(); err != nil {
		return 0, err
	}
	if in.SubjectMode == "OriginIdentity" {
		return 0, errValidation.With("SubjectMode OriginIdentity needs a session with a trusted identity, which localaws gives to none")
	}
	if in.Scope != "" {
		return 0, errValidation.With("Scope can be specified only when SubjectMode is OriginIdentity")
	}
	return seconds, nil
}

// webClaims is what a token says, in AWS's names.
type webClaims struct {
	Issuer   string    `json:"iss"`
	Audience any       `json:"aud"` // a text, or several
	Subject  string    `json:"sub"`
	Issued   int64     `json:"iat"`
	Expires  int64     `json:"exp"`
	ID       string    `json:"jti"`
	AWS      awsClaims `json:"https://sts.amazonaws.com/"`
}

type awsClaims struct {
	Account     string            `json:"aws_account"`
	Region      string            `json:"source_region"`
	Principal   string            `json:"principal_id"`
	RequestTags map[string]string `json:"request_tags,omitempty"`
}

// getWebIdentityToken gives out a JWT about the caller. Federation to the outside is on in every
// account; on AWS somebody has to switch it on.
func (s *Service) getWebIdentityToken(ctx context.Context, in *getWebIdentityTokenInput) (*getWebIdentityTokenOutput, error) {
	seconds, err := in.check()
	if err != nil {
		return nil, err
	}
	call := api.CallOf(ctx)
	caller, temporary := s.caller(call)
	now := s.clock.Now().Truncate(time.Second)
	ends := now.Add(time.Duration(seconds) * time.Second)
	if temporary && ends.Unix() > caller.Ends {
		return nil, errEscalation
	}
	content, err := json.Marshal(webClaims{
		Issuer: s.issuer(caller.Account), Audience: in.audience(), Subject: caller.principal(),
		Issued: now.Unix(), Expires: ends.Unix(), ID: s.ids.UUID(),
		AWS: awsClaims{caller.Account, call.Region, caller.principal(), tagMap(in.Tags)},
	})
	if err != nil {
		return nil, err
	}
	token, err := s.signers.sign(in.SigningAlgorithm, content)
	if err != nil {
		return nil, err
	}
	if len(token) > maxWebToken { // AWS does not say its own limit
		return nil, errTokenTooLarge
	}
	return &getWebIdentityTokenOutput{token, api.TimeOf(ends)}, nil
}

// issuer returns the address that stands for an account. Nothing answers there.
func (s *Service) issuer(account string) string {
	sum := s.key.Derive("sts token issuer", account)
	text := hex.EncodeToString(sum[:16])
	return "https://" + text[:8] + "-" + text[8:12] + "-" + text[12:16] + "-" + text[16:20] + "-" + text[20:] + ".tokens.sts.global.api.aws"
}

func (in *getWebIdentityTokenInput) audience() any {
	if len(in.Audience) == 1 {
		return in.Audience[0]
	}
	return in.Audience
}

func tagMap(tags []tag) map[string]string {
	m := make(map[string]string, len(tags))
	for _, t := range tags {
		m[t.Key] = t.Value
	}
	return m
}
