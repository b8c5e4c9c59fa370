package cloudwatch

import "time"

// The states of an alarm.
const (
	stateOK           = "OK"
	stateAlarm        = "ALARM"
	stateInsufficient = "INSUFFICIENT_DATA"
)

// extraPeriods is how many periods beyond its own an alarm looks back over for data that is late or
// sparse.
const extraPeriods = 2

// point is the value of one period of an alarm's range.
type point struct {
	at        time.Time // the start of the period
	value     float64
	count     float64
	missing   bool
	breaching bool
}

// evaluation is what an alarm concluded.
type evaluation struct {
	state    string // empty keeps the state
	points   []point
	real     []point // those of them that were counted, the newest first
	treated  int     // missing points that were counted
	treatAs  string  // as what: "Breaching" or "NonBreaching"
	unknown  int     // missing points for want of which nothing is known
	breached int     // of the real ones
}

// evaluate decides the state as AWS documents it. The range has the newest point first and is
// longer than the n points that count, of which m have to breach. Missing points are used as
// little as possible: real ones from farther back come first.
func evaluate(points []point, n, m int, treatMissing string) evaluation {
	e := evaluation{points: points[:n]}
	oldest := 0 // how far back the oldest breaching point is, 1 being the newest
	for i, p := range points {
		if p.missing || len(e.real) == n {
			continue
		}
		e.real = append(e.real, p)
		if p.breaching {
			e.breached++
			oldest = i + 1
		}
	}
	fill := n - len(e.real)
	switch {
	case e.breached >= m:
		e.state = stateAlarm
	case fill == 0:
		e.state = stateOK
	case treatMissing == "breaching":
		e.treat(fill, "Breaching")
		e.state = stateOK
		if e.breached+fill >= m {
			e.state = stateAlarm
		}
	case treatMissing == "notBreaching":
		e.treat(fill, "NonBreaching")
		e.state = stateOK
	case len(e.real) > e.breached:
		e.state = stateOK // something is well, and too little is not
	case treatMissing == "ignore":
	case len(e.real) > 0 && oldest >= m:
		e.state = stateAlarm // all that is known breaches, for as long as it takes
	default:
		e.state, e.unknown = stateInsufficient, fill
	}
	return e
}

func (e *evaluation) treat(n int, as string) { e.treated, e.treatAs = n, as }

// comparison is a way in which a value breaches a threshold.
type comparison struct {
	breaches func(value, threshold float64) bool
	words    string
}

// comparisons are those of alarms on one metric; AWS's others need an anomaly band.
var comparisons = map[string]comparison{
	"GreaterThanOrEqualToThreshold": {func(v, t float64) bool { return v >= t }, "greater than or equal to"},
	"GreaterThanThreshold":          {func(v, t float64) bool { return v > t }, "greater than"},
	"LessThanThreshold":             {func(v, t float64) bool { return v < t }, "less than"},
	"LessThanOrEqualToThreshold":    {func(v, t float64) bool { return v <= t }, "less than or equal to"},
}
