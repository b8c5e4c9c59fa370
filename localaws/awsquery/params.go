package awsquery

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/stepfleet/stepfleet/localaws/api"
)

const (
	// maxParameters bounds a call: ten messages with ten attributes each need some 400.
	maxParameters = 20_000
	// maxLevels is how many dots a parameter's name may have; AWS's have up to eight.
	maxLevels = 16
)

var errMalformedQuery = &api.Error{
	Type: "MalformedQueryString", Common: true, Status: http.StatusNotFound, Message: "The query string contains a syntax error.",
}

// Params is the parameters of a call as a tree: Tag.1.Key=a is a value at Tag, 1, Key.
type Params struct{ root node }

type node struct {
	value string
	set   bool
	kids  map[string]*node
}

// Parse reads the parameters of a query string and of a form. Of two with one name the first
// counts. Its errors are *api.Error.
func Parse(sources ...string) (*Params, error) {
	p := &Params{}
	n := 0
	for _, source := range sources {
		for pair := range strings.SplitSeq(source, "&") {
			if pair == "" {
				continue
			}
			if n++; n > maxParameters {
				return nil, errMalformedQuery.With("The query string has more than %d parameters.", maxParameters)
			}
			if err := p.parsePair(pair); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

func (p *Params) parsePair(pair string) error {
	name, value, _ := strings.Cut(pair, "=")
	name, err := url.QueryUnescape(name)
	if err != nil {
		return errMalformedQuery
	}
	if value, err = url.QueryUnescape(value); err != nil {
		return errMalformedQuery
	}
	if strings.Count(name, ".") > maxLevels {
		return errMalformedQuery.With("A parameter's name has more than %d levels.", maxLevels)
	}
	p.put(name, strings.ToValidUTF8(value, "\uFFFD"))
	return nil
}

func (p *Params) put(name, value string) {
	at := &p.root
	for part := range strings.SplitSeq(name, ".") {
		kid := at.kids[part]
		if kid == nil {
			if at.kids == nil {
				at.kids = map[string]*node{}
			}
			kid = &node{}
			at.kids[part] = kid
		}
		at = kid
	}
	if !at.set {
		at.value, at.set = value, true
	}
}

// Get returns a parameter's value, empty for one that is absent.
func (p *Params) Get(name string) string {
	if kid := p.root.kids[name]; kid != nil {
		return kid.value
	}
	return ""
}

// Default sets parameters that the call does not have itself.
func (p *Params) Default(parameters map[string]string) {
	for name, value := range parameters {
		p.put(name, value)
	}
}
