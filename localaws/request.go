package localaws

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/arn"
	"github.com/stepfleet/stepfleet/localaws/sigv4"
)

// callOf describes the call. A session token of ours says whose call it is; an access key of
// twelve digits is its own account, as in other emulators, so that a test may have several.
func (a *AWS) callOf(r *http.Request, op string) *api.Call {
	s := sigv4.ScopeOf(r)
	c := &api.Call{
		Service: s.Service, Op: op, Region: s.Region, Account: a.account, AccessKey: s.AccessKey,
		SessionToken: sigv4.SessionTokenOf(r), RequestID: a.ids.UUID(), BaseURL: "http://" + r.Host,
	}
	if c.Region == "" {
		c.Region = a.region
	}
	if arn.IsAccount(s.AccessKey) {
		c.Account = s.AccessKey
	}
	if c.SessionToken != "" {
		if session, err := a.sts.Open(c.AccessKey, c.SessionToken); err == nil {
			c.Account = session.Account
		}
	}
	return c
}

// authenticate returns nil for a call whose signature holds. While no credentials are set it lets
// every call pass but those with temporary credentials that were given out here and are over.
func (a *AWS) authenticate(r *http.Request, x *exchange) error {
	if len(a.credentials) == 0 {
		if token := x.call.SessionToken; token != "" {
			if _, err := a.sts.Open(x.call.AccessKey, token); errors.Is(err, sigv4.ErrExpiredToken) {
				return err
			}
		}
		return nil
	}
	service := ""
	if x.service != nil {
		service = x.service.Name
	}
	err := sigv4.Verify(r, x.sent.sent, service, a.clock.Now(), a.secret)
	if errors.Is(err, sigv4.ErrMissingToken) && x.operation.IsUnsigned() {
		return nil
	}
	return err
}

// secret finds the secret of an access key. One that is set beforehand has no session token.
func (a *AWS) secret(accessKey, token string) (string, error) {
	if token != "" {
		return a.sts.Secret(accessKey, token)
	}
	if secret, ok := a.credentials[accessKey]; ok {
		return secret, nil
	}
	return "", sigv4.ErrUnknownKey
}

// hostAllowed refuses names by which a web page could reach us through its own domain.
func (a *AWS) hostAllowed(host string) bool {
	name := hostName(host)
	return isLoopback(name) || slices.Contains(a.hosts, name)
}

// hostName returns a Host header without its port.
func hostName(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.ToLower(strings.Trim(host, "[]"))
}

func isLoopback(name string) bool {
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && ip.IsLoopback()
}
