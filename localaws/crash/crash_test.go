// Package crash kills a local AWS that keeps its state in a directory, again and again, while
// clients send, receive, extend, purge and delete, and shows that nothing it answered is lost or
// undone, under every fsync policy.
//
// Where to read: crash_test.go is the experiment; server_test.go starts a server in a process of
// its own and kills it; traffic_test.go is what the clients do, settings_test.go what happens to
// queues themselves; history_test.go knows what was promised, and judges; hidden_test.go is the part
// of it that knows when a message may be received, purge_test.go the part on purges.
//
// Short in `go test`; `make test-aws` has a thousand kills:
//
//	go test ./localaws/crash -kills 1000 -seed 7
package crash_test

import (
	"context"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"go.uber.org/goleak"

	"github.com/stepfleet/stepfleet/localaws/journal"
)

var (
	kills = flag.Int("kills", 20, "how often the server is killed")
	seed  = flag.Uint64("seed", 0, "seed of moments and choices; 0 picks one")
)

const (
	// rotateAt has the journal write a snapshot every few lives.
	rotateAt = 32 << 10
	// A life lasts from leastCalls to mostCalls calls.
	leastCalls, mostCalls = 5, 300
	// A server's clock is so much further than that of the life before, so that what was locked when
	// it was killed is free a life or two later, and deduplication is forgotten after thirty.
	lifetime          = 10 * time.Second
	livesRemembered   = 25
	visibilityTimeout = 15 * time.Second
	// What is hidden longer is visible a few lives later.
	longestHidden = 40 * time.Second
	// One life in so many, a multiple of the policies, lasts until the timer of the journal syncs, a
	// second after its first record.
	longLifeEvery = 30
	syncDue       = 980 * time.Millisecond
	syncSpread    = 100 * time.Millisecond
)

// policies are taken in turn: what one wrote, the next reads. In a kill the data is safe under each;
// what differs is where the journal is when it comes.
var policies = []journal.Sync{journal.SyncNever, journal.SyncInterval, journal.SyncAlways}

func TestMain(m *testing.M) {
	if dir := os.Getenv(dirVariable); dir != "" {
		if err := serveForever(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

const region, account = "eu-west-1", "000000000000"

func arnOf(queue string) string { return "arn:aws:sqs:" + region + ":" + account + ":" + queue }

// experiment is one directory and everything that is known about it.
type experiment struct {
	t        *testing.T
	dir      string
	random   *rand.Rand
	lives    int
	history  *history
	families []*family
	settings *settings
	amid     int // kills between a new log and its snapshot
	partial  int // kills in the middle of writing a snapshot
	rotated  uint64
}

func TestNothingAnsweredIsLostByKills(t *testing.T) {
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("seed %d: go test ./localaws/crash -kills %d -seed %d", s, *kills, s)
	e := &experiment{t: t, dir: t.TempDir(), random: rand.New(rand.NewPCG(s, 0)), history: newHistory(), families: []*family{
		{name: "standard", workers: 2},
		{name: "ordered", fifo: true, workers: 2},
		{name: "redriven", redrives: true, workers: 1},
		{name: "redriven-ordered", fifo: true, redrives: true, workers: 1},
		{name: "by-content", fifo: true, byContent: true, delay: 3 * time.Second, workers: 1},
		{name: "purged", purges: true, workers: 1},
		{name: "purged-ordered", fifo: true, purges: true, workers: 1},
	}}
	e.life(0, e.create)
	for range *kills {
		e.life(leastCalls+e.random.IntN(mostCalls-leastCalls), nil)
		if report := e.history.report(); report != "" {
			t.Fatalf("after %d kills:\n%s", e.lives, report)
		}
	}
	e.lives += 10 // everything is visible again
	e.life(0, e.drain)
	if report := e.history.report(); report != "" {
		t.Errorf("after %d kills, in the end:\n%s", *kills, report)
	}
	h := e.history
	t.Logf("%d sends, %d receives, %d extensions, %d deletions, %d purges answered; %d messages delayed; %d times one was hidden at a kill",
		h.sends, h.receives, h.extensions, h.deletes, h.purges, h.delays, h.hidden)
	t.Logf("%d snapshots; %d kills between log and snapshot, %d amid a snapshot's writing", e.rotated, e.amid, e.partial)
	if h.sends < 10*(*kills) || e.rotated == 0 || h.hidden < *kills || *kills >= 1000 && min(e.amid, h.delays, h.extensions, h.purges) == 0 {
		t.Error("too little happened to show anything")
	}
}

// client returns a client that does not retry, and what closes its connections.
func client(url string) (*sqs.Client, func()) {
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	return sqs.New(sqs.Options{
		Region: region, BaseEndpoint: &url, Credentials: credentials.NewStaticCredentialsProvider("key", "secret", ""),
		Retryer: aws.NopRetryer{}, HTTPClient: &http.Client{Transport: transport},
	}), transport.CloseIdleConnections
}

// life starts the server, lets do run, or clients for so many calls, and kills it.
func (e *experiment) life(calls int, do func(context.Context, *sqs.Client)) {
	e.t.Helper()
	policy := policies[e.lives%len(policies)]
	long := e.lives%longLifeEvery == slices.Index(policies, journal.SyncInterval)
	ahead := time.Duration(e.lives) * lifetime
	s := startServer(e.t, e.dir, ahead, policy)
	defer func() {
		s.kill()
		s.wait()
		e.look()
	}()
	e.lives++
	e.history.begin(e.lives, ahead)
	c, closeAll := client(s.url)
	defer closeAll()
	if e.settings != nil {
		if err := e.settings.check(e.t.Context(), c); err != nil {
			e.t.Fatalf("after %d kills: %v", e.lives-1, err)
		}
	}
	if do != nil {
		do(e.t.Context(), c)
		return
	}
	e.count(c)
	if long {
		calls = math.MaxInt
		defer time.AfterFunc(syncDue+time.Duration(e.random.Int64N(int64(syncSpread))), s.kill).Stop()
	}
	e.work(c, trigger(calls, s.kill))
	e.history.countHidden()
}

// look notes at which point of the journal's own work the kill came.
func (e *experiment) look() {
	f := filesIn(e.t, e.dir)
	e.rotated = f.snapshot
	if f.amidRotation() {
		e.amid++
	}
	if f.unfinished {
		e.partial++
	}
}

// work has every client at it until the server is gone.
func (e *experiment) work(c *sqs.Client, begun func()) {
	var workers sync.WaitGroup
	number := 0
	begin := func(f *family, run func(*worker)) {
		number++
		w := &worker{
			Client: c, ctx: e.t.Context(), family: f, number: number, history: e.history, begun: begun,
			random: rand.New(rand.NewPCG(e.random.Uint64(), 0)),
		}
		workers.Go(func() { run(w) })
	}
	for _, f := range e.families {
		for range f.workers {
			begin(f, (*worker).run)
		}
	}
	begin(nil, e.settings.run)
	workers.Wait()
}

func (e *experiment) create(ctx context.Context, c *sqs.Client) {
	for _, f := range e.families {
		attributes := map[string]string{"VisibilityTimeout": seconds(visibilityTimeout), "DelaySeconds": seconds(f.delay)}
		if f.fifo {
			attributes["FifoQueue"], attributes["ContentBasedDeduplication"] = "true", strconv.FormatBool(f.byContent)
		}
		if f.redrives {
			f.urls = append(f.urls, e.createOne(ctx, c, f.name+"-dead"+f.suffix(), attributes))
			attributes["RedrivePolicy"] = fmt.Sprintf(`{"deadLetterTargetArn":%q,"maxReceiveCount":2}`, arnOf(f.name+"-dead"+f.suffix()))
		}
		f.urls = append([]string{e.createOne(ctx, c, f.name+f.suffix(), attributes)}, f.urls...)
	}
	e.settings = newSettings(e.createOne(ctx, c, "settings", nil))
	if _, err := c.TagQueue(ctx, &sqs.TagQueueInput{QueueUrl: &e.settings.url, Tags: map[string]string{"n": "0"}}); err != nil {
		e.t.Fatal(err)
	}
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }

// createOne makes a queue and returns its name, which stands for its URL: the port changes with
// every life.
func (e *experiment) createOne(ctx context.Context, c *sqs.Client, name string, attributes map[string]string) string {
	if _, err := c.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: &name, Attributes: attributes}); err != nil {
		e.t.Fatal(err)
	}
	return name
}

// count brings the backlogs in line with the server.
func (e *experiment) count(c *sqs.Client) {
	for _, f := range e.families {
		f.backlog.Store(0)
		for i := range f.urls {
			for _, n := range e.counters(c, f.urls[i]) {
				f.backlog.Add(int64(n))
			}
		}
	}
}

// counters returns the numbers of visible messages, of those in flight and of delayed ones.
func (e *experiment) counters(c *sqs.Client, url string) (all [3]int) {
	e.t.Helper()
	out, err := c.GetQueueAttributes(e.t.Context(), &sqs.GetQueueAttributesInput{QueueUrl: &url, AttributeNames: []types.QueueAttributeName{"All"}})
	if err != nil {
		e.t.Fatal(err)
	}
	for i, name := range []string{"ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"} {
		all[i], _ = strconv.Atoi(out.Attributes[name])
	}
	return all
}

// drain takes out what is left, and compares it with what was promised.
func (e *experiment) drain(ctx context.Context, c *sqs.Client) {
	left := map[string]int{}
	for _, f := range e.families {
		for i := range f.urls {
			e.drainOne(ctx, c, f, f.urls[i], left)
			if n := e.counters(c, f.urls[i]); n != [3]int{} {
				e.t.Errorf("%s counts %v when nothing is left in it", f.urls[i], n)
			}
		}
	}
	e.history.judgeEnd(left)
}

// drainVisibility is longer than it takes to drain a queue.
const drainVisibility = 10 * time.Minute

func (e *experiment) drainOne(ctx context.Context, c *sqs.Client, f *family, url string, left map[string]int) {
	for {
		began := e.history.now()
		out, err := c.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: &url, MaxNumberOfMessages: 10, VisibilityTimeout: int32(drainVisibility / time.Second)})
		if err != nil {
			e.t.Fatal(err)
		}
		if len(out.Messages) == 0 {
			return
		}
		e.history.received(f, began, drainVisibility, out.Messages)
		e.history.deleting(out.Messages)
		for _, m := range out.Messages {
			left[*m.Body]++
			if _, err := c.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: &url, ReceiptHandle: m.ReceiptHandle}); err != nil {
				e.t.Fatal(err)
			}
		}
	}
}
