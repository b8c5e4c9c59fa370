package cloudwatch

import "time"

// QueueStats is what SQS tells of one queue. The counters count from its creation.
type QueueStats struct {
	Region, Account, Name                             string
	Visible, NotVisible, Delayed                      int
	OldestAge                                         time.Duration
	Sent, Received, Deleted, EmptyReceives, SentBytes uint64

	FIFO           bool
	Deduplicated   uint64
	GroupsInFlight int
}

// QueueNamespace is where the metrics of queues are.
const QueueNamespace = "AWS/SQS"

// QueueFeed returns what to Feed for the queues whose numbers stats returns.
func QueueFeed(stats func() []QueueStats) Source { return &queueSource{stats: stats} }

// queueSource makes numbers of a period from those since a queue's creation.
type queueSource struct {
	stats  func() []QueueStats
	before []QueueStats
}

func (s *queueSource) Samples() []Sample {
	now := s.stats()
	samples := QueueSamples(s.before, now)
	s.before = now
	return samples
}

// Reset forgets the queues: those that come are new, whatever their names.
func (s *queueSource) Reset() { s.before = nil }

// QueueSamples returns the metrics that AWS has of queues: how they are now, and what happened
// since before. A queue that is not among before is new, and one whose counters have fallen is
// another of the same name: all that they count has happened since.
func QueueSamples(before, now []QueueStats) []Sample {
	type key struct{ region, account, name string }
	last := make(map[key]QueueStats, len(before))
	for _, q := range before {
		last[key{q.Region, q.Account, q.Name}] = q
	}
	samples := make([]Sample, 0, 11*len(now))
	for _, q := range now {
		was := last[key{q.Region, q.Account, q.Name}]
		if q.Sent < was.Sent || q.Received < was.Received || q.Deleted < was.Deleted || q.EmptyReceives < was.EmptyReceives || q.SentBytes < was.SentBytes || q.Deduplicated < was.Deduplicated {
			was = QueueStats{}
		}
		samples = append(samples, q.samples(was)...)
	}
	return samples
}

func (q QueueStats) samples(was QueueStats) []Sample {
	one := func(name, unit string, value float64) Sample {
		return Sample{
			Region: q.Region, Account: q.Account, Name: name, Unit: unit, Value: value,
			Dimensions: []Dimension{{"QueueName", q.Name}},
		}
	}
	sent := float64(q.Sent - was.Sent)
	out := []Sample{
		one("ApproximateNumberOfMessagesVisible", "Count", float64(q.Visible)),
		one("ApproximateNumberOfMessagesNotVisible", "Count", float64(q.NotVisible)),
		one("ApproximateNumberOfMessagesDelayed", "Count", float64(q.Delayed)),
		one("ApproximateAgeOfOldestMessage", "Seconds", float64(q.OldestAge/time.Second)),
		one("NumberOfMessagesSent", "Count", sent),
		one("NumberOfMessagesReceived", "Count", float64(q.Received-was.Received)),
		one("NumberOfMessagesDeleted", "Count", float64(q.Deleted-was.Deleted)),
		one("NumberOfEmptyReceives", "Count", float64(q.EmptyReceives-was.EmptyReceives)),
	}
	if q.FIFO {
		out = append(out,
			one("NumberOfDeduplicatedSentMessages", "Count", float64(q.Deduplicated-was.Deduplicated)),
			one("ApproximateNumberOfGroupsWithInflightMessages", "Count", float64(q.GroupsInFlight)))
	}
	if sent > 0 { // the mean stands for each: sum and count are exact, extremes are not known
		size := one("SentMessageSize", "Bytes", float64(q.SentBytes-was.SentBytes)/sent)
		size.Count = sent
		out = append(out, size)
	}
	return out
}
