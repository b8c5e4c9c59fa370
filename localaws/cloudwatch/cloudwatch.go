// Package cloudwatch is the part of Amazon CloudWatch that queues and autoscalers use: metrics
// that are put, read and listed, and alarms on one metric. Metric math, anomaly bands, composite
// alarms, dashboards, streams and alarm actions are not emulated; what names them is refused.
//
// Where to read: cloudwatch.go holds the service; aggregate.go is the statistics of what was put in
// one period, store.go keeps them and is what bounds the memory; put.go, query.go and data.go are
// the operations on metrics; evaluate.go decides the state of an alarm, reason.go words it,
// alarm.go keeps alarms and wakes for them, alarm_ops.go has their operations; token.go names lists
// in their tokens; feed.go is how another service's numbers come in, and queues.go makes those of SQS.
//
// What is authoritative: the service's mutex guards everything. Data is visible as soon as it is
// put, where AWS needs up to two minutes. A timer runs only while there are alarms or feeds.
package cloudwatch

import (
	"log/slog"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/clock"
	"github.com/stepfleet/stepfleet/localaws/page"
)

// Options is what the service needs from outside; every field is required.
type Options struct {
	Clock  clock.Clock
	Logger *slog.Logger
	Tokens page.Tokens
}

// Service is CloudWatch with the metrics and alarms of every account and region.
type Service struct {
	clock  clock.Clock
	log    *slog.Logger
	tokens page.Tokens

	mu     sync.Mutex
	store  store
	feeds  map[*feed]bool
	alarms map[alarmKey]*alarm
	wake   clock.Timer // for the next evaluation; nil until there was an alarm
	wakes  time.Time   // when; zero while it does not
}

// New returns a CloudWatch that holds nothing.
func New(o Options) *Service {
	return &Service{
		clock: o.Clock, log: o.Logger, tokens: o.Tokens,
		store: newStore(o.Logger), feeds: map[*feed]bool{}, alarms: map[alarmKey]*alarm{},
	}
}

// API returns the service's table of operations. The service's name in a signature is not the one
// it is known by.
func (s *Service) API() api.Service {
	return api.Service{
		Name: "monitoring", Target: "GraniteServiceVersion20100801", Namespace: "com.amazonaws.cloudwatch", JSONVersion: "1.0",
		Shape:     "GraniteServiceVersion20100801",
		Query:     &api.Query{Version: "2010-08-01", Namespace: "http://monitoring.amazonaws.com/doc/2010-08-01/"},
		Throttled: errThrottled, Reset: s.Reset,
		Ops: map[string]api.Operation{
			"PutMetricData":       api.Op(s.putMetricData),
			"GetMetricData":       api.Op(s.getMetricData),
			"GetMetricStatistics": api.Op(s.getMetricStatistics),
			"ListMetrics":         api.Op(s.listMetrics),
			"PutMetricAlarm":      api.Op(s.putMetricAlarm),
			"DescribeAlarms":      api.Op(s.describeAlarms),
			"DeleteAlarms":        api.Op(s.deleteAlarms),
			"SetAlarmState":       api.Op(s.setAlarmState),
			"EnableAlarmActions":  api.Op(s.enableAlarmActions),
			"DisableAlarmActions": api.Op(s.disableAlarmActions),
			"TagResource":         api.Op(s.tagResource),
			"UntagResource":       api.Op(s.untagResource),
			"ListTagsForResource": api.Op(s.listTagsForResource),
		},
	}
}

// Reset drops every metric and alarm. Feeds go on, and what they count begins anew. Reset what they
// ask before.
func (s *Service) Reset() {
	for _, f := range s.allFeeds() {
		f.reset()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store = newStore(s.log)
	s.alarms = map[alarmKey]*alarm{}
	s.arm()
}
