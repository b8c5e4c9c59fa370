package localaws

import (
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/stepfleet/stepfleet/localaws/api"
)

// scope is what a SigV4 signature says about a call: Credential=KEY/DATE/REGION/SERVICE/aws4_request.
type scope struct{ key, region, service string }

var credential = regexp.MustCompile(`Credential=([^/,\s]+)/\d{8}/([^/,\s]+)/([^/,\s]+)/aws4_request`)

// scopeOf reads the scope from the header, or from the query of a presigned call; a call without a
// signature has the zero one.
func scopeOf(r *http.Request) scope {
	text := r.Header.Get("Authorization")
	if text == "" {
		if presigned := r.URL.Query().Get("X-Amz-Credential"); presigned != "" {
			text = "Credential=" + presigned
		}
	}
	found := credential.FindStringSubmatch(text)
	if found == nil {
		return scope{}
	}
	return scope{key: found[1], region: found[2], service: found[3]}
}

var accountNumber = regexp.MustCompile(`^\d{12}$`)

// callOf describes the call. An access key of twelve digits is its own account, as in other
// emulators, so that a test may have several.
func (a *AWS) callOf(r *http.Request, op string) *api.Call {
	s := scopeOf(r)
	c := &api.Call{
		Service: s.service, Op: op, Region: s.region, Account: a.account, AccessKey: s.key,
		RequestID: a.ids.UUID(), BaseURL: "http://" + r.Host,
	}
	if c.Region == "" {
		c.Region = a.region
	}
	if accountNumber.MatchString(s.key) {
		c.Account = s.key
	}
	return c
}

// hostAllowed refuses names by which a web page could reach us through its own domain.
func (a *AWS) hostAllowed(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.Trim(name, "[]"))
	if name == "localhost" || strings.HasSuffix(name, ".localhost") || slices.Contains(a.hosts, name) {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && ip.IsLoopback()
}
