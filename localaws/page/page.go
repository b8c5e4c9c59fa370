// Package page is what list operations share: opaque tokens for the rest of a list, and the cut of
// a sorted list into pages. A token holds the last item of its page, so that a list that changes in
// between is neither repeated nor cut short.
package page

import (
	"errors"
	"sort"

	"github.com/stepfleet/stepfleet/localaws/seal"
)

// ErrToken is the error of a token that was not made by this AWS for this list. An operation
// answers it as its service does.
var ErrToken = errors.New("the token is not valid for this list")

// Tokens makes and reads tokens.
type Tokens struct{ key seal.Key }

// NewTokens returns tokens under a key.
func NewTokens(key seal.Key) Tokens { return Tokens{key} }

// Make returns the token for what comes after an item. List names the operation and everything that
// chooses its items, such as account, region and prefix.
func (t Tokens) Make(list, after string) string { return t.key.Seal("page "+list, []byte(after)) }

// Read returns the item that a token stands behind; an empty token is the start of the list. It
// returns ErrToken for a token that Make did not make for the same list.
func (t Tokens) Read(list, token string) (after string, err error) {
	if token == "" {
		return "", nil
	}
	content, ok := t.key.Open("page "+list, token)
	if !ok {
		return "", ErrToken
	}
	return string(content), nil
}

// Cut returns up to limit of the items whose keys come after the given one, and the key of the last
// when there are more; limit is positive. The items must be sorted by key, and keys not be empty.
func Cut[T any](items []T, key func(T) string, after string, limit int) (part []T, last string) {
	start := 0
	if after != "" {
		start = sort.Search(len(items), func(i int) bool { return key(items[i]) > after })
	}
	items = items[start:]
	if len(items) <= limit {
		return items, ""
	}
	return items[:limit], key(items[limit-1])
}
