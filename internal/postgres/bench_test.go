package postgres_test

import (
	"fmt"
	"testing"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/postgres"
	"github.com/stepfleet/stepfleet/internal/testenv"
)

// BenchmarkLife takes single tasks through submit, claim, start and settle: four commits each.
func BenchmarkLife(b *testing.B) {
	for _, mode := range []string{"cache_describe", "cache_statement"} {
		b.Run(mode, func(b *testing.B) {
			l := open(b, testenv.Migrated(b)+"&default_query_exec_mode="+mode, postgres.Options{})
			s, err := l.Register(b.Context(), stepfleet.SessionSpec{Worker: "w"})
			if err != nil {
				b.Fatal(err)
			}
			for i := 0; b.Loop(); i++ {
				if _, err := l.Submit(b.Context(), one(fmt.Sprint("r", i), "a")); err != nil {
					b.Fatal(err)
				}
				got, err := l.Claim(b.Context(), stepfleet.ClaimRequest{Session: s.ID, Instance: s.Instance, ID: fmt.Sprint(i), Queue: "default", Max: 1})
				if err != nil || len(got.Leases) != 1 {
					b.Fatal(err)
				}
				ref := got.Leases[0].Ref
				if _, err := l.Start(b.Context(), s.ID, []stepfleet.Ref{ref}); err != nil {
					b.Fatal(err)
				}
				end := stepfleet.Settlement{Ref: ref, Result: stepfleet.Result{V: 1, Outcome: stepfleet.StateFailed}}
				if _, err := l.Settle(b.Context(), s.ID, []stepfleet.Settlement{end}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkFanOut takes a run of a thousand tasks through the ledger, twenty a call.
func BenchmarkFanOut(b *testing.B) {
	for _, mode := range []string{"cache_describe", "cache_statement"} {
		b.Run(mode, func(b *testing.B) {
			l := open(b, testenv.Migrated(b)+"&default_query_exec_mode="+mode, postgres.Options{})
			for i := 0; b.Loop(); i++ {
				runAll(b, l, fmt.Sprint("r", i), 1000)
			}
			b.ReportMetric(float64(b.N)*1000/b.Elapsed().Seconds(), "tasks/s")
		})
	}
}
