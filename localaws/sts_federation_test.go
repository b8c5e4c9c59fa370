package localaws_test

import (
	"encoding/base64"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"

	"github.com/stepfleet/stepfleet/localaws"
	"github.com/stepfleet/stepfleet/localaws/clock"
)

const samlARN = "arn:aws:iam::111122223333:saml-provider/MySAMLIdP"

// samlResponse is what an identity provider would send for roleARN at samlTime, unsigned.
const samlResponse = `<?xml version="1.0"?>
<samlp:Response xmlns:samlp="urn:oasis:names:tc:SAML:2.0:protocol" IssueInstant="2027-01-15T08:30:00Z">
 <Issuer xmlns="urn:oasis:names:tc:SAML:2.0:assertion">outside</Issuer>
 <saml:Assertion xmlns:saml="urn:oasis:names:tc:SAML:2.0:assertion" IssueInstant="2027-01-15T08:30:00.123Z">
  <saml:Issuer> https://example.com/saml </saml:Issuer>
  <saml:Subject>
   <saml:NameID Format="urn:oasis:names:tc:SAML:2.0:nameid-format:persistent">alice</saml:NameID>
   <saml:SubjectConfirmation><saml:SubjectConfirmationData NotOnOrAfter="2027-01-15T08:35:00Z" Recipient="https://signin.aws.amazon.com/saml"/></saml:SubjectConfirmation>
  </saml:Subject>
  <saml:Conditions NotBefore="2027-01-15T08:25:00Z" NotOnOrAfter="2027-01-15T08:34:00Z"/>
  <saml:AuthnStatement SessionNotOnOrAfter="2027-01-15T09:00:00Z"/>
  <saml:AttributeStatement>
   <saml:Attribute Name="https://aws.amazon.com/SAML/Attributes/Role">
    <saml:AttributeValue>arn:aws:iam::111122223333:role/other,` + samlARN + `</saml:AttributeValue>
    <saml:AttributeValue>` + samlARN + ` , ` + roleARN + `</saml:AttributeValue>
   </saml:Attribute>
   <saml:Attribute Name="https://aws.amazon.com/SAML/Attributes/RoleSessionName"><saml:AttributeValue>alice@example.com</saml:AttributeValue></saml:Attribute>
   <saml:Attribute Name="https://aws.amazon.com/SAML/Attributes/SourceIdentity"><saml:AttributeValue>alice</saml:AttributeValue></saml:Attribute>
   <saml:Attribute Name="https://aws.amazon.com/SAML/Attributes/PrincipalTag:team"><saml:AttributeValue>x</saml:AttributeValue></saml:Attribute>
  </saml:AttributeStatement>
 </saml:Assertion>
</samlp:Response>`

var samlTime = time.Date(2027, 1, 15, 8, 30, 0, 0, time.UTC)

func TestSAML(t *testing.T) {
	now := clock.NewManual(samlTime)
	client := stsClient(localaws.New(localaws.Options{Clock: now, Credentials: map[string]string{"AKIDEXAMPLE": "x"}}), aws.Credentials{}) // unsigned, where signatures are verified
	assume := func(response string, seconds int32) (*sts.AssumeRoleWithSAMLOutput, error) {
		return client.AssumeRoleWithSAML(t.Context(), &sts.AssumeRoleWithSAMLInput{
			RoleArn: aws.String(roleARN), PrincipalArn: aws.String(samlARN), DurationSeconds: &seconds,
			SAMLAssertion: aws.String(base64.StdEncoding.EncodeToString([]byte(response))),
		})
	}
	out, err := assume(samlResponse, 900)
	if err != nil {
		t.Fatal(err)
	}
	for got, want := range map[string]string{
		*out.AssumedRoleUser.Arn: "arn:aws:sts::111122223333:assumed-role/worker/alice@example.com",
		*out.Subject:             "alice", *out.SubjectType: "persistent", *out.Issuer: "https://example.com/saml",
		*out.Audience: "https://signin.aws.amazon.com/saml", *out.NameQualifier: "cqlTRYkKgBbJtcv4TgTfSbjGsCA=",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if *out.SourceIdentity != "alice" || !out.Credentials.Expiration.Equal(samlTime.Add(15*time.Minute)) {
		t.Errorf("%s %s", *out.SourceIdentity, out.Credentials.Expiration)
	}
	if out, err = assume(samlResponse, 3600); err != nil || !out.Credentials.Expiration.Equal(samlTime.Add(30*time.Minute)) {
		t.Errorf("a session of the provider's ends at its end: %v %v", out, err)
	}
	for want, change := range map[string][2]string{
		"InvalidIdentityToken: RoleSessionName is required in AuthnResponse":                                                            {"RoleSessionName", "RoleSession"},
		"InvalidIdentityToken: RoleSessionName in AuthnResponse must match [a-zA-Z_0-9+=,.@-]{2,64}":                                    {"alice@example.com", "a b"},
		`InvalidIdentityToken: Source Identity must match [a-zA-Z_0-9+=,.@-]{2,64} and not begin with "aws:"`:                           {"<saml:AttributeValue>alice</", "<saml:AttributeValue>aws:x</"},
		"AccessDenied: Not authorized to perform sts:AssumeRoleWithSAML":                                                                {"role/path/to/worker", "role/path/to/nobody"},
		"ExpiredTokenException: Token must be redeemed within 5 minutes of issuance":                                                    {"08:30:00.123Z", "08:24:59.999Z"},
		"ExpiredTokenException: Response has expired":                                                                                   {"08:34:00Z", "08:30:00Z"},
		"InvalidIdentityToken: The SAML response has a time that is none: soon":                                                         {"2027-01-15T08:35:00Z", "soon"},
		"InvalidIdentityToken: Your request included an invalid SAML response: want a Response with an Assertion that is not encrypted": {"saml:Assertion", "saml:EncryptedAssertion"},
	} {
		response := strings.ReplaceAll(samlResponse, change[0], change[1])
		if response == samlResponse {
			t.Fatalf("%q is not in the response", change[0])
		}
		if _, err := assume(response, 900); codeOf(err) != want {
			t.Errorf("got  %s\nwant %s", codeOf(err), want)
		}
	}
	now.Advance(30 * time.Minute)
	lasting := strings.NewReplacer("08:30:00.123Z", "09:00:00Z", "08:35:00Z", "10:00:00Z", "08:34:00Z", "10:00:00Z").Replace(samlResponse)
	if _, err := assume(lasting, 900); codeOf(err) != "ExpiredTokenException: Response has expired" {
		t.Errorf("a session that is over: %s", codeOf(err))
	}
}

func TestSAMLRefusals(t *testing.T) {
	client := stsClient(localaws.New(localaws.Options{}), key("AKIDEXAMPLE"))
	for want, in := range map[string]*sts.AssumeRoleWithSAMLInput{
		"InvalidIdentityToken: Invalid base64 SAMLResponse": {SAMLAssertion: aws.String("%%%%")},
		"ValidationError: " + samlARN + "x/ is invalid":     {PrincipalArn: aws.String(samlARN + "x/")},
		"ValidationError: " + roleARN + " is invalid":       {PrincipalArn: aws.String(roleARN)},
		"ValidationError: 1 validation error detected: Value '***' at 'sAMLAssertion' failed to satisfy constraint: Member must have length greater than or equal to 4": {
			SAMLAssertion: aws.String("abc"),
		},
	} {
		in.RoleArn = aws.String(roleARN)
		if in.PrincipalArn == nil {
			in.PrincipalArn = aws.String(samlARN)
		}
		if in.SAMLAssertion == nil {
			in.SAMLAssertion = aws.String("AAAA")
		}
		if _, err := client.AssumeRoleWithSAML(t.Context(), in); codeOf(err) != want {
			t.Errorf("got  %s\nwant %s", codeOf(err), want)
		}
	}
}

func TestAssumeRoot(t *testing.T) {
	local := localaws.New(localaws.Options{})
	client := stsClient(local, key("AKIDEXAMPLE"))
	in := func(target, policy string, seconds int32) *sts.AssumeRootInput {
		return &sts.AssumeRootInput{TargetPrincipal: &target, TaskPolicyArn: &types.PolicyDescriptorType{Arn: &policy}, DurationSeconds: &seconds}
	}
	const policy = "arn:aws:iam::aws:policy/root-task/S3UnlockBucketPolicy"
	for _, target := range []string{"111122223333", "arn:aws:iam::111122223333:root"} {
		out, err := client.AssumeRoot(t.Context(), in(target, policy, 900))
		if err != nil {
			t.Fatal(err)
		}
		c := out.Credentials
		who, err := stsClient(local, aws.Credentials{AccessKeyID: *c.AccessKeyId, SecretAccessKey: *c.SecretAccessKey, SessionToken: *c.SessionToken}).GetCallerIdentity(t.Context(), nil)
		if err != nil || *who.Arn != "arn:aws:iam::111122223333:root" || *who.UserId != "111122223333" || *who.Account != "111122223333" {
			t.Errorf("%s: %+v %v", target, who, err)
		}
	}
	for want, bad := range map[string]*sts.AssumeRootInput{
		"ValidationError: arn:aws:iam::111122223333:user/x is invalid": in("arn:aws:iam::111122223333:user/x", policy, 900),
		"ValidationError: arn:aws:iam::aws:policy/AdministratorAccess is no policy for AssumeRoot; want one of arn:aws:iam::aws:policy/root-task/: " +
			"IAMAuditRootUserCredentials, IAMCreateRootUserPassword, IAMDeleteRootUserCredentials, S3UnlockBucketPolicy, SQSUnlockQueuePolicy": in("111122223333", "arn:aws:iam::aws:policy/AdministratorAccess", 900),
		"ValidationError: 1 validation error detected: Value '901' at 'durationSeconds' failed to satisfy constraint: Member must have value less than or equal to 900":     in("111122223333", policy, 901),
		"ValidationError: 1 validation error detected: Value '1111' at 'targetPrincipal' failed to satisfy constraint: Member must have length greater than or equal to 12": in("1111", policy, 900),
	} {
		if _, err := client.AssumeRoot(t.Context(), bad); codeOf(err) != want {
			t.Errorf("got  %s\nwant %s", codeOf(err), want)
		}
	}
}

func TestWebIdentityTokensAreTakenBack(t *testing.T) {
	now := clock.NewManual(time.Unix(1_800_000_000, 0))
	local := localaws.New(localaws.Options{Clock: now})
	client := stsClient(local, key("123456789012"))
	assumed, err := client.AssumeRole(t.Context(), &sts.AssumeRoleInput{RoleArn: aws.String(roleARN), RoleSessionName: aws.String("me"), DurationSeconds: aws.Int32(900)})
	if err != nil {
		t.Fatal(err)
	}
	c := assumed.Credentials
	worker := stsClient(local, aws.Credentials{AccessKeyID: *c.AccessKeyId, SecretAccessKey: *c.SecretAccessKey, SessionToken: *c.SessionToken})
	get := func(seconds int32) (*sts.GetWebIdentityTokenOutput, error) {
		return worker.GetWebIdentityToken(t.Context(), &sts.GetWebIdentityTokenInput{
			Audience: []string{"sts.amazonaws.com"}, SigningAlgorithm: aws.String("ES384"), DurationSeconds: &seconds,
		})
	}
	if _, err := get(901); codeOf(err) != "SessionDurationEscalationException: The requested token duration would extend the session beyond its original expiration time." {
		t.Error(codeOf(err))
	}
	token, err := get(600)
	if err != nil || !token.Expiration.Equal(now.Now().Add(10*time.Minute)) {
		t.Fatal(token, err)
	}
	federated, err := client.AssumeRoleWithWebIdentity(t.Context(), &sts.AssumeRoleWithWebIdentityInput{
		RoleArn: aws.String(roleARN), RoleSessionName: aws.String("pod"), WebIdentityToken: token.WebIdentityToken,
	})
	if err != nil || *federated.SubjectFromWebIdentityToken != roleARN || *federated.Audience != "sts.amazonaws.com" {
		t.Error(federated, err)
	}
	trade := func() (*sts.GetDelegatedAccessTokenOutput, error) {
		return client.GetDelegatedAccessToken(t.Context(), &sts.GetDelegatedAccessTokenInput{TradeInToken: token.WebIdentityToken})
	}
	traded, err := trade()
	if err != nil || *traded.AssumedPrincipal != roleARN || !traded.Credentials.Expiration.Equal(now.Now().Add(time.Hour)) {
		t.Fatal(traded, err)
	}
	c = traded.Credentials
	who, err := stsClient(local, aws.Credentials{AccessKeyID: *c.AccessKeyId, SecretAccessKey: *c.SecretAccessKey, SessionToken: *c.SessionToken}).GetCallerIdentity(t.Context(), nil)
	if err != nil || *who.Arn != "arn:aws:sts::111122223333:assumed-role/worker/delegated-access" {
		t.Error(who, err)
	}
	now.Advance(10 * time.Minute)
	if _, err := trade(); !strings.HasPrefix(codeOf(err), "ExpiredTradeInTokenException: ") {
		t.Error(codeOf(err))
	}
	opaque, err := client.GetDelegatedAccessToken(t.Context(), &sts.GetDelegatedAccessTokenInput{TradeInToken: aws.String("opaque")})
	if err != nil || *opaque.AssumedPrincipal != "arn:aws:iam::123456789012:root" {
		t.Error(opaque, err)
	}
}

func TestWebIdentityTokenRefusals(t *testing.T) {
	client := stsClient(localaws.New(localaws.Options{}), key("AKIDEXAMPLE"))
	var many []types.Tag
	for i := range 50 {
		many = append(many, types.Tag{Key: aws.String(strings.Repeat("k", 100) + strconv.Itoa(i)), Value: aws.String(strings.Repeat("v", 250))})
	}
	for want, in := range map[string]*sts.GetWebIdentityTokenInput{
		"ValidationError: 1 validation error detected: Value 'HS256' at 'signingAlgorithm' failed to satisfy constraint: Member must satisfy enum value set: [RS256, ES384]": {SigningAlgorithm: aws.String("HS256")},
		"ValidationError: 1 validation error detected: Value '59' at 'durationSeconds' failed to satisfy constraint: Member must have value greater than or equal to 60":     {DurationSeconds: aws.Int32(59)},
		"ValidationError: 1 validation error detected: Value '11 items' at 'audience' failed to satisfy constraint: Member must have length less than or equal to 10":        {Audience: strings.Split("a.b.c.d.e.f.g.h.i.j.k", ".")},
		`ValidationError: 1 validation error detected: Value '<>' at 'tags.1.member.key' failed to satisfy constraint: Member must satisfy regular expression pattern: [\p{L}\p{Z}\p{N}_.:/=+\-@]+`: {
			Tags: []types.Tag{{Key: aws.String("<>"), Value: aws.String("")}},
		},
		"JWTPayloadSizeExceededException: The requested token payload size exceeds the maximum allowed size.": {Tags: many},
	} {
		if in.SigningAlgorithm == nil {
			in.SigningAlgorithm = aws.String("ES384")
		}
		if in.Audience == nil {
			in.Audience = []string{"a"}
		}
		if _, err := client.GetWebIdentityToken(t.Context(), in); codeOf(err) != want {
			t.Errorf("got  %s\nwant %s", codeOf(err), want)
		}
	}
}
