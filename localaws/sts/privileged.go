package sts

import (
	"context"
	"math"
	"net/http"
	"strings"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/arn"
)

// mostRootSeconds is how long a session of an account's root may last, and does.
const mostRootSeconds = 900

type assumeRootInput struct {
	sizeInput
	TargetPrincipal string    `json:"TargetPrincipal"`
	TaskPolicyARN   policyARN `json:"TaskPolicyArn"`
	DurationSeconds *int      `json:"DurationSeconds"`
}

type assumeRootOutput struct {
	Credentials    *credentials `json:"Credentials"`
	SourceIdentity string       `json:"SourceIdentity,omitempty"`
	sizeOutput
}

// rootTasks are the managed policies for which AWS gives out an account's root.
var rootTasks = []string{
	"IAMAuditRootUserCredentials", "IAMCreateRootUserPassword", "IAMDeleteRootUserCredentials", "S3UnlockBucketPolicy", "SQSUnlockQueuePolicy",
}

// assumeRoot gives out the credentials of any account's root. AWS does so for the members of an
// organization, and not to a root; here there are no organizations, and most callers are root.
func (s *Service) assumeRoot(ctx context.Context, in *assumeRootInput) (*assumeRootOutput, error) {
	var c checks
	c.length("targetPrincipal", in.TargetPrincipal, 12, 2048)
	c.length("taskPolicyArn.arn", in.TaskPolicyARN.ARN, leastARN, mostARN)
	seconds := c.number("durationSeconds", in.DurationSeconds, 0, mostRootSeconds, mostRootSeconds)
	in.sizeInput.check(&c)
	if err := c.err(); err != nil {
		return nil, err
	}
	call := api.CallOf(ctx)
	account, err := accountOfRoot(in.TargetPrincipal)
	if err != nil {
		return nil, err
	}
	partition := arn.Partition(call.Region)
	if !isRootTask(partition, in.TaskPolicyARN.ARN) {
		return nil, errValidation.With("%s is no policy for AssumeRoot; want one of arn:%s:iam::aws:policy/root-task/: %s",
			in.TaskPolicyARN.ARN, partition, strings.Join(rootTasks, ", "))
	}
	caller, _ := s.caller(call)
	given := s.issue(Session{Identity: rootOf(partition, account), SourceIdentity: caller.SourceIdentity}, seconds, in.least())
	return &assumeRootOutput{given, caller.SourceIdentity, given.size()}, nil
}

// accountOfRoot reads an account, or the ARN of its root.
func accountOfRoot(principal string) (string, error) {
	if arn.IsAccount(principal) {
		return principal, nil
	}
	if root, err := arn.Parse(principal); err == nil && root.Service == "iam" && root.Resource == "root" && arn.IsAccount(root.Account) {
		return root.Account, nil
	}
	return "", errValidation.With("%s is invalid", principal)
}

func isRootTask(partition, policy string) bool {
	for _, name := range rootTasks {
		if policy == (arn.ARN{Partition: partition, Service: "iam", Account: "aws", Resource: "policy/root-task/" + name}).String() {
			return true
		}
	}
	return false
}

type getDelegatedAccessTokenInput struct {
	TradeInToken string `json:"TradeInToken"`
}

type getDelegatedAccessTokenOutput struct {
	Credentials      *credentials `json:"Credentials"`
	AssumedPrincipal string       `json:"AssumedPrincipal"`
}

var errTradeInOver = &api.Error{
	Type: "ExpiredTradeInTokenException", Status: http.StatusBadRequest,
	Message: "The trade-in token has expired and can no longer be exchanged for credentials.",
}

// delegatedName is the name of the session of a role that was delegated.
const delegatedName = "delegated-access"

// getDelegatedAccessToken gives out the credentials of whom a token names. AWS's tokens come from
// IAM and are opaque; here one that is a JWT, as GetWebIdentityToken makes it, names its subject
// and when it ends, and any other stands for the caller.
func (s *Service) getDelegatedAccessToken(ctx context.Context, in *getDelegatedAccessTokenInput) (*getDelegatedAccessTokenOutput, error) {
	var c checks
	c.secret("tradeInToken", in.TradeInToken, math.MaxInt)
	if err := c.err(); err != nil {
		return nil, err
	}
	caller, _ := s.caller(api.CallOf(ctx))
	principal := caller.principal()
	if token, err := parseClaims(in.TradeInToken); err == nil {
		if token.over(s.clock.Now()) {
			return nil, errTradeInOver
		}
		if named, err := arn.Parse(token.Subject); err == nil && arn.IsAccount(named.Account) {
			principal = token.Subject
		}
	}
	return &getDelegatedAccessTokenOutput{s.actAs(principal, caller), principal}, nil
}

// actAs gives out the credentials of a principal: the caller, a role, or whoever has that ARN.
func (s *Service) actAs(principal string, caller Session) *credentials {
	if role, ok := parseRole(principal); ok {
		return s.assume(role, delegatedName, "", defaultRoleSeconds, 0).Credentials
	}
	if principal == caller.ARN {
		return s.issue(Session{Identity: caller.Identity}, defaultRoleSeconds, 0)
	}
	named, _ := arn.Parse(principal) // which was parsed before
	if named.Resource == "root" {
		return s.issue(Session{Identity: rootOf(named.Partition, named.Account)}, defaultRoleSeconds, 0)
	}
	return s.issue(Session{Identity: Identity{Account: named.Account, ARN: principal, UserID: s.newID("AIDA", principal)}}, defaultRoleSeconds, 0)
}
