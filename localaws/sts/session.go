package sts

import (
	"context"
	"net/http"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/arn"
)

// The limits of a user's sessions, in seconds. AWS allows root one hour; here most callers are root
// and get what a user gets.
const (
	defaultUserSeconds = 43_200
	mostUserSeconds    = 129_600
)

var errAccessDenied = &api.Error{Type: "AccessDenied", Common: true, Status: http.StatusForbidden}

type getSessionTokenInput struct {
	sizeInput
	DurationSeconds *int   `json:"DurationSeconds"`
	SerialNumber    string `json:"SerialNumber"`
	TokenCode       string `json:"TokenCode"`
}

type getSessionTokenOutput struct {
	Credentials *credentials `json:"Credentials"`
	sizeOutput
}

func (s *Service) getSessionToken(ctx context.Context, in *getSessionTokenInput) (*getSessionTokenOutput, error) {
	var c checks
	in.sizeInput.check(&c)
	seconds := c.number("durationSeconds", in.DurationSeconds, leastSeconds, mostUserSeconds, defaultUserSeconds)
	if err := c.err(); err != nil {
		return nil, err
	}
	caller, temporary := s.caller(api.CallOf(ctx))
	if temporary {
		return nil, errAccessDenied.With("Cannot call GetSessionToken with session credentials")
	}
	given := s.issue(caller, seconds, in.least())
	return &getSessionTokenOutput{given, given.size()}, nil
}

type getFederationTokenInput struct {
	sizeInput
	Name            string      `json:"Name"`
	DurationSeconds *int        `json:"DurationSeconds"`
	Policy          string      `json:"Policy"`
	PolicyARNs      []policyARN `json:"PolicyArns"`
	Tags            []tag       `json:"Tags"`
}

type federatedUser struct {
	FederatedUserID string `json:"FederatedUserId"`
	ARN             string `json:"Arn"`
}

type getFederationTokenOutput struct {
	Credentials      *credentials   `json:"Credentials"`
	FederatedUser    *federatedUser `json:"FederatedUser"`
	PackedPolicySize *int           `json:"PackedPolicySize"`
	sizeOutput
}

func (s *Service) getFederationToken(ctx context.Context, in *getFederationTokenInput) (*getFederationTokenOutput, error) {
	var c checks
	c.length("name", in.Name, 2, 32)
	c.pattern("name", in.Name, namePattern)
	in.sizeInput.check(&c)
	seconds := c.number("durationSeconds", in.DurationSeconds, leastSeconds, mostUserSeconds, defaultUserSeconds)
	c.tags(in.Tags)
	if err := c.err(); err != nil {
		return nil, err
	}
	if err := checkPolicy(in.Policy); err != nil {
		return nil, err
	}
	call := api.CallOf(ctx)
	caller, temporary := s.caller(call)
	if temporary {
		return nil, errAccessDenied.With("Cannot call GetFederationToken with session credentials")
	}
	user := &federatedUser{
		FederatedUserID: caller.Account + ":" + in.Name,
		ARN:             arn.Global("sts", call.Region, caller.Account, "federated-user/"+in.Name),
	}
	given := s.issue(Session{Identity: Identity{caller.Account, user.ARN, user.FederatedUserID}}, seconds, in.least())
	return &getFederationTokenOutput{
		Credentials:      given,
		sizeOutput:       given.size(),
		FederatedUser:    user,
		PackedPolicySize: packedSize(in.Policy, in.PolicyARNs, in.Tags),
	}, nil
}
