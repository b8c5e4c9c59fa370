package cloudwatch

import "testing"

// Far too many data in a call are counted, not copied.
func TestTooManyDataAreNotCopied(t *testing.T) {
	in := &putMetricDataInput{EntityMetricData: make([]entityData, 100)}
	for i := range in.EntityMetricData {
		in.EntityMetricData[i].MetricData = make([]metricDatum, maxData)
	}
	var err error
	if n := testing.AllocsPerRun(1, func() { _, err = in.data() }); err == nil || n > 5 {
		t.Errorf("%v after %v allocations", err, n)
	}
}
