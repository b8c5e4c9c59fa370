package worker

import (
	"slices"

	"github.com/stepfleet/stepfleet"
)

// Holdings compares, renewal by renewal, what the ledger says a session holds with what its worker
// knows. A lease that the worker does not know at two renewals in a row is one whose claim lost its
// answer (a claim takes less time than lies between two renewals): it is given back. A running task that
// the worker does not know at two renewals in a row has no process: it is one that the worker has ended,
// in a ledger that has lost the commit of that. Nobody else would end it while the session lives, so it is
// abandoned. A task that runs here and is not ours at two renewals in a row has another owner.
type Holdings struct {
	strange map[stepfleet.TaskID]stepfleet.Held // tasks of ours that we did not know at the last renewal
}

// Difference is what the ledger says otherwise than its worker for long enough.
type Difference struct {
	Back    []stepfleet.Ref    // leases to give back
	Gone    []stepfleet.Ref    // running tasks to abandon
	Foreign []stepfleet.TaskID // tasks that have another owner
}

// Compare takes the answer of a renewal. Known has the worker's tasks, each with how many renewals in a
// row have not listed it.
func (h *Holdings) Compare(held []stepfleet.Held, known map[stepfleet.TaskID]*int) (d Difference) {
	ours := make(map[stepfleet.TaskID]bool, len(held))
	strange := map[stepfleet.TaskID]stepfleet.Held{}
	for _, one := range held {
		ours[one.TaskID] = true
		before, ref := h.strange[one.TaskID], stepfleet.Ref{TaskID: one.TaskID, Fence: one.Fence}
		switch {
		case known[one.TaskID] != nil:
		case before.State != one.State || before.Fence != one.Fence:
			strange[one.TaskID] = one
		case one.State == stepfleet.StateLeased:
			d.Back = append(d.Back, ref)
		default:
			d.Gone = append(d.Gone, ref)
		}
	}
	h.strange = strange
	for id, missing := range known {
		if ours[id] {
			*missing = 0
		} else if *missing++; *missing >= 2 {
			d.Foreign = append(d.Foreign, id)
		}
	}
	slices.Sort(d.Foreign)
	return d
}
