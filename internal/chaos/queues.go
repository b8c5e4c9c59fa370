package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/stepfleet/stepfleet/internal/chaos/schedule"
)

// callTimeout bounds a call to what is under test; maxAnswer bounds what is read of its answer.
const (
	callTimeout = 10 * time.Second
	maxAnswer   = 1 << 20
)

// sqsRules are the rules of the local AWS by the kinds that they make.
var sqsRules = map[schedule.Kind]map[string]any{
	schedule.SQSError:     {"kind": "fail"},
	schedule.SQSThrottle:  {"kind": "throttle"},
	schedule.SQSLoss:      {"kind": "lose_answer"}, // a receive's messages, a send's acknowledgement
	schedule.SQSDuplicate: {"kind": "duplicate"},
	schedule.SQSReorder:   {"kind": "reorder", "delay_seconds": 0.3},
}

// control asks the local AWS's fault endpoint, at its own address.
func (n *nemesis) control(ctx context.Context, method, path string, body, answer any) error {
	var sent io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		sent = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, n.state.URLs["aws"]+"/_localaws/"+path, sent)
	if err != nil {
		return err
	}
	response, err := n.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return err
	}
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, path, response.Status, text)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}

// sqsRule has SQS misbehave for a while. It has landed when a call was hit.
func (n *nemesis) sqsRule(ctx context.Context, i *Injected, rule map[string]any) error {
	name := fmt.Sprintf("chaos-%d", time.Now().UnixNano())
	body := map[string]any{"service": "sqs", "probability": i.Share, "seed": uint64(i.Victim + 1)}
	for key, value := range rule {
		body[key] = value
	}
	i.Target = "sqs"
	if err := n.control(ctx, http.MethodPost, "faults/"+name, body, nil); err != nil {
		return fmt.Errorf("%w: %w", errNoVictim, err) // it may be killed or paused
	}
	at := time.Now()
	end := at.Add(i.Hold)
	for ctx.Err() == nil && time.Now().Before(end) {
		hold(ctx, min(victimInterval, time.Until(end)))
		var status struct {
			Hits int `json:"hits"`
		}
		if err := n.control(ctx, http.MethodGet, "faults/"+name, nil, &status); err != nil {
			break // a local AWS that died has forgotten the rule
		}
		i.Hits = status.Hits
	}
	_ = n.control(context.WithoutCancel(ctx), http.MethodDelete, "faults/"+name, nil, nil)
	i.Healed = time.Now()
	if i.Hits == 0 {
		i.Healed = time.Time{}
		return fmt.Errorf("%w: no call to SQS in %s", errNoVictim, i.Hold)
	}
	i.Landed = at
	return nil
}

// sqsOutage takes SQS away. It has landed when a call was refused, or cut while it waited.
func (n *nemesis) sqsOutage(ctx context.Context, i *Injected) error {
	if !n.take("outage") {
		return errNoVictim
	}
	defer n.give("outage")
	i.Target = "sqs"
	if err := n.control(ctx, http.MethodPost, "outages/sqs", map[string]any{}, nil); err != nil {
		return fmt.Errorf("%w: %w", errNoVictim, err)
	}
	at := time.Now()
	hold(ctx, i.Hold)
	var status struct {
		Outages []struct {
			Refused int `json:"refused"`
		} `json:"outages"`
	}
	err := n.control(ctx, http.MethodGet, "outages", nil, &status)
	_ = n.control(context.WithoutCancel(ctx), http.MethodDelete, "outages/sqs", nil, nil)
	i.Healed = time.Now()
	for _, o := range status.Outages {
		i.Hits += o.Refused
	}
	if err != nil || i.Hits == 0 {
		i.Healed = time.Time{}
		return fmt.Errorf("%w: no call to SQS was refused in %s", errNoVictim, i.Hold)
	}
	i.Landed = at
	return nil
}

// purge empties one of the queues, as an operator may.
func (n *nemesis) purge(ctx context.Context, i *Injected) error {
	queue := []string{"stepfleet-default", "stepfleet-runs"}[i.Victim%2]
	if n.FIFO {
		queue += ".fifo"
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	i.Target = queue
	found, err := n.queues.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: aws.String(queue)})
	if err == nil {
		_, err = n.queues.PurgeQueue(ctx, &sqs.PurgeQueueInput{QueueUrl: found.QueueUrl})
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errNoVictim, err)
	}
	i.Landed = time.Now()
	return nil
}

// heal ends what faults of SQS there may be still: one whose removal did not get through.
func (n *nemesis) heal(ctx context.Context) {
	for _, path := range []string{"faults", "outages"} {
		if err := n.control(ctx, http.MethodDelete, path, nil, nil); err != nil {
			n.Log.Warn("heal SQS", "error", err)
		}
	}
}
