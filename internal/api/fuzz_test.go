package api_test

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/api"
	"github.com/stepfleet/stepfleet/internal/dispatch"
	"github.com/stepfleet/stepfleet/internal/memory"
)

// posts are the calls with a body, and streams left out: they do not end.
var posts = []string{"tasks", "epoch", "adjudicate", "cancel", "close", "notify", "dead"}

// path is where a call goes; the name is the caller's, so it may be anything.
func path(call, name string) string {
	switch name = url.PathEscape(name); call {
	case "notify":
		return "/v1/notify"
	case "dead":
		return "/v1/instances/" + name + "/dead"
	}
	return "/v1/runs/" + name + "/" + call
}

// FuzzBody sends a body, a query and a name to every call. The caller is at fault, never the server,
// and is told so in the protocol's words.
func FuzzBody(f *testing.F) {
	for _, body := range []string{
		``, `{}`, `{"v":1}`, `{"v":1,"epoch":1,"executor":"x"}`, `{"v":1,"epoch":1,"tasks":[{"step_key":"a","attempt":0}]}`,
		`{"v":1,"epoch":1,"tasks":null,"reason":"x"}`, `{"v":1,"tasks":[{"task_id":1,"run_id":"r1"}]}`, `{"v":1,"reason":"\u0000"}`,
		`{"v":1,"epoch":-1,"tasks":[]}`, `{"v":1,"epoch":1,"tasks":[{"step_key":"","attempt":-1}]}`, `{"v":1e400}`, `[`, `{"v":1}{"v":1}`,
		submission("r1", "a", "b"), strings.Replace(submission("r1", "a"), `"attempt":0`, `"attempt":4294967296`, 1),
		strings.Repeat(`{"v":`, 10001), `{"v":1,"epoch":1,"tasks":[{"step_key":"@run","attempt":0}]}`,
	} {
		f.Add(body, "r1", "kind=run")
	}
	f.Add(`{"v":1}`, "..", "kind=%zz&epoch=1")
	f.Add(`{"v":1}`, "\x00/\xff", "epoch=9223372036854775808")
	f.Fuzz(func(t *testing.T, body, name, query string) {
		if name == "" || name == "." || name == ".." {
			return // another address
		}
		handler, ledger := idle(t)
		if _, err := ledger.TakeEpoch(t.Context(), "r1", stepfleet.Executor{Name: "test"}, ""); err != nil {
			t.Fatal(err)
		}
		for _, call := range posts {
			ask(t, handler, http.MethodPost, path(call, name), body)
		}
		for _, call := range []string{"tasks", "audit"} {
			ask(t, handler, http.MethodGet, path(call, name)+"?"+url.PathEscape(query), "")
			ask(t, handler, http.MethodGet, path(call, name)+"?"+strings.Map(printable, query), "")
		}
	})
}

// FuzzHost asks with any Host header, and no token. Only a loopback name is answered at all.
func FuzzHost(f *testing.F) {
	for _, host := range []string{"", "localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]", "[::1]:1", "127.0.0.1.evil.example", "evil.example", "[", "::1", "127.1", "server.example:8630"} {
		f.Add(host, "Bearer x")
	}
	handler, _ := idle(f)
	f.Fuzz(func(t *testing.T, host, authorization string) {
		if authorization == "Bearer "+token || authorization == token {
			t.Skip("it knows the token")
		}
		request := httptest.NewRequest(http.MethodGet, "/v1/queues", nil)
		request.Host = host
		request.Header["Authorization"] = []string{authorization}
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, request)
		if answer.Code != http.StatusUnauthorized && answer.Code != http.StatusMisdirectedRequest {
			t.Errorf("host %q with %q: %d", host, authorization, answer.Code)
		}
		name, _, _ := strings.Cut(host, ":") // what follows is no part of the name
		if strings.Contains(name, "example") && answer.Code != http.StatusMisdirectedRequest {
			t.Errorf("host %q: %d, though it is not ours", host, answer.Code)
		}
	})
}

// idle is the API in front of a server that has not been started: its calls all come to an end.
func idle(t testing.TB) (http.Handler, *memory.Ledger) {
	log := slog.New(slog.DiscardHandler)
	ledger := memory.NewLedger()
	server, err := dispatch.New(dispatch.Config{
		Name: "s1", URL: "http://127.0.0.1", Queues: []string{"default"}, Lifetimes: stepfleet.DefaultLifetimes(), Logger: log,
	}, ledger, memory.NewBells("default"))
	if err != nil {
		t.Fatal(err)
	}
	return api.New(api.Config{Token: token, Logger: log}, server), ledger
}

func ask(t *testing.T, handler http.Handler, method, target, body string) {
	t.Helper()
	address, err := url.Parse(target)
	if err != nil {
		return // no client could send it
	}
	request := httptest.NewRequest(method, "/", strings.NewReader(body))
	request.URL = address
	request.Host = "127.0.0.1"
	request.Header.Set("Authorization", "Bearer "+token)
	answer := httptest.NewRecorder()
	handler.ServeHTTP(answer, request)
	switch {
	case answer.Code >= 500:
		t.Errorf("%s %s %q: %d %s", method, target, body, answer.Code, answer.Body)
	case answer.Code == http.StatusMovedPermanently || answer.Code == http.StatusTemporaryRedirect || answer.Code == http.StatusNotFound && !json.Valid(answer.Body.Bytes()):
		return // of the router, for a path that is none of the API's
	case answer.Code != http.StatusNoContent && !json.Valid(answer.Body.Bytes()):
		t.Errorf("%s %s %q: %d %s", method, target, body, answer.Code, answer.Body)
	case answer.Code >= 400:
		var told struct {
			V     int
			Error struct{ Code, Message string }
		}
		if err := json.Unmarshal(answer.Body.Bytes(), &told); err != nil || told.V != 1 || told.Error.Code == "" || told.Error.Code == "internal" || told.Error.Message == "" {
			t.Errorf("%s %s %q: %d %s", method, target, body, answer.Code, answer.Body)
		}
	}
}

func printable(r rune) rune {
	if r <= ' ' || r > '~' || r == '#' {
		return -1
	}
	return r
}
