// Package dagsterapi is the part of Dagster's GraphQL API that stepfleet's own commands use: which
// code is loaded, launch a run, how the runs stand. Every query asks for __typename, since the schema
// is Dagster's to change and an answer of another type must not pass for an empty one.
package dagsterapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Limits on one call. A first load of a code location happens inside a call, hence the patience.
const (
	callTimeout    = 60 * time.Second
	maxAnswerBytes = 64 << 20
)

// Client speaks to one Dagster webserver.
type Client struct {
	url  string
	http *http.Client
}

// New returns a client for the webserver at the base URL.
func New(base string) *Client {
	return &Client{url: strings.TrimSuffix(base, "/") + "/graphql", http: &http.Client{Timeout: callTimeout}}
}

// typed is the __typename of an answer, with what Dagster's error types have in common.
type typed struct {
	Typename string `json:"__typename"`
	Message  string `json:"message"`
	Errors   []struct {
		Message string `json:"message"`
	} `json:"errors"`
}

// want turns an answer of another type into an error.
func (t typed) want(typename string) error {
	if t.Typename == typename {
		return nil
	}
	message := t.Message
	for _, e := range t.Errors {
		message += " " + e.Message
	}
	return fmt.Errorf("dagster answers %s: %s", t.Typename, strings.TrimSpace(message))
}

// call makes one query and decodes its data into result.
func (c *Client) call(ctx context.Context, query string, variables map[string]any, result any) error {
	body, err := json.Marshal(map[string]any{"query": query, "variables": variables})
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes))
	if err != nil {
		return err
	}
	var answer struct {
		Data   json.RawMessage `json:"data"`
		Errors []struct {
			Message string `json:"message"`
		} `json:"errors"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return fmt.Errorf("%s answers %s: %.300s", c.url, response.Status, text)
	}
	if len(answer.Errors) > 0 {
		return fmt.Errorf("graphql: %s", answer.Errors[0].Message)
	}
	return json.Unmarshal(answer.Data, result)
}
