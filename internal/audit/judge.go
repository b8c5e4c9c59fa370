package audit

// judge holds the invariants against the facts, one after the other.
type judge struct {
	facts  *facts
	held   []Held
	listed []Violation
}

func newJudge(f *facts) *judge { return &judge{facts: f, held: []Held{}, listed: []Violation{}} }

func (j *judge) hold(inv Invariant) {
	v := &finding{held: Held{ID: inv.ID, Sentence: inv.Sentence}}
	inv.check(j.facts, v)
	j.held = append(j.held, v.held)
	j.listed = append(j.listed, v.first...)
}

// report puts the findings together.
func (j *judge) report() Report {
	c := j.facts.counts
	for _, r := range j.facts.runs {
		if r.tasks > 0 {
			c.Runs++
		}
	}
	for _, h := range j.held {
		switch h.ID {
		case "I1":
			c.Missing = h.Violations
		case "I2":
			c.DoubleStarts = h.Violations
		case "I3":
			c.DoubleOutcomes = h.Violations
		case "I7":
			c.DagsterDisagreements = h.Violations
		}
	}
	return Report{Counts: c, Invariants: j.held, Violations: j.listed}
}

// conclude gives the verdict: PASS for a history that kept every invariant and proves enough.
func (r *Report) conclude() {
	r.Verdict = Pass
	if len(r.Vacuous) > 0 {
		r.Verdict = Fail
	}
	for _, h := range r.Invariants {
		if h.Violations > 0 {
			r.Verdict = Fail
		}
	}
}

// Total is how many violations there are, listed or not.
func (r Report) Total() int {
	n := 0
	for _, h := range r.Invariants {
		n += h.Violations
	}
	return n
}
