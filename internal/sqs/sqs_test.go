package sqs

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go/middleware"
	"go.uber.org/goleak"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/conformance"
	"github.com/stepfleet/stepfleet/localaws"
	"github.com/stepfleet/stepfleet/localaws/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// client returns a real SDK client whose requests go to local AWS without a socket.
func client(local *localaws.AWS) *sqs.Client {
	return sqs.New(sqs.Options{
		Region: "us-east-1", Credentials: credentials.NewStaticCredentialsProvider("key", "secret", ""),
		HTTPClient: &http.Client{Transport: local.Transport()}, RetryMaxAttempts: attempts,
	})
}

func ensure(t *testing.T, b *Bells, queues ...string) {
	t.Helper()
	for _, q := range queues {
		if err := b.EnsureQueue(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBells(t *testing.T) {
	for name, o := range map[string]Options{"standard": {}, "FIFO": {FIFO: true}} {
		t.Run(name, func(t *testing.T) {
			conformance.RunBells(t, func(t *testing.T) conformance.BellEnv {
				local := localaws.New(localaws.Options{Seed: 1})
				b := New(client(local), o)
				ensure(t, b, "one", "two")
				return conformance.BellEnv{
					Ringer: b, Listener: b, Queue: "one", Other: "two", Missing: "three",
					Break:       func(broken bool) { local.Faults.Outage("sqs", broken) },
					RefusesLate: o.FIFO,
				}
			})
		})
	}
}

func TestForeignMessagesAreDeletedAndHaveNoEffect(t *testing.T) {
	local := localaws.New(localaws.Options{})
	raw := client(local)
	var log strings.Builder
	b := New(raw, Options{Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	ensure(t, b, "one")
	url, err := b.url(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{"hello", `{"v":2,"queue":"one"}`, `{"v":1,"queue":"two"}`, `{"v":1}`, `[]`, `null`, `{"v":1,"queue":"one"}`} {
		if _, err := raw.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: &url, MessageBody: aws.String(body)}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := b.Receive(t.Context(), "one", 10, 0)
	if err != nil || len(got) != 1 {
		t.Fatalf("got %v, %v; want the one bell", got, err)
	}
	if n := strings.Count(log.String(), "no bell"); n != 6 || strings.Contains(log.String(), "level=INFO") {
		t.Errorf("want 6 lines at debug, got:\n%s", log.String())
	}
	all, err := raw.GetQueueAttributes(t.Context(), &sqs.GetQueueAttributesInput{QueueUrl: &url, AttributeNames: []types.QueueAttributeName{"All"}})
	if err != nil {
		t.Fatal(err)
	}
	if all.Attributes["ApproximateNumberOfMessages"] != "0" || all.Attributes["ApproximateNumberOfMessagesNotVisible"] != "1" {
		t.Errorf("left in the queue: %v", all.Attributes)
	}
}

func TestEnsureQueueSetsAttributesAndTakesAnExistingQueue(t *testing.T) {
	raw := client(localaws.New(localaws.Options{}))
	b := New(raw, Options{Prefix: "x-"})
	ensure(t, b, "one", "one")
	created, err := raw.GetQueueUrl(t.Context(), &sqs.GetQueueUrlInput{QueueName: aws.String("x-one")})
	if err != nil {
		t.Fatal(err)
	}
	all, err := raw.GetQueueAttributes(t.Context(), &sqs.GetQueueAttributesInput{QueueUrl: created.QueueUrl, AttributeNames: []types.QueueAttributeName{"All"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"VisibilityTimeout": "5", "MessageRetentionPeriod": "3600", "ReceiveMessageWaitTimeSeconds": "0"} {
		if all.Attributes[name] != want {
			t.Errorf("%s is %s, want %s", name, all.Attributes[name], want)
		}
	}
	if _, err := raw.CreateQueue(t.Context(), &sqs.CreateQueueInput{QueueName: aws.String("x-two")}); err != nil {
		t.Fatal(err)
	}
	ensure(t, b, "two") // has other attributes, and is taken as it is
	if err := b.Ring(t.Context(), "two", 1); err != nil {
		t.Error(err)
	}
}

// counting counts lookups, to see that they are cached.
type counting struct {
	Client
	lookups int
}

func (c *counting) GetQueueUrl(ctx context.Context, in *sqs.GetQueueUrlInput, f ...func(*sqs.Options)) (*sqs.GetQueueUrlOutput, error) {
	c.lookups++
	return c.Client.GetQueueUrl(ctx, in, f...)
}

func TestURLIsLookedUpOnceAndAgainAfterTheQueueWasMissing(t *testing.T) {
	raw := client(localaws.New(localaws.Options{}))
	created, err := raw.CreateQueue(t.Context(), &sqs.CreateQueueInput{QueueName: aws.String("stepfleet-one")})
	if err != nil {
		t.Fatal(err)
	}
	c := &counting{Client: raw}
	b := New(c, Options{})
	for range 3 {
		if err := b.Ring(t.Context(), "one", 1); err != nil {
			t.Fatal(err)
		}
	}
	if c.lookups != 1 {
		t.Errorf("looked up %d times, want once", c.lookups)
	}
	if _, err := raw.DeleteQueue(t.Context(), &sqs.DeleteQueueInput{QueueUrl: created.QueueUrl}); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if err := b.Ring(t.Context(), "one", 1); !errors.Is(err, stepfleet.ErrUnknownQueue) {
			t.Errorf("ring %d of a deleted queue: %v, want ErrUnknownQueue", i, err)
		}
	}
	if c.lookups != 2 {
		t.Errorf("looked up %d times, want again after the queue was missing", c.lookups)
	}
}

func TestLostAnswersDoubleBellsAtWorst(t *testing.T) {
	local := localaws.New(localaws.Options{})
	b := New(client(local), Options{})
	ensure(t, b, "one")
	local.Faults.Add(fault.Rule{Service: "sqs", Op: "SendMessageBatch", Kind: fault.LoseAnswer, Times: 1})
	if err := b.Ring(t.Context(), "one", 1); err != nil {
		t.Fatalf("the retry should have healed it: %v", err)
	}
	got, err := b.Receive(t.Context(), "one", 10, 0)
	if err != nil || len(got) != 2 {
		t.Errorf("got %d bells, %v; want the bell and its double", len(got), err)
	}
}

// TestOverHTTP goes the way production does: configuration from the environment, a real socket.
func TestOverHTTP(t *testing.T) {
	server := httptest.NewServer(localaws.New(localaws.Options{}))
	defer server.Close()
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL": server.URL, "AWS_REGION": "eu-central-1", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
		"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true",
	} {
		t.Setenv(name, value)
	}
	b, err := Open(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	ensure(t, b, "one")
	if err := b.Ring(t.Context(), "one", 11); err != nil {
		t.Fatal(err)
	}
	got, err := b.Receive(t.Context(), "one", 10, time.Second)
	if err != nil || len(got) != 10 {
		t.Fatalf("got %d bells, %v; want 10", len(got), err)
	}
	if err := b.Answer(t.Context(), "one", got); err != nil {
		t.Error(err)
	}
	server.Close()
	if err := b.Ring(t.Context(), "one", 1); !errors.Is(err, stepfleet.ErrUnavailable) {
		t.Errorf("ring with SQS gone: %v, want ErrUnavailable", err)
	}
}

// A repeat is a request, too: AWS bills it. And repeats are a tenth of the requests at most.
func TestRequestsAreToldAndRepeatsAreBounded(t *testing.T) {
	local := localaws.New(localaws.Options{Seed: 1})
	told := map[string]int{}
	o := Options{OnRequest: func(op, code string) { told[op+" "+code]++ }}
	c := sqs.New(sqs.Options{
		Region: "us-east-1", Credentials: credentials.NewStaticCredentialsProvider("key", "secret", ""),
		HTTPClient: &http.Client{Transport: local.Transport()}, Retryer: retryer(), APIOptions: []func(*middleware.Stack) error{o.watch},
	})
	b := New(c, o)
	ensure(t, b, "one")
	if err := b.Ring(t.Context(), "one", 1); err != nil {
		t.Fatal(err)
	}
	local.Faults.Outage("sqs", true)
	const rings = 30
	for range rings {
		if err := b.Ring(t.Context(), "one", 1); !errors.Is(err, stepfleet.ErrUnavailable) {
			t.Fatal(err)
		}
	}
	failed := 0
	for what, n := range told {
		if strings.HasPrefix(what, "SendMessageBatch ") && !strings.HasSuffix(what, " ok") {
			failed += n
		}
	}
	if told["CreateQueue ok"] != 1 || told["SendMessageBatch ok"] != 1 || failed != rings+tokensSaved/tokensPerRepeat {
		t.Errorf("told of %v, want one of each that went well and %d of %d rings in an outage", told, rings+tokensSaved/tokensPerRepeat, rings)
	}
}
