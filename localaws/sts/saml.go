package sts

import (
	"context"
	"crypto/sha1"
	"encoding/base64"
	"encoding/xml"
	"regexp"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/arn"
)

const (
	maxAssertion = 100_000
	// redeemable is for how long after it was made an assertion is taken.
	redeemable = 5 * time.Minute
)

type assumeRoleWithSAMLInput struct {
	roleInput
	PrincipalARN  string `json:"PrincipalArn"`
	SAMLAssertion string `json:"SAMLAssertion"`
}

type assumeRoleWithSAMLOutput struct {
	assumeRoleOutput
	Subject       string `json:"Subject,omitempty"`
	SubjectType   string `json:"SubjectType,omitempty"`
	Issuer        string `json:"Issuer,omitempty"`
	Audience      string `json:"Audience,omitempty"`
	NameQualifier string `json:"NameQualifier"`
}

// assumeRoleWithSAML believes what the assertion says: no provider is known here that could have
// signed it.
func (s *Service) assumeRoleWithSAML(_ context.Context, in *assumeRoleWithSAMLInput) (*assumeRoleWithSAMLOutput, error) {
	var c checks
	seconds := in.roleInput.check(&c)
	c.length("principalArn", in.PrincipalARN, leastARN, mostARN)
	c.secret("sAMLAssertion", in.SAMLAssertion, maxAssertion)
	role, err := in.role(&c)
	if err != nil {
		return nil, err
	}
	provider, err := parseProvider(in.PrincipalARN)
	if err != nil {
		return nil, err
	}
	said, err := parseAssertion(in.SAMLAssertion)
	if err != nil {
		return nil, err
	}
	left, err := said.check(s.clock.Now(), in.RoleARN, in.PrincipalARN)
	if err != nil {
		return nil, err
	}
	out := &assumeRoleWithSAMLOutput{
		assumeRoleOutput: *s.assume(role, said.sessionName(), said.source(), int(min(int64(seconds), left)), in.least()),
		Subject:          said.NameID.Text, SubjectType: strings.TrimPrefix(said.NameID.Format, nameFormats),
		Issuer: said.Issuer, Audience: said.Confirmation.Recipient, NameQualifier: nameQualifier(said.Issuer, provider),
	}
	out.PackedPolicySize = packedSize(in.Policy, in.PolicyARNs, said.tags())
	return out, nil
}

var providerName = regexp.MustCompile(`^[\w._-]{1,128}$`)

// parseProvider reads the ARN of a SAML provider.
func parseProvider(text string) (arn.ARN, error) {
	provider, err := arn.Parse(text)
	if kind, name := provider.Split(); err != nil || provider.Service != "iam" || !arn.IsAccount(provider.Account) ||
		kind != "saml-provider" || !providerName.MatchString(name) {
		return arn.ARN{}, errValidation.With("%s is invalid", text)
	}
	return provider, nil
}

// nameQualifier is by which AWS tells the subjects of one provider from those of another.
func nameQualifier(issuer string, provider arn.ARN) string {
	_, name := provider.Split()
	sum := sha1.Sum([]byte(issuer + provider.Account + "/" + name))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// nameFormats begins the names of SAML's own formats of a subject.
const nameFormats = "urn:oasis:names:tc:SAML:2.0:nameid-format:"

// assertion is what a SAML assertion says that we need. Times are as they are written.
type assertion struct {
	IssueInstant string `xml:"IssueInstant,attr"`
	Issuer       string `xml:"Issuer"`
	NameID       struct {
		Format string `xml:"Format,attr"`
		Text   string `xml:",chardata"`
	} `xml:"Subject>NameID"`
	Confirmation struct {
		Recipient    string `xml:"Recipient,attr"`
		NotOnOrAfter string `xml:"NotOnOrAfter,attr"`
	} `xml:"Subject>SubjectConfirmation>SubjectConfirmationData"`
	Conditions struct {
		NotOnOrAfter string `xml:"NotOnOrAfter,attr"`
	} `xml:"Conditions"`
	Authn struct {
		SessionNotOnOrAfter string `xml:"SessionNotOnOrAfter,attr"`
	} `xml:"AuthnStatement"`
	Attributes []struct {
		Name   string   `xml:"Name,attr"`
		Values []string `xml:"AttributeValue"`
	} `xml:"AttributeStatement>Attribute"`
}

// parseAssertion returns the first assertion of a response in base64.
func parseAssertion(text string) (*assertion, error) {
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, errInvalidToken.With("Invalid base64 SAMLResponse")
	}
	var response struct {
		XMLName    xml.Name    `xml:"urn:oasis:names:tc:SAML:2.0:protocol Response"`
		Assertions []assertion `xml:"urn:oasis:names:tc:SAML:2.0:assertion Assertion"`
	}
	if err := xml.Unmarshal(raw, &response); err != nil || len(response.Assertions) == 0 {
		return nil, errInvalidToken.With("Your request included an invalid SAML response: want a Response with an Assertion that is not encrypted")
	}
	said := &response.Assertions[0]
	said.Issuer, said.NameID.Text = strings.TrimSpace(said.Issuer), strings.TrimSpace(said.NameID.Text)
	return said, nil
}

// attribute returns the values of one of AWS's attributes, in any partition's spelling.
func (a *assertion) attribute(name string) (values []string) {
	for _, one := range a.Attributes {
		if _, found, _ := strings.Cut(one.Name, "/SAML/Attributes/"); found == name {
			for _, value := range one.Values {
				values = append(values, strings.TrimSpace(value))
			}
		}
	}
	return values
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

func (a *assertion) sessionName() string { return first(a.attribute("RoleSessionName")) }
func (a *assertion) source() string      { return first(a.attribute("SourceIdentity")) }

// tags are those of the session.
func (a *assertion) tags() (tags []tag) {
	for _, one := range a.Attributes {
		if _, key, ok := strings.Cut(one.Name, "/SAML/Attributes/PrincipalTag:"); ok {
			tags = append(tags, tag{key, first(one.Values)})
		}
	}
	return tags
}

var assertedName = regexp.MustCompile(`^[a-zA-Z_0-9+=,.@-]{2,64}$`)

// check returns how many seconds the session may last at most.
func (a *assertion) check(now time.Time, role, provider string) (left int64, err error) {
	switch name, source := a.sessionName(), a.source(); {
	case name == "":
		return 0, errInvalidToken.With("RoleSessionName is required in AuthnResponse")
	case !assertedName.MatchString(name):
		return 0, errInvalidToken.With("RoleSessionName in AuthnResponse must match [a-zA-Z_0-9+=,.@-]{2,64}")
	case source != "" && (!assertedName.MatchString(source) || strings.HasPrefix(source, "aws:")):
		return 0, errInvalidToken.With(`Source Identity must match [a-zA-Z_0-9+=,.@-]{2,64} and not begin with "aws:"`)
	case !a.allows(role, provider):
		return 0, errAccessDenied.With("Not authorized to perform sts:AssumeRoleWithSAML")
	}
	return a.checkTimes(now)
}

// allows reports whether the assertion names the role with the provider, in any order.
func (a *assertion) allows(role, provider string) bool {
	for _, pair := range a.attribute("Role") {
		one, other, _ := strings.Cut(pair, ",")
		one, other = strings.TrimSpace(one), strings.TrimSpace(other)
		if one == role && other == provider || one == provider && other == role {
			return true
		}
	}
	return false
}

func (a *assertion) checkTimes(now time.Time) (left int64, err error) {
	issued, err := parseInstant(a.IssueInstant, now)
	if err != nil {
		return 0, err
	}
	if now.Sub(issued) > redeemable {
		return 0, errTokenOver.With("Token must be redeemed within 5 minutes of issuance")
	}
	for _, text := range []string{a.Conditions.NotOnOrAfter, a.Confirmation.NotOnOrAfter} {
		if end, err := parseInstant(text, farAway); err != nil {
			return 0, err
		} else if !now.Before(end) {
			return 0, errTokenOver.With("Response has expired")
		}
	}
	end, err := parseInstant(a.Authn.SessionNotOnOrAfter, farAway)
	if err != nil {
		return 0, err
	}
	if left = end.Unix() - now.Unix(); left <= 0 {
		return 0, errTokenOver.With("Response has expired")
	}
	return left, nil
}

// farAway is the end of what has none.
var farAway = time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)

// parseInstant reads a time, or returns what stands for an absent one.
func parseInstant(text string, absent time.Time) (time.Time, error) {
	if text == "" {
		return absent, nil
	}
	at, err := api.ParseTime(text)
	if err != nil {
		return time.Time{}, errInvalidToken.With("The SAML response has a time that is none: %s", text)
	}
	return at.Time, nil
}
