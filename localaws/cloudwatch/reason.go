package cloudwatch

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// maxReason is the longest reason in bytes.
const maxReason = 1023

// reason words an evaluation as AWS does.
func (a *alarm) reason(e evaluation) string {
	text := a.insufficient(e)
	if e.state != stateInsufficient {
		text = "Threshold Crossed: " + a.crossed(e) + "."
	}
	if len(text) > maxReason {
		text = text[:maxReason-3] + "..."
	}
	return text
}

func (a *alarm) insufficient(e evaluation) string {
	return "Insufficient Data: " + plural(e.unknown, "datapoint was unknown", "datapoints were unknown") + "."
}

func (a *alarm) crossed(e evaluation) string {
	treated := plural(e.treated, "missing datapoint was", "missing datapoints were") + " treated as [" + e.treatAs + "]"
	if len(e.real) == 0 {
		return "no datapoints were received for " + plural(a.EvaluationPeriods, "period", "periods") + " and " + treated
	}
	var shown []string
	for _, p := range e.real {
		if p.breaching == (e.state == stateAlarm) {
			shown = append(shown, javaDouble(p.value)+" ("+p.at.UTC().Format("02/01/06 15:04:05")+")")
		}
	}
	not := "not "
	if e.state == stateAlarm {
		not = ""
	}
	was := "was "
	if len(shown) != 1 {
		was = "were "
	}
	count := plural(len(shown), "datapoint", "datapoints")
	if a.DatapointsToAlarm != nil {
		count = fmt.Sprintf("%d out of the last %d datapoints", len(shown), a.EvaluationPeriods)
	}
	text := count + " [" + strings.Join(shown, ", ") + "] " + was + not + comparisons[a.ComparisonOperator].words +
		" the threshold (" + javaDouble(*a.Threshold) + ")"
	if a.DatapointsToAlarm != nil {
		text += " (minimum " + a.minimum(e.state) + " transition)"
	}
	if e.treated > 0 {
		text += " and " + treated
	}
	return text
}

// minimum says how many datapoints it takes to come to the state.
func (a *alarm) minimum(state string) string {
	if state == stateAlarm {
		return plural(a.needed(), "datapoint", "datapoints") + " for OK -> ALARM"
	}
	return plural(a.EvaluationPeriods-a.needed()+1, "datapoint", "datapoints") + " for ALARM -> OK"
}

// reasonData is the reason for programs. Its error is that a value has no form in JSON, which no
// value has that was put; a timer must outlive it all the same.
func (a *alarm) reasonData(e evaluation, now time.Time) (string, error) {
	type evaluated struct {
		Timestamp   string   `json:"timestamp"`
		SampleCount *float64 `json:"sampleCount,omitempty"`
		Value       *float64 `json:"value,omitempty"`
	}
	const layout = "2006-01-02T15:04:05.000-0700"
	data := struct {
		Version    string      `json:"version"`
		QueryDate  string      `json:"queryDate"`
		StartDate  string      `json:"startDate,omitempty"`
		Unit       string      `json:"unit,omitempty"`
		Statistic  string      `json:"statistic"`
		Period     int         `json:"period"`
		Recent     []float64   `json:"recentDatapoints"`
		Threshold  float64     `json:"threshold"`
		Datapoints []evaluated `json:"evaluatedDatapoints"`
	}{
		Version: "1.0", QueryDate: now.UTC().Format(layout), Unit: a.Unit, Statistic: a.Statistic + a.ExtendedStatistic,
		Period: a.Period, Recent: []float64{}, Threshold: *a.Threshold,
	}
	for i := len(e.real) - 1; i >= 0; i-- {
		data.Recent = append(data.Recent, e.real[i].value)
		if data.StartDate == "" {
			data.StartDate = e.real[i].at.UTC().Format(layout)
		}
	}
	for _, p := range e.points {
		one := evaluated{Timestamp: p.at.UTC().Format(layout)}
		if !p.missing {
			one.SampleCount, one.Value = &p.count, &p.value
		}
		data.Datapoints = append(data.Datapoints, one)
	}
	text, err := json.Marshal(data)
	return string(text), err
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// javaDouble writes a number as AWS's texts have it.
func javaDouble(v float64) string {
	if size := math.Abs(v); size != 0 && (size < 1e-3 || size >= 1e7) {
		text := strconv.FormatFloat(v, 'E', -1, 64)
		mantissa, exponent, _ := strings.Cut(text, "E")
		if !strings.Contains(mantissa, ".") {
			mantissa += ".0"
		}
		power, _ := strconv.Atoi(exponent)
		return mantissa + "E" + strconv.Itoa(power)
	}
	text := strconv.FormatFloat(v, 'f', -1, 64)
	if !strings.Contains(text, ".") {
		text += ".0"
	}
	return text
}
