package main

import (
	"fmt"

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
	fmt.Fprintln(g.stdout, report)
	return nil
}
