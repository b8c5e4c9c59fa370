package worker

import (
	"time"

	"github.com/stepfleet/stepfleet"
)

// Look says when a lane looks at the ledger without a bell: at its start, whenever the last claim left
// something behind, and every few seconds, so that a lost bell or a queue service that is down costs a
// delay and nothing else.
type Look struct {
	At        time.Time     // when to look without a bell
	every     time.Duration // between such looks
	bellsDown bool
}

// NewLook is that of a lane that has not looked.
func NewLook() Look { return Look{every: lookBusy} }

// Bells takes whether the bells could be listened to, and says whether that has changed.
func (k *Look) Bells(up bool, now time.Time, jitter func(time.Duration) time.Duration) (changed bool) {
	changed = k.bellsDown == up
	if k.bellsDown = !up; !up {
		k.every = lookBusy
		k.At = earlier(k.At, now.Add(jitter(lookBusy)))
	}
	return changed
}

// Claimed takes the answer of a claim that asked for so many.
func (k *Look) Claimed(c stepfleet.Claimed, asked int, now time.Time, jitter func(time.Duration) time.Duration) {
	switch {
	case len(c.Leases) == asked || (c.More && len(c.Leases) > 0):
		k.every = lookBusy
		k.At = now
	case c.More:
		k.every = lookBusy
		k.At = now.Add(jitter(lookBusy / 20))
	case len(c.Leases) > 0:
		k.every = lookBusy
		k.At = now.Add(jitter(lookBusy))
	default:
		if !k.bellsDown {
			k.every = min(2*k.every, lookIdleMax)
		}
		k.At = now.Add(jitter(k.every))
	}
}

// AnswersBells says whether the claim has done what its bells stand for. Where others hold the rows that
// wait they may yet give them up.
func AnswersBells(c stepfleet.Claimed) bool { return !c.More || len(c.Leases) > 0 }

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
