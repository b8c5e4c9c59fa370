package sts

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
)

// as returns a context in which the holder of the credentials calls, or root.
func as(c *credentials) context.Context {
	call := &api.Call{Service: "sts", Region: "eu-west-1", Account: "123456789012", AccessKey: "AKIDEXAMPLE"}
	if c != nil {
		call.AccessKey, call.SessionToken = c.AccessKeyID, c.SessionToken
	}
	return api.WithCall(context.Background(), call)
}

// split returns what a JWT signs, its header and content, and its signature.
func split(t *testing.T, token string) (signed, header, content string, signature []byte) {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%q is no JWT", token)
	}
	var decoded [3][]byte
	for i, part := range parts {
		var err error
		if decoded[i], err = base64.RawURLEncoding.DecodeString(part); err != nil {
			t.Fatal(err)
		}
	}
	return parts[0] + "." + parts[1], string(decoded[0]), string(decoded[1]), decoded[2]
}

func TestTokensAreSigned(t *testing.T) {
	s := service(1)
	get := func(algorithm string) string {
		out, err := s.getWebIdentityToken(as(nil), &getWebIdentityTokenInput{Audience: []string{"a"}, SigningAlgorithm: algorithm})
		if err != nil {
			t.Fatal(err)
		}
		return out.WebIdentityToken
	}
	signed, header, _, signature := split(t, get("RS256"))
	rsaKey, err := s.signers.rsa()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(signed))
	if err := rsa.VerifyPKCS1v15(&rsaKey.PublicKey, crypto.SHA256, sum[:], signature); err != nil || header != `{"kid":"RSA_0","typ":"JWT","alg":"RS256"}` {
		t.Errorf("%s %v", header, err)
	}
	signed, header, _, signature = split(t, get("ES384"))
	ecdsaKey, err := s.signers.ecdsa()
	if err != nil {
		t.Fatal(err)
	}
	long := sha512.Sum384([]byte(signed))
	if len(signature) != 96 || !ecdsa.Verify(&ecdsaKey.PublicKey, long[:], new(big.Int).SetBytes(signature[:48]), new(big.Int).SetBytes(signature[48:])) ||
		header != `{"kid":"EC384_0","typ":"JWT","alg":"ES384"}` {
		t.Errorf("%s, %d bytes", header, len(signature))
	}
}

func TestTokensSayWhoAsked(t *testing.T) {
	s := service(1)
	assumed, err := s.assumeRole(as(nil), &assumeRoleInput{
		roleInput: roleInput{RoleARN: "arn:aws:iam::111122223333:role/path/worker"}, nameInput: nameInput{"me"},
	})
	if err != nil {
		t.Fatal(err)
	}
	in := &getWebIdentityTokenInput{Audience: []string{"a", "b"}, SigningAlgorithm: "ES384", Tags: []tag{{"job", "7"}}}
	out, err := s.getWebIdentityToken(as(assumed.Credentials), in)
	if err != nil {
		t.Fatal(err)
	}
	now := s.clock.Now()
	if !out.Expiration.Equal(now.Add(5 * time.Minute)) {
		t.Errorf("ends %s", out.Expiration)
	}
	_, _, content, _ := split(t, out.WebIdentityToken)
	var got map[string]any
	if err := json.Unmarshal([]byte(content), &got); err != nil {
		t.Fatal(err)
	}
	issuer, _ := got["iss"].(string)
	if !strings.HasSuffix(issuer, ".tokens.sts.global.api.aws") || issuer != s.issuer("111122223333") || issuer == s.issuer("123456789012") {
		t.Errorf("issuer %s", issuer)
	}
	if id, _ := got["jti"].(string); len(id) != 36 {
		t.Errorf("id %q", id)
	}
	delete(got, "iss")
	delete(got, "jti")
	text, _ := json.Marshal(got)
	const want = `{"aud":["a","b"],"exp":1800000300,"https://sts.amazonaws.com/":{"aws_account":"111122223333",` +
		`"principal_id":"arn:aws:iam::111122223333:role/path/worker","request_tags":{"job":"7"},"source_region":"eu-west-1"},` +
		`"iat":1800000000,"sub":"arn:aws:iam::111122223333:role/path/worker"}`
	if string(text) != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
}

// ARNs are of the partition of the region that is called, or of the role that is named.
func TestARNsAreOfTheirPartition(t *testing.T) {
	s := service(1)
	ctx := api.WithCall(context.Background(), &api.Call{Region: "cn-north-1", Account: "123456789012"})
	assumed, err := s.assumeRole(ctx, &assumeRoleInput{roleInput: roleInput{RoleARN: "arn:aws-cn:iam::111122223333:role/worker"}, nameInput: nameInput{"me"}})
	if err != nil {
		t.Fatal(err)
	}
	root, err := s.assumeRoot(ctx, &assumeRootInput{TargetPrincipal: "111122223333", TaskPolicyARN: policyARN{"arn:aws-cn:iam::aws:policy/root-task/SQSUnlockQueuePolicy"}})
	if err != nil {
		t.Fatal(err)
	}
	federated, err := s.getFederationToken(ctx, &getFederationTokenInput{Name: "bob"})
	if err != nil {
		t.Fatal(err)
	}
	for want, c := range map[string]*credentials{
		"arn:aws-cn:iam::123456789012:root": {}, "arn:aws-cn:sts::111122223333:assumed-role/worker/me": assumed.Credentials,
		"arn:aws-cn:iam::111122223333:root": root.Credentials, "arn:aws-cn:sts::123456789012:federated-user/bob": federated.Credentials,
	} {
		who, _ := s.caller(&api.Call{Region: "cn-north-1", Account: "123456789012", AccessKey: c.AccessKeyID, SessionToken: c.SessionToken})
		if who.ARN != want {
			t.Errorf("got %s, want %s", who.ARN, want)
		}
	}
}

// A source identity stays with a chain of roles, and comes out of AssumeRoot.
func TestSourceIdentityStays(t *testing.T) {
	s := service(1)
	assume := func(c *credentials, source string) (*assumeRoleOutput, error) {
		return s.assumeRole(as(c), &assumeRoleInput{
			roleInput: roleInput{RoleARN: "arn:aws:iam::111122223333:role/worker"}, nameInput: nameInput{"me"}, SourceIdentity: source,
		})
	}
	first, err := assume(nil, "alice")
	if err != nil || first.SourceIdentity != "alice" {
		t.Fatal(first, err)
	}
	second, err := assume(first.Credentials, "")
	if err != nil || second.SourceIdentity != "alice" {
		t.Fatal(second, err)
	}
	if _, err := assume(second.Credentials, "bob"); err == nil || !strings.HasPrefix(err.Error(), "AccessDenied: ") {
		t.Errorf("another source identity: %v", err)
	}
	root, err := s.assumeRoot(as(second.Credentials), &assumeRootInput{
		TargetPrincipal: "111122223333", TaskPolicyARN: policyARN{"arn:aws:iam::aws:policy/root-task/SQSUnlockQueuePolicy"},
	})
	if err != nil || root.SourceIdentity != "alice" {
		t.Error(root, err)
	}
}

func TestAssertionsCarryTags(t *testing.T) {
	said, err := parseAssertion(base64.StdEncoding.EncodeToString([]byte(
		`<Response xmlns="urn:oasis:names:tc:SAML:2.0:protocol"><Assertion xmlns="urn:oasis:names:tc:SAML:2.0:assertion"><AttributeStatement>` +
			`<Attribute Name="https://aws.amazon.com/SAML/Attributes/PrincipalTag:team"><AttributeValue>x</AttributeValue></Attribute>` +
			`<Attribute Name="https://aws.amazon.com/SAML/Attributes/RoleSessionName"><AttributeValue>me</AttributeValue></Attribute>` +
			`<Attribute Name="https://aws.amazon.com/SAML/Attributes/PrincipalTag:none"/></AttributeStatement></Assertion></Response>`)))
	if err != nil {
		t.Fatal(err)
	}
	if got := said.tags(); !slices.Equal(got, []tag{{"team", "x"}, {"none", ""}}) || said.sessionName() != "me" {
		t.Errorf("%q of %s", got, said.sessionName())
	}
}

// FuzzAssertions feeds nonsense to what reads assertions and tokens.
func FuzzAssertions(f *testing.F) {
	f.Add(`<Response xmlns="urn:oasis:names:tc:SAML:2.0:protocol"><Assertion xmlns="urn:oasis:names:tc:SAML:2.0:assertion" IssueInstant="x">` +
		`<AttributeStatement><Attribute Name="https://aws.amazon.com/SAML/Attributes/PrincipalTag:a"/></AttributeStatement></Assertion></Response>`)
	f.Add("a.eyJpc3MiOiJ4Iiwic3ViIjoiYXJuOmF3czppYW06OjExMTEyMjIyMzMzMzp1c2VyL3gifQ.b")
	f.Fuzz(func(t *testing.T, text string) {
		s := service(1)
		if said, err := parseAssertion(base64.StdEncoding.EncodeToString([]byte(text))); err == nil {
			_, _ = said.check(s.clock.Now(), "role", "provider")
			said.tags()
		}
		if out, err := s.getDelegatedAccessToken(as(nil), &getDelegatedAccessTokenInput{text}); err == nil {
			if session, err := s.Open(out.Credentials.AccessKeyID, out.Credentials.SessionToken); err != nil || session.principal() != out.AssumedPrincipal {
				t.Errorf("%q acts as %+v, not %s", text, session, out.AssumedPrincipal)
			}
		}
	})
}
