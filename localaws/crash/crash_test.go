// Package crash kills a local AWS that keeps its state in a directory, again and again, while
// clients send, receive and delete, and shows that nothing it answered is lost or undone.
//
// Where to read: crash_test.go is the experiment; server_test.go starts a server in a process of
// its own and kills it; traffic_test.go is what the clients do, settings_test.go what happens to
// queues themselves; history_test.go knows what was promised, and judges.
//
// Short in `go test`; `make test-aws` has a thousand kills:
//
//	go test ./localaws/crash -kills 1000 -seed 7
package crash_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"go.uber.org/goleak"
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
	visibilityTimeout = "15"
)

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
	t.Logf("%d sends, %d receives, %d deletions answered; %d snapshots; %d kills between log and snapshot, %d amid a snapshot's writing",
		e.history.sends, e.history.receives, e.history.deletes, e.rotated, e.amid, e.partial)
	if e.history.sends < 10*(*kills) || e.rotated == 0 || *kills >= 1000 && e.amid == 0 {
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
	s := startServer(e.t, e.dir, time.Duration(e.lives)*lifetime)
	defer func() {
		s.kill()
		s.wait()
		e.look()
	}()
	e.lives++
	e.history.life = e.lives
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
	e.work(c, trigger(calls, s.kill))
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
		attributes := map[string]string{"VisibilityTimeout": visibilityTimeout}
		if f.fifo {
			attributes["FifoQueue"] = "true"
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

func (e *experiment) drainOne(ctx context.Context, c *sqs.Client, f *family, url string, left map[string]int) {
	for {
		began := e.history.now()
		out, err := c.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: &url, MaxNumberOfMessages: 10, VisibilityTimeout: 600})
		if err != nil {
			e.t.Fatal(err)
		}
		if len(out.Messages) == 0 {
			return
		}
		e.history.received(f, began, out.Messages)
		e.history.deleting(out.Messages)
		for _, m := range out.Messages {
			left[*m.Body]++
			if _, err := c.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: &url, ReceiptHandle: m.ReceiptHandle}); err != nil {
				e.t.Fatal(err)
			}
		}
	}
}
