package sqs

import (
	"fmt"
	"net"
	"regexp"
	"strings"

	"github.com/stepfleet/stepfleet/localaws/api"
)

// URLTemplate is how a queue's URL is made: {base} is scheme and host as the caller reached us,
// {scheme} and {host} its parts, {region}, {account} and {name} are the queue's.
type URLTemplate string

// The templates that are in use.
const (
	// PathURL works with any host: the region is the caller's.
	PathURL URLTemplate = "{base}/{account}/{name}"
	// DomainURL is AWS's own form: the URL carries the region. The host must resolve with a
	// prefix, as names below localhost do in most places.
	DomainURL URLTemplate = "{scheme}://sqs.{region}.{host}/{account}/{name}"
)

// ParseURLTemplate refuses a template whose URLs would not name a queue.
func ParseURLTemplate(text string) (URLTemplate, error) {
	switch text {
	case "", "path":
		return PathURL, nil
	case "domain":
		return DomainURL, nil
	}
	if !strings.HasSuffix(text, "/{account}/{name}") {
		return "", fmt.Errorf("queue URL template %q: want path, domain, or a URL that ends in /{account}/{name}", text)
	}
	return URLTemplate(text), nil
}

// regionalHost is the host of AWS's own queue URLs, new and old.
var regionalHost = regexp.MustCompile(`^(?:sqs\.([a-z]{2}(?:-[a-z]+)+-\d)|([a-z]{2}(?:-[a-z]+)+-\d)\.queue)\.(.+)$`)

// regionOf splits the region off a host that has it in front.
func regionOf(host string) (region, rest string) {
	if !strings.HasPrefix(host, "sqs.") && !strings.Contains(host, ".queue.") {
		return "", host // nearly every host there is
	}
	found := regionalHost.FindStringSubmatch(host)
	if found == nil {
		return "", host
	}
	return found[1] + found[2], found[3]
}

// expand makes the URL of a queue for a caller.
func (t URLTemplate) expand(base string, k queueKey) string {
	if t == PathURL {
		return base + "/" + k.account + "/" + k.name
	}
	scheme, host, _ := strings.Cut(base, "://")
	_, host = regionOf(host)
	return strings.NewReplacer("{base}", base, "{scheme}", scheme, "{host}", host, "{region}", k.region,
		"{account}", k.account, "{name}", k.name).Replace(string(t))
}

func (s *Service) url(c *api.Call, k queueKey) string { return s.urls.expand(c.BaseURL, k) }

// parseURL reads a queue URL, or a bare name. Of the host only a region counts: clients reach us by
// many names. A path alone, as calls to a queue's URL have it, is below the host of the call.
func parseURL(c *api.Call, url string) (queueKey, bool) {
	if strings.HasPrefix(url, "/") {
		url = c.BaseURL + url
	}
	region, path := c.Region, url
	if _, rest, ok := strings.Cut(url, "://"); ok {
		host, p, ok := strings.Cut(rest, "/")
		if !ok {
			return queueKey{}, false
		}
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		if r, _ := regionOf(host); r != "" {
			region = r
		}
		path = p
	} else if !strings.Contains(url, "/") {
		return queueKey{region, c.Account, url}, true
	}
	account, name, ok := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if !ok || account == "" || name == "" || strings.Contains(name, "/") {
		return queueKey{}, false
	}
	return queueKey{region, account, name}, true
}
