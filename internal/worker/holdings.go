package worker

import (
	"slices"

	"github.com/stepfleet/stepfleet"
)

// Holdings compares, renewal by renewal, what the ledger says a session holds with what its worker
// knows. A lease that the worker does not know at two renewals in a row is one whose claim lost its
// answer (a claim takes less time than lies between two renewals): it is given back. A task that runs
// here and is not ours at two renewals in a row has another owner.
type Holdings struct {
	strange map[stepfleet.TaskID]stepfleet.Fence // leases of ours that we did not know at the last renewal
}

// Compare takes the answer of a renewal. Known has the worker's tasks, each with how many renewals in a
// row have not listed it. It returns the leases to give back, and the tasks that have another owner.
func (h *Holdings) Compare(held []stepfleet.Held, known map[stepfleet.TaskID]*int) (back []stepfleet.Ref, foreign []stepfleet.TaskID) {
	ours := make(map[stepfleet.TaskID]bool, len(held))
	strange := map[stepfleet.TaskID]stepfleet.Fence{}
	for _, one := range held {
		ours[one.TaskID] = true
		if known[one.TaskID] != nil || one.State != stepfleet.StateLeased {
			continue
		}
		if fence, seen := h.strange[one.TaskID]; seen && fence == one.Fence {
			back = append(back, stepfleet.Ref{TaskID: one.TaskID, Fence: one.Fence})
		} else {
			strange[one.TaskID] = one.Fence
		}
	}
	h.strange = strange
	for id, missing := range known {
		if ours[id] {
			*missing = 0
		} else if *missing++; *missing >= 2 {
			foreign = append(foreign, id)
		}
	}
	slices.Sort(foreign)
	return back, foreign
}
