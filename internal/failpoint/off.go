//go:build !failpoint

package failpoint

import (
	"context"

	"github.com/stepfleet/stepfleet"
)

// On says that this binary can be made to fail.
const On = false

// Hit is where a process that is built with the tag may fail.
func Hit(string) error { return nil }

// Ledger is the ledger, with points around what it writes.
func Ledger(l stepfleet.Ledger) stepfleet.Ledger { return l }

// Ringer is the server's side of the bells, with points around it.
func Ringer(r stepfleet.Ringer) stepfleet.Ringer { return r }

// Listener is the worker's side of the bells, with points around it.
func Listener(l stepfleet.Listener) stepfleet.Listener { return l }

// EventLog is Dagster's event log, with points around what is asked of it.
func EventLog(l stepfleet.EventLog) stepfleet.EventLog { return l }

// Host is the host, with points around what its processes ask.
func Host(h stepfleet.Host) stepfleet.Host { return h }

// Notify is how servers are told of ends, with points around it.
func Notify(f func(context.Context, string, []stepfleet.Lease) error) func(context.Context, string, []stepfleet.Lease) error {
	return f
}
