package localaws_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/stepfleet/stepfleet/localaws"
	"github.com/stepfleet/stepfleet/localaws/clock"
)

const roleARN = "arn:aws:iam::111122223333:role/path/to/worker"

func stsClient(local *localaws.AWS, c aws.Credentials) *sts.Client {
	return sts.New(sts.Options{
		Region: "eu-west-1", BaseEndpoint: aws.String("http://127.0.0.1"), Retryer: aws.NopRetryer{},
		HTTPClient:  &http.Client{Transport: local.Transport()},
		Credentials: credentials.StaticCredentialsProvider{Value: c},
	})
}

func key(id string) aws.Credentials {
	return aws.Credentials{AccessKeyID: id, SecretAccessKey: "secret of " + id}
}

// codeOf returns the code and the message that a client sees.
func codeOf(err error) string {
	var e smithy.APIError
	if !errors.As(err, &e) {
		return fmt.Sprint(err)
	}
	return e.ErrorCode() + ": " + e.ErrorMessage()
}

func TestCallerIdentity(t *testing.T) {
	local := localaws.New(localaws.Options{Account: "999988887777"})
	for id, account := range map[string]string{"AKIDEXAMPLE": "999988887777", "123456789012": "123456789012"} {
		out, err := stsClient(local, key(id)).GetCallerIdentity(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if *out.Account != account || *out.Arn != "arn:aws:iam::"+account+":root" || *out.UserId != account {
			t.Errorf("%s is %s, %s, %s", id, *out.Account, *out.Arn, *out.UserId)
		}
	}
}

func TestAssumeRole(t *testing.T) {
	now := clock.NewManual(time.Now().Truncate(time.Second))
	local := localaws.New(localaws.Options{Clock: now})
	out, err := stsClient(local, key("AKIDEXAMPLE")).AssumeRole(t.Context(), &sts.AssumeRoleInput{
		RoleArn: aws.String(roleARN), RoleSessionName: aws.String("me@work"), DurationSeconds: aws.Int32(900),
		SourceIdentity: aws.String("someone"), MinimumSessionTokenSize: aws.Int32(2000), Policy: aws.String(`{"Version":"2012-10-17"}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	c := out.Credentials
	if !regexp.MustCompile(`^ASIA[A-Z2-7]{16}$`).MatchString(*c.AccessKeyId) || len(*c.SecretAccessKey) != 40 || !c.Expiration.Equal(now.Now().Add(15*time.Minute)) {
		t.Errorf("%s %d %v", *c.AccessKeyId, len(*c.SecretAccessKey), c.Expiration)
	}
	user := out.AssumedRoleUser
	if *user.Arn != "arn:aws:sts::111122223333:assumed-role/worker/me@work" || !regexp.MustCompile(`^AROA[A-Z2-7]{17}:me@work$`).MatchString(*user.AssumedRoleId) {
		t.Errorf("%s %s", *user.Arn, *user.AssumedRoleId)
	}
	if n := len(*c.SessionToken); *out.SourceIdentity != "someone" || n < 2000 || n > 2004 || int(*out.SessionTokenSize) != n || *out.SessionTokenUtilization != 49 {
		t.Errorf("%v %d %v %v", *out.SourceIdentity, n, *out.SessionTokenSize, *out.SessionTokenUtilization)
	}
	assumed := aws.Credentials{AccessKeyID: *c.AccessKeyId, SecretAccessKey: *c.SecretAccessKey, SessionToken: *c.SessionToken}
	who, err := stsClient(local, assumed).GetCallerIdentity(t.Context(), nil)
	if err != nil || *who.Account != "111122223333" || *who.Arn != *user.Arn || *who.UserId != *user.AssumedRoleId {
		t.Errorf("%v %v", who, err)
	}
	info, err := stsClient(local, key("AKIDEXAMPLE")).GetAccessKeyInfo(t.Context(), &sts.GetAccessKeyInfoInput{AccessKeyId: c.AccessKeyId})
	if err != nil || *info.Account != "111122223333" {
		t.Errorf("%v %v", info, err)
	}
	_, err = stsClient(local, assumed).AssumeRole(t.Context(), &sts.AssumeRoleInput{
		RoleArn: aws.String(roleARN), RoleSessionName: aws.String("chain"), DurationSeconds: aws.Int32(3601),
	})
	if got := codeOf(err); got != "ValidationError: The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining" {
		t.Error(got)
	}
}

// The account of temporary credentials is the role's, for every service.
func TestAssumedAccountOwnsItsQueues(t *testing.T) {
	local := localaws.New(localaws.Options{})
	out, err := stsClient(local, key("AKIDEXAMPLE")).AssumeRole(t.Context(), &sts.AssumeRoleInput{RoleArn: aws.String(roleARN), RoleSessionName: aws.String("me")})
	if err != nil {
		t.Fatal(err)
	}
	c := out.Credentials
	client := newClient("eu-west-1", "", func(o *sqs.Options) {
		o.HTTPClient = &http.Client{Transport: local.Transport()}
		o.BaseEndpoint = aws.String("http://127.0.0.1")
		o.Credentials = credentials.NewStaticCredentialsProvider(*c.AccessKeyId, *c.SecretAccessKey, *c.SessionToken)
	})
	if url := create(t, client, "q", nil); !strings.HasSuffix(*url, "/111122223333/q") {
		t.Error(*url)
	}
}

func TestAssumeRoleRefusals(t *testing.T) {
	client := stsClient(localaws.New(localaws.Options{}), key("AKIDEXAMPLE"))
	for want, in := range map[string]*sts.AssumeRoleInput{
		"ValidationError: 1 validation error detected: Value '899' at 'durationSeconds' failed to satisfy constraint: Member must have value greater than or equal to 900":  {DurationSeconds: aws.Int32(899)},
		"ValidationError: 1 validation error detected: Value '43201' at 'durationSeconds' failed to satisfy constraint: Member must have value less than or equal to 43200": {DurationSeconds: aws.Int32(43201)},
		`ValidationError: 1 validation error detected: Value 'a b' at 'roleSessionName' failed to satisfy constraint: Member must satisfy regular expression pattern: [\w+=,.@-]*`: {
			RoleSessionName: aws.String("a b"),
		},
		"ValidationError: 2 validation errors detected: Value 'short' at 'roleArn' failed to satisfy constraint: Member must have length greater than or equal to 20; " +
			"Value 'x' at 'roleSessionName' failed to satisfy constraint: Member must have length greater than or equal to 2": {RoleArn: aws.String("short"), RoleSessionName: aws.String("x")},
		"ValidationError: arn:aws:iam::111122223333:user/me is invalid": {RoleArn: aws.String("arn:aws:iam::111122223333:user/me")},
		"ValidationError: not an arn, yet long enough is invalid":       {RoleArn: aws.String("not an arn, yet long enough")},
		"ValidationError: 1 validation error detected: Value '4097' at 'minimumSessionTokenSize' failed to satisfy constraint: Member must have value less than or equal to 4096": {
			MinimumSessionTokenSize: aws.Int32(4097),
		},
		"MalformedPolicyDocument: Syntax errors in policy.": {Policy: aws.String("{")},
	} {
		if in.RoleArn == nil {
			in.RoleArn = aws.String(roleARN)
		}
		if in.RoleSessionName == nil {
			in.RoleSessionName = aws.String("me")
		}
		if _, err := client.AssumeRole(t.Context(), in); codeOf(err) != want {
			t.Errorf("got  %s\nwant %s", codeOf(err), want)
		}
	}
}

func TestSessionAndFederationTokens(t *testing.T) {
	now := clock.NewManual(time.Now().Truncate(time.Second))
	local := localaws.New(localaws.Options{Clock: now})
	client := stsClient(local, key("123456789012"))
	session, err := client.GetSessionToken(t.Context(), nil)
	if err != nil || !session.Credentials.Expiration.Equal(now.Now().Add(12*time.Hour)) {
		t.Fatal(session, err)
	}
	c := session.Credentials
	temporary := stsClient(local, aws.Credentials{AccessKeyID: *c.AccessKeyId, SecretAccessKey: *c.SecretAccessKey, SessionToken: *c.SessionToken})
	who, err := temporary.GetCallerIdentity(t.Context(), nil)
	if err != nil || *who.Arn != "arn:aws:iam::123456789012:root" {
		t.Error(who, err)
	}
	if _, err := temporary.GetSessionToken(t.Context(), nil); codeOf(err) != "AccessDenied: Cannot call GetSessionToken with session credentials" {
		t.Error(codeOf(err))
	}
	federated, err := client.GetFederationToken(t.Context(), &sts.GetFederationTokenInput{Name: aws.String("bob"), DurationSeconds: aws.Int32(900)})
	if err != nil || *federated.FederatedUser.Arn != "arn:aws:sts::123456789012:federated-user/bob" || *federated.FederatedUser.FederatedUserId != "123456789012:bob" {
		t.Error(federated, err)
	}
	if _, err := client.GetSessionToken(t.Context(), &sts.GetSessionTokenInput{DurationSeconds: aws.Int32(129_601)}); !strings.HasPrefix(codeOf(err), "ValidationError: 1 validation error") {
		t.Error(codeOf(err))
	}
	if _, err := client.DecodeAuthorizationMessage(t.Context(), &sts.DecodeAuthorizationMessageInput{EncodedMessage: aws.String("x")}); codeOf(err) != "InvalidAuthorizationMessageException: Message is not valid" {
		t.Error(codeOf(err))
	}
}

// jwt makes an unsigned token.
func jwt(t *testing.T, claims map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	return "eyJhbGciOiJub25lIn0." + base64.RawURLEncoding.EncodeToString(payload) + ".c2ln"
}

func TestWebIdentity(t *testing.T) {
	now := clock.NewManual(time.Unix(1_800_000_000, 0))
	client := stsClient(localaws.New(localaws.Options{Clock: now, Credentials: map[string]string{"AKIDEXAMPLE": "x"}}), aws.Credentials{}) // unsigned, where signatures are verified
	assume := func(token string) (*sts.AssumeRoleWithWebIdentityOutput, error) {
		return client.AssumeRoleWithWebIdentity(t.Context(), &sts.AssumeRoleWithWebIdentityInput{
			RoleArn: aws.String(roleARN), RoleSessionName: aws.String("pod"), WebIdentityToken: &token,
		})
	}
	out, err := assume(jwt(t, map[string]any{"iss": "https://oidc.example/id", "sub": "system:pod", "aud": []string{"sts.amazonaws.com"}, "exp": 1_800_000_001}))
	if err != nil {
		t.Fatal(err)
	}
	if *out.SubjectFromWebIdentityToken != "system:pod" || *out.Audience != "sts.amazonaws.com" || *out.Provider != "oidc.example/id" ||
		*out.AssumedRoleUser.Arn != "arn:aws:sts::111122223333:assumed-role/worker/pod" || !out.Credentials.Expiration.Equal(now.Now().Add(time.Hour)) {
		t.Errorf("%s %s %s %s", *out.SubjectFromWebIdentityToken, *out.Audience, *out.Provider, *out.AssumedRoleUser.Arn)
	}
	for want, token := range map[string]string{
		"InvalidIdentityToken: The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)":  "opaque",
		"InvalidIdentityToken: Missing a required claim: sub":                                                                   jwt(t, map[string]any{"iss": "x"}),
		"ExpiredTokenException: Token expired: current date/time 1800000000 must be before the expiration date/time 1800000000": jwt(t, map[string]any{"iss": "x", "sub": "y", "exp": 1_800_000_000}),
	} {
		if _, err := assume(token); codeOf(err) != want {
			t.Errorf("got  %s\nwant %s", codeOf(err), want)
		}
	}
}

func TestVerifiedSignatures(t *testing.T) {
	now := clock.NewManual(time.Now())
	local := localaws.New(localaws.Options{Clock: now, Credentials: map[string]string{"AKIDEXAMPLE": "secret of AKIDEXAMPLE"}})
	if _, err := stsClient(local, key("AKIDEXAMPLE")).GetCallerIdentity(t.Context(), nil); err != nil {
		t.Error(err)
	}
	for code, c := range map[string]aws.Credentials{
		"InvalidClientTokenId: ":  key("AKIDOTHER"),
		"SignatureDoesNotMatch: ": {AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "wrong"},
	} {
		_, err := stsClient(local, c).GetCallerIdentity(t.Context(), nil)
		if !strings.HasPrefix(codeOf(err), code) {
			t.Errorf("STS: got %s, want %s", codeOf(err), code)
		}
		client := newClient("eu-west-1", "", func(o *sqs.Options) {
			o.HTTPClient = &http.Client{Transport: local.Transport()}
			o.BaseEndpoint = aws.String("http://127.0.0.1")
			o.Credentials = credentials.StaticCredentialsProvider{Value: c}
		})
		if _, err := client.ListQueues(t.Context(), nil); !strings.HasPrefix(codeOf(err), code) {
			t.Errorf("SQS: got %s, want %s", codeOf(err), code)
		}
	}
	out, err := stsClient(local, key("AKIDEXAMPLE")).GetSessionToken(t.Context(), &sts.GetSessionTokenInput{DurationSeconds: aws.Int32(900)})
	if err != nil {
		t.Fatal(err)
	}
	good := aws.Credentials{AccessKeyID: *out.Credentials.AccessKeyId, SecretAccessKey: *out.Credentials.SecretAccessKey, SessionToken: *out.Credentials.SessionToken}
	if _, err := stsClient(local, good).GetCallerIdentity(t.Context(), nil); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*aws.Credentials){
		"secret": func(c *aws.Credentials) { c.SecretAccessKey = "wrong" }, "token": func(c *aws.Credentials) { c.SessionToken += "A" },
		"no token": func(c *aws.Credentials) { c.SessionToken = "" },
	} {
		bad := good
		change(&bad)
		if _, err := stsClient(local, bad).GetCallerIdentity(t.Context(), nil); err == nil {
			t.Errorf("temporary credentials with a wrong %s passed", name)
		}
	}
	now.Advance(4 * time.Minute)
	if _, err := stsClient(local, good).GetCallerIdentity(t.Context(), nil); err != nil {
		t.Error(err)
	}
	now.Advance(2 * time.Minute)
	if _, err := stsClient(local, key("AKIDEXAMPLE")).GetCallerIdentity(t.Context(), nil); !strings.HasPrefix(codeOf(err), "SignatureDoesNotMatch: Signature expired: ") {
		t.Error(codeOf(err))
	}
	w := httptest.NewRecorder()
	local.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://127.0.0.1/?Action=GetCallerIdentity&Version=2011-06-15", nil))
	if w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "<Code>MissingAuthenticationToken</Code>") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// A presigned GetCallerIdentity is how a caller proves to others who it is.
func TestPresignedCallerIdentity(t *testing.T) {
	local := localaws.New(localaws.Options{Account: "111122223333", Credentials: map[string]string{"AKIDEXAMPLE": "secret of AKIDEXAMPLE"}})
	signed, err := sts.NewPresignClient(stsClient(local, key("AKIDEXAMPLE"))).PresignGetCallerIdentity(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	call := func(url, accept string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPost, url, nil)
		r.Method = signed.Method
		for name, values := range signed.SignedHeader {
			if name != "Host" {
				r.Header[name] = values
			}
		}
		r.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		local.ServeHTTP(w, r)
		return w
	}
	if w := call(signed.URL, ""); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "<Arn>arn:aws:iam::111122223333:root</Arn>") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := call(signed.URL, "application/json"); w.Code != http.StatusOK ||
		!strings.HasPrefix(w.Body.String(), `{"GetCallerIdentityResponse":{"GetCallerIdentityResult":{"Account":"111122223333","Arn":"arn:aws:iam::111122223333:root","UserId":"111122223333"},`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := call(strings.Replace(signed.URL, "GetCallerIdentity", "GetSessionToken", 1), ""); w.Code != http.StatusForbidden ||
		!strings.Contains(w.Body.String(), "<Code>SignatureDoesNotMatch</Code>") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestTemporaryCredentialsEnd(t *testing.T) {
	start := time.Now()
	now := clock.NewManual(start)
	local := localaws.New(localaws.Options{Clock: now})
	out, err := stsClient(local, key("AKIDEXAMPLE")).AssumeRole(t.Context(), &sts.AssumeRoleInput{RoleArn: aws.String(roleARN), RoleSessionName: aws.String("me"), DurationSeconds: aws.Int32(900)})
	if err != nil {
		t.Fatal(err)
	}
	c := out.Credentials
	client := stsClient(local, aws.Credentials{AccessKeyID: *c.AccessKeyId, SecretAccessKey: *c.SecretAccessKey, SessionToken: *c.SessionToken})
	now.Advance(14 * time.Minute)
	if _, err := client.GetCallerIdentity(t.Context(), nil); err != nil {
		t.Error(err)
	}
	now.Advance(time.Minute)
	if _, err := client.GetCallerIdentity(t.Context(), nil); !strings.HasPrefix(codeOf(err), "ExpiredToken: ") {
		t.Error(codeOf(err))
	}
}

func TestPythonSTS(t *testing.T) { playPython(t, "sts.py", localaws.Config{}) }
