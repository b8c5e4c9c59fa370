package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

var update = flag.Bool("update", false, "write docs/settings.md anew")

const (
	settingsPage  = "../../docs/settings.md"
	settingsIntro = `# Settings

Every setting of every command, written from the commands themselves
(` + "`go test ./cmd/stepfleet -run Settings -update`" + `). A flag goes before its variable.

Secrets and addresses that carry passwords have no flag:

| variable | what it holds |
|---|---|
| ` + "`STEPFLEET_DATABASE_URL`" + ` | the ledger, as ` + "`postgres://user:password@host:5432/stepfleet`" + `; server, worker, migrate, verify, task |
| ` + "`STEPFLEET_TOKEN`, `STEPFLEET_TOKEN_FILE`" + ` | the API's token, or a file with it; server, worker, and the plugin in run workers |
| ` + "`STEPFLEET_URL`" + ` | the server, for the plugin; in workers, for the run workers they start; http://127.0.0.1:8630 if empty |
| ` + "`STEPFLEET_PG`" + ` | ` + "`wheel`" + ` or a directory of PostgreSQL programs, for ` + "`dev`" + `; a server on the machine if empty |
| ` + "`AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ENDPOINT_URL_SQS`" + `, ... | as every AWS SDK reads them; server, worker |
| ` + "`STEPFLEET_WITHHELD_ENV`" + ` | names, separated by commas, of the worker's variables that steps do not get; ` + "`dev`" + ` names those of its local SQS |
`
)

func TestSettingsPageIsComplete(t *testing.T) {
	parser, err := kong.New(&cli{}, kong.Name("stepfleet"), kong.Vars{"version": "test"})
	if err != nil {
		t.Fatal(err)
	}
	var page strings.Builder
	page.WriteString(settingsIntro)
	section(&page, "All commands", parser.Model.Flags)
	for _, command := range parser.Model.Leaves(true) {
		section(&page, command.FullPath(), command.Flags)
	}
	if *update {
		if err := os.WriteFile(settingsPage, []byte(page.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stored, err := os.ReadFile(settingsPage)
	if err != nil {
		t.Fatal(err)
	}
	if string(stored) != page.String() {
		t.Error("docs/settings.md is not what the commands say: run go test ./cmd/stepfleet -run Settings -update")
	}
}

func section(page *strings.Builder, title string, flags []*kong.Flag) {
	rows := 0
	for _, f := range flags {
		if f.Name == "help" || f.Name == "version" || f.Hidden {
			continue
		}
		if rows++; rows == 1 {
			fmt.Fprintf(page, "\n## %s\n\n| flag | variable | default | meaning |\n|---|---|---|---|\n", title)
		}
		name := "`--" + f.Name + "`"
		if f.Short != 0 {
			name += ", `-" + string(f.Short) + "`"
		}
		fmt.Fprintf(page, "| %s | %s | %s | %s |\n", name, code(strings.Join(f.Envs, ", ")), code(f.Default), f.Help)
	}
}

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}
