package main

import (
	"fmt"
	"strings"

	"github.com/stepfleet/stepfleet/internal/postgres"
)

type migrateCmd struct{}

// Run brings the schema up to this binary. It is safe to run twice, also at once.
func (c *migrateCmd) Run(g *globals) error {
	dsn, err := databaseURL()
	if err != nil {
		return err
	}
	report, err := postgres.Migrate(g.ctx, dsn, postgres.Options{Logger: g.log, AppName: "stepfleet migrate"})
	if err != nil {
		return err
	}
	switch {
	case report.To > postgres.SchemaVersion():
		fmt.Fprintf(g.stdout, "the schema has version %d, this binary knows %d: nothing was done, upgrade this binary\n", report.To, postgres.SchemaVersion())
	case len(report.Applied) == 0:
		fmt.Fprintf(g.stdout, "the schema is current, version %d\n", report.To)
	default:
		fmt.Fprintf(g.stdout, "the schema has version %d now, before it was %d: applied %s\n", report.To, report.From, strings.Join(report.Applied, ", "))
	}
	return nil
}
