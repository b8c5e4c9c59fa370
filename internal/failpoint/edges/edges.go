// Package edges lists the edges of the protocol, for failpoints and their tests. The product does not have it.
package edges

import "github.com/stepfleet/stepfleet"

// Edge is an act of the protocol. It has two points, NAME.before and NAME.after.
type Edge struct {
	Name string
	// Process is whose act it is: server or worker.
	Process string
	// Place is where its points are: a port's method, around which they stand in ports.go, or a file.
	Place string
	// Verbs are the transitions of the ledger that are made there.
	Verbs []stepfleet.Verb
	// NoError says of a point that it has no error, and why.
	NoError map[string]string
}

const (
	server = "server"
	worker = "worker"
)

// All are all of them, in the order of a task's life.
var All = []Edge{
	{Name: "takeover", Process: server, Place: "Intake.TakeEpoch", Verbs: verbs(stepfleet.VerbTakeover)},
	{Name: "rejoin", Process: server, Place: "Intake.Rejoin", Verbs: verbs(stepfleet.VerbRejoin)},
	{Name: "submit", Process: server, Place: "Intake.Submit", Verbs: verbs(stepfleet.VerbSubmit, stepfleet.VerbPoison)},
	{Name: "ring", Process: server, Place: "Ringer.Ring"},
	{Name: "rering", Process: server, Place: "internal/dispatch/ring.go"},

	{Name: "template", Process: worker, Place: "internal/pyhost/host.go"},
	{Name: "fork", Process: worker, Place: "internal/pyhost/template.go"},
	{Name: "register", Process: worker, Place: "Claims.Register"},
	{Name: "renew", Process: worker, Place: "Claims.Renew"},
	{Name: "receive", Process: worker, Place: "Listener.Receive"},
	{Name: "claim", Process: worker, Place: "Claims.Claim", Verbs: verbs(stepfleet.VerbClaim)},
	{Name: "answer", Process: worker, Place: "Listener.Answer"},
	{Name: "return", Process: worker, Place: "Listener.Return"},
	{Name: "spawn", Process: worker, Place: "internal/pyhost/host.go"},
	{Name: "hand_over", Process: worker, Place: "internal/pyhost/child.go", NoError: map[string]string{
		"after": "the process has its task",
	}},
	{Name: "gate_start", Process: worker, Place: "Gate.Start"},
	{Name: "start", Process: worker, Place: "Claims.Start", Verbs: verbs(stepfleet.VerbStart)},
	{Name: "gate_event", Process: worker, Place: "Gate.Event"},
	{Name: "report", Process: worker, Place: "internal/pyhost/child.go"},
	{Name: "settle", Process: worker, Place: "Claims.Settle", Verbs: verbs(stepfleet.VerbSettle)},
	{Name: "notify", Process: worker, Place: "Notify"},
	{Name: "release", Process: worker, Place: "Claims.Release", Verbs: verbs(stepfleet.VerbRelease)},
	{Name: "abandon", Process: worker, Place: "Claims.Abandon", Verbs: verbs(stepfleet.VerbAbandon)},
	{Name: "drain", Process: worker, Place: "Claims.SetDraining"},
	{Name: "revoke", Process: worker, Place: "Claims.Revoke", Verbs: verbs(stepfleet.VerbRevoke)},
	{Name: "end_session", Process: worker, Place: "Claims.EndSession"},
	{Name: "fence", Process: worker, Place: "internal/worker/life.go", NoError: map[string]string{
		"before": noRefusal, "after": noRefusal,
	}},

	{Name: "beat", Process: server, Place: "Keeper.Beat"},
	{Name: "expire", Process: server, Place: "Keeper.ExpireSessions"},
	{Name: "declare", Process: server, Place: "Keeper.DeclareDead"},
	{Name: "sweep", Process: server, Place: "Keeper.Sweep", Verbs: verbs(stepfleet.VerbSweep, stepfleet.VerbPoison)},
	{Name: "duty", Process: server, Place: "Keeper.TakeDuty"},
	{Name: "endings", Process: server, Place: "EventLog.Endings"},
	{Name: "decide", Process: server, Place: "Keeper.Decide", Verbs: verbs(stepfleet.VerbSweep, stepfleet.VerbRepair)},
	{Name: "cancel", Process: server, Place: "Intake.Cancel", Verbs: verbs(stepfleet.VerbCancel)},
	{Name: "adjudicate", Process: server, Place: "Intake.Adjudicate", Verbs: verbs(stepfleet.VerbAdjudicate)},
	{Name: "close", Process: server, Place: "Intake.CloseRun"},
	{Name: "close_tasks", Process: server, Place: "internal/postgres/cancel.go", Verbs: verbs(stepfleet.VerbClose)},
	{Name: "reconcile", Process: server, Place: "Keeper.OpenRuns"},
}

// noRefusal is why a worker's fence has no error: killing processes asks nobody.
const noRefusal = "killing processes asks nobody"

// Ports is the file in which points stand around the methods of ports.
const Ports = "internal/failpoint/ports.go"

func verbs(all ...stepfleet.Verb) []stepfleet.Verb { return all }

// Points are the names of an edge's two points.
func (e Edge) Points() []string { return []string{e.Name + ".before", e.Name + ".after"} }
