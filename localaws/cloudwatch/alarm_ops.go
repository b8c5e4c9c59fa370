package cloudwatch

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/page"
)

type putMetricAlarmInput struct {
	AlarmName                        string            `json:"AlarmName"`
	AlarmDescription                 string            `json:"AlarmDescription"`
	ActionsEnabled                   *bool             `json:"ActionsEnabled"`
	OKActions                        []string          `json:"OKActions"`
	AlarmActions                     []string          `json:"AlarmActions"`
	InsufficientDataActions          []string          `json:"InsufficientDataActions"`
	MetricName                       string            `json:"MetricName"`
	Namespace                        string            `json:"Namespace"`
	Statistic                        string            `json:"Statistic"`
	ExtendedStatistic                string            `json:"ExtendedStatistic"`
	Dimensions                       []Dimension       `json:"Dimensions"`
	Period                           int               `json:"Period"`
	Unit                             string            `json:"Unit"`
	EvaluationPeriods                int               `json:"EvaluationPeriods"`
	DatapointsToAlarm                *int              `json:"DatapointsToAlarm"`
	Threshold                        *float64          `json:"Threshold"`
	ComparisonOperator               string            `json:"ComparisonOperator"`
	TreatMissingData                 string            `json:"TreatMissingData"`
	EvaluateLowSampleCountPercentile string            `json:"EvaluateLowSampleCountPercentile"`
	Metrics                          []metricDataQuery `json:"Metrics"`
	Tags                             []tag             `json:"Tags"`
	ThresholdMetricID                string            `json:"ThresholdMetricId"`
}

// putMetricAlarm makes an alarm, or gives one that exists new settings and leaves its state.
func (s *Service) putMetricAlarm(ctx context.Context, in *putMetricAlarmInput) (*api.Empty, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	c := api.CallOf(ctx)
	key := alarmKey{c.Region, c.Account, in.AlarmName}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock.Now()
	a := s.alarms[key]
	if a == nil {
		if len(s.alarms) >= maxAlarms {
			return nil, errLimit.With("There are as many alarms as localaws keeps, %d; delete some.", maxAlarms)
		}
		a = &alarm{key: key, tags: map[string]string{}}
		for _, t := range in.Tags {
			a.tags[t.Key] = t.Value
		}
		s.to(a, stateInsufficient, "Unchecked: Initial alarm creation", "", now)
		s.alarms[key] = a
	}
	a.putMetricAlarmInput, a.configured = *in, now
	a.enabled = in.ActionsEnabled == nil || *in.ActionsEnabled
	a.schedule(now)
	s.arm()
	return &api.Empty{}, nil
}

func (in *putMetricAlarmInput) check() error {
	switch {
	case len(in.Metrics) > 0 || in.ThresholdMetricID != "":
		return notEmulated("alarms on metric math and on anomaly bands", "set an alarm on one metric by MetricName, Namespace, Statistic and Period")
	case in.EvaluationPeriods == 0:
		return missing("EvaluationPeriods")
	case in.ComparisonOperator == "":
		return missing("ComparisonOperator")
	case in.Threshold == nil:
		return missing("Threshold")
	case in.Period == 0:
		return missing("Period")
	}
	if err := firstOf(
		length(in.AlarmName, "AlarmName", 255, true), length(in.AlarmDescription, "AlarmDescription", 1024, false),
		checkNamespace(in.Namespace), checkMetric("", in.MetricName, in.Dimensions),
		enum(in.Statistic, "statistic", basicStatistics...), enum(in.Unit, "unit", units...), checkValue(*in.Threshold, "Threshold"),
		checkTags(in.Tags),
	); err != nil {
		return err
	}
	return firstOf(in.checkStatistic(), in.checkComparison(), in.checkPeriods(), in.checkActions(), in.checkOptions())
}

func (in *putMetricAlarmInput) checkStatistic() error {
	switch {
	case in.Statistic == "" && in.ExtendedStatistic == "":
		return errValidation.With("Exactly one of Statistic and ExtendedStatistic must be specified.")
	case in.Statistic != "" && in.ExtendedStatistic != "":
		return errInvalidCombination.With("The parameters Statistic and ExtendedStatistic are mutually exclusive and you have specified both.")
	}
	if stat, ok := parseStatistic(in.ExtendedStatistic); in.ExtendedStatistic != "" && (!ok || stat.rank < 0) {
		return errInvalidValue.With("The value %s for parameter ExtendedStatistic is not supported.", in.ExtendedStatistic)
	}
	return nil
}

func (in *putMetricAlarmInput) checkComparison() error {
	if strings.HasSuffix(in.ComparisonOperator, "UpperThreshold") || strings.HasSuffix(in.ComparisonOperator, "LowerThreshold") {
		return notEmulated("the comparison "+in.ComparisonOperator, "use one that compares with a fixed threshold")
	}
	return enum(in.ComparisonOperator, "comparisonOperator",
		"GreaterThanOrEqualToThreshold", "GreaterThanThreshold", "LessThanThreshold", "LessThanOrEqualToThreshold")
}

func (in *putMetricAlarmInput) checkPeriods() error {
	if in.Period < 10 || checkPeriod(in.Period, "Period") != nil {
		return errValidation.With("The value %d for parameter Period is invalid: it must be 10, 30 or a multiple of 60.", in.Period)
	}
	if in.EvaluationPeriods < 1 {
		return constraint(in.EvaluationPeriods, "evaluationPeriods", "Member must have value greater than or equal to 1")
	}
	if m := in.DatapointsToAlarm; m != nil && (*m < 1 || *m > in.EvaluationPeriods) {
		return errValidation.With("DatapointsToAlarm (%d) must be from 1 to EvaluationPeriods (%d).", *m, in.EvaluationPeriods)
	}
	const day, week, hour = 86_400, 604_800, 3600
	if in.Period < hour && in.EvaluationPeriods > day/in.Period {
		return errValidation.With("Metrics cannot be checked across more than a day (EvaluationPeriods * Period must be <= %d).", day)
	}
	if in.EvaluationPeriods > week/in.Period {
		return errValidation.With("Metrics cannot be checked across more than a week (EvaluationPeriods * Period must be <= %d).", week)
	}
	return nil
}

func (in *putMetricAlarmInput) checkActions() error {
	for name, actions := range map[string][]string{
		"OKActions": in.OKActions, "AlarmActions": in.AlarmActions, "InsufficientDataActions": in.InsufficientDataActions,
	} {
		if len(actions) > 5 {
			return errValidation.With("The collection %s must not have a size greater than 5.", name)
		}
		for _, action := range actions {
			if !strings.HasPrefix(action, "arn:") {
				return errValidation.With("Invalid arn syntax: %s", action)
			}
		}
	}
	return nil
}

func (in *putMetricAlarmInput) checkOptions() error {
	if v := in.TreatMissingData; v != "" && !slices.Contains([]string{"breaching", "notBreaching", "ignore", "missing"}, v) {
		return errValidation.With("Option %s is not supported. Supported options for parameter TreatMissingData are breaching, notBreaching, ignore and missing.", v)
	}
	if v := in.EvaluateLowSampleCountPercentile; v != "" && v != "evaluate" && v != "ignore" {
		return errValidation.With("Option %s is not supported. Supported options for parameter EvaluateLowSampleCountPercentile are evaluate and ignore.", v)
	}
	return nil
}

// Pages of DescribeAlarms.
const (
	defaultAlarmsPage = 50
	maxAlarmsPage     = 100
)

type describeAlarmsInput struct {
	AlarmNames          []string `json:"AlarmNames"`
	AlarmNamePrefix     string   `json:"AlarmNamePrefix"`
	AlarmTypes          []string `json:"AlarmTypes"`
	ChildrenOfAlarmName string   `json:"ChildrenOfAlarmName"`
	ParentsOfAlarmName  string   `json:"ParentsOfAlarmName"`
	StateValue          string   `json:"StateValue"`
	ActionPrefix        string   `json:"ActionPrefix"`
	MaxRecords          int      `json:"MaxRecords"`
	NextToken           string   `json:"NextToken"`
}

type describeAlarmsOutput struct {
	CompositeAlarms []api.Empty   `json:"CompositeAlarms"` // there are none
	MetricAlarms    []metricAlarm `json:"MetricAlarms"`
	NextToken       string        `json:"NextToken,omitempty"`
}

func (s *Service) describeAlarms(ctx context.Context, in *describeAlarmsInput) (*describeAlarmsOutput, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	c := api.CallOf(ctx)
	list := in.list(c)
	after, err := s.tokens.Read(list, in.NextToken)
	if err != nil {
		return nil, errInvalidToken
	}
	limit := in.MaxRecords
	if limit == 0 {
		limit = defaultAlarmsPage
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*alarm
	for key, a := range s.alarms {
		if key.region == c.Region && key.account == c.Account && in.matches(a) {
			found = append(found, a)
		}
	}
	slices.SortFunc(found, func(a, b *alarm) int { return strings.Compare(a.key.name, b.key.name) })
	found, last := page.Cut(found, func(a *alarm) string { return a.key.name }, after, limit)
	out := &describeAlarmsOutput{CompositeAlarms: []api.Empty{}, MetricAlarms: []metricAlarm{}}
	if last != "" {
		out.NextToken = s.tokens.Make(list, last)
	}
	for _, a := range found {
		out.MetricAlarms = append(out.MetricAlarms, a.describe())
	}
	return out, nil
}

// list names what the request lists.
func (in describeAlarmsInput) list(c *api.Call) string {
	in.NextToken, in.MaxRecords = "", 0
	return listOf(c, in)
}

func (in *describeAlarmsInput) check() error {
	switch {
	case len(in.AlarmNames) > maxAlarmsPage:
		return errValidation.With("The collection AlarmNames must not have a size greater than %d.", maxAlarmsPage)
	case len(in.AlarmNames) > 0 && in.AlarmNamePrefix != "":
		return errInvalidCombination.With("The parameters AlarmNames and AlarmNamePrefix are mutually exclusive and you have specified both.")
	case in.MaxRecords < 0 || in.MaxRecords > maxAlarmsPage:
		return constraint(in.MaxRecords, "maxRecords", "Member must have value less than or equal to 100")
	}
	for _, kind := range in.AlarmTypes {
		if err := enum(kind, "alarmTypes", "CompositeAlarm", "MetricAlarm"); err != nil {
			return err
		}
	}
	return enumState(in.StateValue)
}

func enumState(value string) error {
	return enum(value, "stateValue", stateInsufficient, stateAlarm, stateOK)
}

// matches reports whether the alarm is asked for. No alarm is the child or the parent of another:
// those are composite ones.
func (in *describeAlarmsInput) matches(a *alarm) bool {
	has := func(action string) bool { return strings.HasPrefix(action, in.ActionPrefix) }
	actions := slices.Concat(a.OKActions, a.AlarmActions, a.InsufficientDataActions)
	return (len(in.AlarmNames) == 0 || slices.Contains(in.AlarmNames, a.key.name)) &&
		strings.HasPrefix(a.key.name, in.AlarmNamePrefix) &&
		(len(in.AlarmTypes) == 0 || slices.Contains(in.AlarmTypes, "MetricAlarm")) &&
		in.ChildrenOfAlarmName == "" && in.ParentsOfAlarmName == "" &&
		(in.StateValue == "" || in.StateValue == a.state) &&
		(in.ActionPrefix == "" || slices.ContainsFunc(actions, has))
}

type alarmNamesInput struct {
	AlarmNames []string `json:"AlarmNames"`
}

func (in *alarmNamesInput) check() error {
	switch {
	case len(in.AlarmNames) == 0:
		return missing("AlarmNames")
	case len(in.AlarmNames) > maxAlarmsPage:
		return errValidation.With("The collection AlarmNames must not have a size greater than %d.", maxAlarmsPage)
	}
	return nil
}

// deleteAlarms deletes all of them or, if one is not there, none.
func (s *Service) deleteAlarms(ctx context.Context, in *alarmNamesInput) (*api.Empty, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	c := api.CallOf(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range in.AlarmNames {
		if s.alarms[alarmKey{c.Region, c.Account, name}] == nil {
			return nil, errNoAlarm
		}
	}
	for _, name := range in.AlarmNames {
		delete(s.alarms, alarmKey{c.Region, c.Account, name})
	}
	s.arm()
	return &api.Empty{}, nil
}

type setAlarmStateInput struct {
	AlarmName       string `json:"AlarmName"`
	StateValue      string `json:"StateValue"`
	StateReason     string `json:"StateReason"`
	StateReasonData string `json:"StateReasonData"`
}

// setAlarmState puts an alarm in a state until its next evaluation finds another.
func (s *Service) setAlarmState(ctx context.Context, in *setAlarmStateInput) (*api.Empty, error) {
	switch {
	case in.StateValue == "":
		return nil, missing("StateValue")
	case in.StateReasonData != "" && !json.Valid([]byte(in.StateReasonData)):
		return nil, errInvalidFormat.With("StateReasonData is not valid JSON.")
	}
	if err := firstOf(
		length(in.AlarmName, "AlarmName", 255, true), enumState(in.StateValue), length(in.StateReason, "StateReason", maxReason, false),
		length(in.StateReasonData, "StateReasonData", 4000, false),
	); err != nil {
		return nil, err
	}
	c := api.CallOf(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.alarms[alarmKey{c.Region, c.Account, in.AlarmName}]
	if a == nil {
		return nil, errNoAlarm
	}
	s.to(a, in.StateValue, in.StateReason, in.StateReasonData, s.clock.Now())
	return &api.Empty{}, nil
}

func (s *Service) enableAlarmActions(ctx context.Context, in *alarmNamesInput) (*api.Empty, error) {
	return s.setActions(ctx, in, true)
}

func (s *Service) disableAlarmActions(ctx context.Context, in *alarmNamesInput) (*api.Empty, error) {
	return s.setActions(ctx, in, false)
}

// setActions changes the alarms that there are; AWS is silent about others.
func (s *Service) setActions(ctx context.Context, in *alarmNamesInput, enabled bool) (*api.Empty, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	c := api.CallOf(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range in.AlarmNames {
		if a := s.alarms[alarmKey{c.Region, c.Account, name}]; a != nil {
			a.enabled = enabled
		}
	}
	return &api.Empty{}, nil
}
