package sts

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/stepfleet/stepfleet/localaws/api"
)

var errValidation = &api.Error{Type: "ValidationError", Common: true, Status: http.StatusBadRequest}

// checks collects what is wrong with an input, in the words in which AWS answers all of it at once.
type checks struct{ failures []string }

func (c *checks) fail(member, value, constraint string) {
	if value != "null" {
		value = "'" + value + "'"
	}
	c.failures = append(c.failures, fmt.Sprintf("Value %s at '%s' failed to satisfy constraint: Member must %s", value, member, constraint))
}

// length checks a required text.
func (c *checks) length(member, value string, least, most int) {
	switch n := utf8.RuneCountInString(value); {
	case n == 0:
		c.fail(member, "null", "not be null")
	case n < least:
		c.fail(member, value, fmt.Sprintf("have length greater than or equal to %d", least))
	case n > most:
		c.fail(member, value, fmt.Sprintf("have length less than or equal to %d", most))
	}
}

// pattern is one of AWS's, as it stands in the texts of errors.
type pattern struct {
	text     string
	compiled *regexp.Regexp
}

func newPattern(text string) pattern { return pattern{text, regexp.MustCompile(`^(?:` + text + `)$`)} }

// pattern checks a text that is there.
func (c *checks) pattern(member, value string, p pattern) {
	if !p.compiled.MatchString(value) {
		c.fail(member, value, "satisfy regular expression pattern: "+p.text)
	}
}

// number checks an optional number and returns it, or what stands for an absent one.
func (c *checks) number(member string, value *int, least, most, absent int) int {
	switch {
	case value == nil:
		return absent
	case *value < least:
		c.fail(member, fmt.Sprint(*value), fmt.Sprintf("have value greater than or equal to %d", least))
	case *value > most:
		c.fail(member, fmt.Sprint(*value), fmt.Sprintf("have value less than or equal to %d", most))
	}
	return *value
}

// secret checks a required text that no error may repeat.
func (c *checks) secret(member, value string, most int) {
	switch n := utf8.RuneCountInString(value); {
	case n == 0:
		c.fail(member, "null", "not be null")
	case n < leastSecret:
		c.fail(member, "***", fmt.Sprintf("have length greater than or equal to %d", leastSecret))
	case n > most:
		c.fail(member, "***", fmt.Sprintf("have length less than or equal to %d", most))
	}
}

// leastSecret is the shortest assertion and token that AWS takes.
const leastSecret = 4

// items checks how many a list has; it is shown as so many.
func (c *checks) items(member string, n, least, most int) {
	switch {
	case n < least:
		c.fail(member, fmt.Sprintf("%d items", n), fmt.Sprintf("have length greater than or equal to %d", least))
	case n > most:
		c.fail(member, fmt.Sprintf("%d items", n), fmt.Sprintf("have length less than or equal to %d", most))
	}
}

// oneOf checks a text that is there.
func (c *checks) oneOf(member, value string, values ...string) {
	if !slices.Contains(values, value) {
		c.fail(member, value, "satisfy enum value set: ["+strings.Join(values, ", ")+"]")
	}
}

const (
	maxTags     = 50
	maxTagKey   = 128
	maxTagValue = 256
)

var (
	tagKeyPattern   = newPattern(`[\p{L}\p{Z}\p{N}_.:/=+\-@]+`)
	tagValuePattern = newPattern(`[\p{L}\p{Z}\p{N}_.:/=+\-@]*`)
)

// tags checks the tags of a session or a token.
func (c *checks) tags(tags []tag) {
	c.items("tags", len(tags), 0, maxTags)
	for i, t := range tags {
		at := fmt.Sprintf("tags.%d.member.", i+1)
		c.length(at+"key", t.Key, 1, maxTagKey)
		if t.Key != "" {
			c.pattern(at+"key", t.Key, tagKeyPattern)
		}
		if t.Value != "" {
			c.length(at+"value", t.Value, 0, maxTagValue)
			c.pattern(at+"value", t.Value, tagValuePattern)
		}
	}
}

func (c *checks) err() error {
	switch n := len(c.failures); n {
	case 0:
		return nil
	case 1:
		return errValidation.With("1 validation error detected: %s", c.failures[0])
	default:
		return errValidation.With("%d validation errors detected: %s", n, strings.Join(c.failures, "; "))
	}
}
