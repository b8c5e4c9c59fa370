package cloudwatch

import (
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/arn"
)

// maxAlarms bounds the alarms of all accounts together.
const maxAlarms = 5000

// evaluationLag is how long after the end of a period an alarm looks at it, so that what is put on
// the stroke counts.
const evaluationLag = time.Second

// alarmKey is what makes an alarm.
type alarmKey struct{ region, account, name string }

func (k alarmKey) arn() string {
	return arn.Format("cloudwatch", k.region, k.account, "alarm:"+k.name)
}

// alarm is one alarm: what it was told, and its state.
type alarm struct {
	putMetricAlarmInput
	key        alarmKey
	configured time.Time
	enabled    bool
	next       time.Time // of its evaluations

	state        string
	why          string
	data         string // the reason for programs; may be empty
	updated      time.Time
	transitioned time.Time
	tags         map[string]string
}

// needed is how many datapoints have to breach.
func (a *alarm) needed() int {
	if a.DatapointsToAlarm != nil {
		return *a.DatapointsToAlarm
	}
	return a.EvaluationPeriods
}

// step is how often the alarm is evaluated: each minute, or each ten seconds if its period is
// shorter than a minute.
func (a *alarm) step() time.Duration {
	if a.Period < 60 {
		return 10 * time.Second
	}
	return time.Minute
}

// schedule sets the next evaluation, after the end of the step that now is in.
func (a *alarm) schedule(now time.Time) {
	a.next = floor(now, a.step()).Add(a.step() + evaluationLag)
}

// floor rounds down to a multiple of d since 1970. d is of whole seconds.
func floor(t time.Time, d time.Duration) time.Time {
	s := t.Unix()
	return time.Unix(s-mod(s, int64(d/time.Second)), 0)
}

// to puts the alarm in a state and logs it. Actions are kept and not carried out: nothing they
// could reach is here.
func (s *Service) to(a *alarm, state, why, data string, now time.Time) {
	if a.state != state {
		s.log.Info("alarm", "name", a.key.name, "from", a.state, "to", state, "reason", why)
		a.transitioned = now
	}
	a.state, a.why, a.data, a.updated = state, why, data, now
}

// evaluate looks at the metric. The windows end where the last step ended, and slide with it.
func (s *Service) evaluate(a *alarm, now time.Time) {
	e := evaluate(s.points(a, floor(now, a.step())), a.EvaluationPeriods, a.needed(), a.TreatMissingData)
	if e.state == "" || e.state == a.state {
		return
	}
	data, err := a.reasonData(e, now)
	if err != nil {
		s.log.Error("an alarm's reason cannot be written; it has none for programs", "name", a.key.name, "error", err)
	}
	s.to(a, e.state, a.reason(e), data, now)
}

// points returns the periods before end, the newest first.
func (s *Service) points(a *alarm, end time.Time) []point {
	key := seriesKey{a.key.region, a.key.account, a.Namespace, a.MetricName, joinDimensions(a.Dimensions)}
	n := a.EvaluationPeriods + extraPeriods
	period := int64(a.Period)
	start := end.Unix() - int64(n)*period
	points := make([]point, n)
	for i := range points {
		points[i] = point{at: time.Unix(end.Unix()-int64(i+1)*period, 0), missing: true}
	}
	buckets := s.store.find(key, end).periods(start, end.Unix(), period, a.Unit)
	stat, _ := parseStatistic(a.Statistic + a.ExtendedStatistic)
	has := unitsOf(buckets)
	for _, b := range buckets {
		value, ok := stat.of(&b.aggregate)
		if !ok || b.unit != has[0] {
			continue
		}
		p := &points[n-1-int((b.at-start)/period)]
		p.missing, p.value, p.count = false, value, b.count
		p.breaching = comparisons[a.ComparisonOperator].breaches(value, *a.Threshold)
	}
	return points
}

// arm sets the timer for the evaluation that comes next; without alarms there is none. The caller
// holds mu.
func (s *Service) arm() {
	var first time.Time
	for _, a := range s.alarms {
		if first.IsZero() || a.next.Before(first) {
			first = a.next
		}
	}
	if first.Equal(s.wakes) {
		return
	}
	s.wakes = first
	switch {
	case first.IsZero():
		s.wake.Stop()
	case s.wake == nil:
		s.wake = s.clock.AfterFunc(first.Sub(s.clock.Now()), s.tick)
	default:
		s.wake.Reset(first.Sub(s.clock.Now()))
	}
}

// tick evaluates every alarm that is due.
func (s *Service) tick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock.Now()
	for _, a := range s.alarms {
		if !a.next.After(now) {
			s.evaluate(a, now)
			a.schedule(now)
		}
	}
	s.wakes = time.Time{}
	if len(s.alarms) > 0 {
		s.arm()
	}
}

// metricAlarm is an alarm as it is described.
type metricAlarm struct {
	AlarmName                          string      `json:"AlarmName"`
	AlarmArn                           string      `json:"AlarmArn"`
	AlarmDescription                   string      `json:"AlarmDescription,omitempty"`
	AlarmConfigurationUpdatedTimestamp api.Time    `json:"AlarmConfigurationUpdatedTimestamp"`
	ActionsEnabled                     bool        `json:"ActionsEnabled"`
	OKActions                          []string    `json:"OKActions"`
	AlarmActions                       []string    `json:"AlarmActions"`
	InsufficientDataActions            []string    `json:"InsufficientDataActions"`
	StateValue                         string      `json:"StateValue"`
	StateReason                        string      `json:"StateReason"`
	StateReasonData                    string      `json:"StateReasonData,omitempty"`
	StateUpdatedTimestamp              api.Time    `json:"StateUpdatedTimestamp"`
	StateTransitionedTimestamp         api.Time    `json:"StateTransitionedTimestamp"`
	MetricName                         string      `json:"MetricName"`
	Namespace                          string      `json:"Namespace"`
	Statistic                          string      `json:"Statistic,omitempty"`
	ExtendedStatistic                  string      `json:"ExtendedStatistic,omitempty"`
	Dimensions                         []Dimension `json:"Dimensions"`
	Period                             int         `json:"Period"`
	Unit                               string      `json:"Unit,omitempty"`
	EvaluationPeriods                  int         `json:"EvaluationPeriods"`
	DatapointsToAlarm                  *int        `json:"DatapointsToAlarm,omitempty"`
	Threshold                          float64     `json:"Threshold"`
	ComparisonOperator                 string      `json:"ComparisonOperator"`
	TreatMissingData                   string      `json:"TreatMissingData,omitempty"`
	EvaluateLowSampleCountPercentile   string      `json:"EvaluateLowSampleCountPercentile,omitempty"`
}

func (a *alarm) describe() metricAlarm {
	return metricAlarm{
		AlarmName: a.key.name, AlarmArn: a.key.arn(), AlarmDescription: a.AlarmDescription,
		AlarmConfigurationUpdatedTimestamp: api.TimeOf(a.configured), ActionsEnabled: a.enabled,
		OKActions: orEmpty(a.OKActions), AlarmActions: orEmpty(a.AlarmActions), InsufficientDataActions: orEmpty(a.InsufficientDataActions),
		StateValue: a.state, StateReason: a.why, StateReasonData: a.data,
		StateUpdatedTimestamp: api.TimeOf(a.updated), StateTransitionedTimestamp: api.TimeOf(a.transitioned),
		MetricName: a.MetricName, Namespace: a.Namespace, Statistic: a.Statistic, ExtendedStatistic: a.ExtendedStatistic,
		Dimensions: orEmpty(a.Dimensions), Period: a.Period, Unit: a.Unit, EvaluationPeriods: a.EvaluationPeriods,
		DatapointsToAlarm: a.DatapointsToAlarm, Threshold: *a.Threshold, ComparisonOperator: a.ComparisonOperator,
		TreatMissingData: a.TreatMissingData, EvaluateLowSampleCountPercentile: a.EvaluateLowSampleCountPercentile,
	}
}

// orEmpty returns a list that is there, as AWS's answers have it.
func orEmpty[E any](list []E) []E {
	if list == nil {
		return []E{}
	}
	return list
}
