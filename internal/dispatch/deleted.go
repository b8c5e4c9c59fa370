package dispatch

import (
	"slices"
	"time"
)

// Bounds of how certain it is that a run was deleted in Dagster.
const (
	goneAfter    = time.Minute // how long no answer may have shown a run that was shown before
	maxWitnesses = 10
)

// sightings remembers which open runs Dagster has shown. One that it shows no more was deleted there;
// one that it never showed may be another installation's, or too new for a replica that it reads. An
// answer that shows no run at all that was shown before may be another installation's itself, and
// says nothing. What a server has not seen itself it does not know: after a restart, or when it takes the
// duty over, a run that was deleted meanwhile stays open.
type sightings struct {
	// since is, for each open run that Dagster has shown, when it was first missing; zero while it is not.
	since map[string]time.Time
	// witnesses are runs that Dagster has shown, also some that are over.
	witnesses []string
}

// question returns the runs to ask for: these, and the witnesses.
func (s *sightings) question(runIDs []string) []string {
	ask := slices.Clone(runIDs)
	for _, run := range s.witnesses {
		if !slices.Contains(runIDs, run) {
			ask = append(ask, run)
		}
	}
	return ask
}

// hear takes the answer about the runs and returns those that were deleted for certain.
func (s *sightings) hear(runIDs []string, known map[string]bool, now time.Time) (deleted []string) {
	familiar := s.familiar(known)
	for _, run := range runIDs {
		_, shown := known[run]
		since, before := s.since[run]
		switch {
		case shown:
			s.since[run] = time.Time{}
			s.witness(run)
		case !before:
		case !familiar:
			s.since[run] = time.Time{}
		case since.IsZero():
			s.since[run] = now
		case now.Sub(since) >= goneAfter:
			deleted = append(deleted, run)
		}
	}
	if familiar {
		s.witnesses = slices.DeleteFunc(s.witnesses, func(run string) bool { _, shown := known[run]; return !shown })
	}
	return deleted
}

func (s *sightings) familiar(known map[string]bool) bool {
	for run := range known {
		if _, before := s.since[run]; before || slices.Contains(s.witnesses, run) {
			return true
		}
	}
	return false
}

// witness keeps the run, and of all the latest.
func (s *sightings) witness(run string) {
	if slices.Contains(s.witnesses, run) {
		return
	}
	s.witnesses = append(s.witnesses, run)
	s.witnesses = s.witnesses[max(0, len(s.witnesses)-maxWitnesses):]
}

// doubt begins anew to wait for the certainty: there was a time without answers.
func (s *sightings) doubt() {
	for run := range s.since {
		s.since[run] = time.Time{}
	}
}

// forget keeps what is known of the open runs alone.
func (s *sightings) forget(open map[string]bool) {
	for run := range s.since {
		if !open[run] {
			delete(s.since, run)
		}
	}
}
