package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/devstack"
)

// restWithin is how long after the last task has ended something may still be there: the session of a
// worker that was killed goes with its run lease, a slot with its process.
func (c *Config) restWithin() time.Duration { return c.Lifetimes.RunLease + recoverWithin }

// rest waits until nothing is left. What stays is found when the witnesses are collected.
func (s *stack) rest(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.restWithin())
	defer cancel()
	for {
		open, err := s.openSessions(ctx)
		taken, _ := s.takenSlots(ctx)
		if err == nil && len(open) == 0 && len(taken) == 0 || ctx.Err() != nil {
			return nil
		}
		hold(ctx, loadInterval)
	}
}

// openSessions returns those whose worker is gone.
func (s *stack) openSessions(ctx context.Context) ([]string, error) {
	var all []sighting
	err := s.inLedger(ctx, func(conn *pgx.Conn) (err error) {
		all, err = read(ctx, conn, selectSessions, scanSighting)
		return err
	})
	var sessions []stepfleet.Session
	for _, seen := range all {
		one := stepfleet.Session{ID: seen.ID, State: seen.State}
		one.Worker, one.Instance = seen.Worker, seen.Instance
		sessions = append(sessions, one)
	}
	return openSessions(sessions, s.instances()), err
}

// openSessions returns the sessions that are not dead although the worker's life is over.
func openSessions(sessions []stepfleet.Session, alive map[string]bool) []string {
	open := []string{}
	for _, s := range sessions {
		if s.State != stepfleet.SessionDead && !alive[s.Instance] {
			open = append(open, fmt.Sprintf("session %d of %s", s.ID, s.Worker))
		}
	}
	return open
}

// children names the processes that are in user code.
func children(busy []effect) []string {
	names := []string{}
	for _, e := range busy {
		names = append(names, fmt.Sprintf("process %d of %s on %s", e.PID, e.Key, e.Worker))
	}
	return names
}

// takenSlots asks every worker which of its slots are taken, and returns of how many lanes it heard. A
// worker that does not answer counts as one that has not given its slots back.
func (s *stack) takenSlots(ctx context.Context) (taken []string, lanes int) {
	taken = []string{}
	for w := range workers {
		name := workerName(w)
		text, err := s.metricsOf(ctx, name)
		if err != nil {
			taken = append(taken, fmt.Sprintf("%s does not say: %v", name, err))
			continue
		}
		left, asked := slotsIn(name, text)
		taken, lanes = append(taken, left...), lanes+asked
	}
	return taken, lanes
}

var (
	probesLine = regexp.MustCompile(`"?worker begins"?.* probes=(\S+)`)
	slotsLine  = regexp.MustCompile(`(?m)^stepfleet_slots_taken\{queue="([^"]*)"\} (\S+)$`)
)

// slotsIn reads a worker's answer.
func slotsIn(worker, metrics string) (taken []string, lanes int) {
	for _, line := range slotsLine.FindAllStringSubmatch(metrics, -1) {
		lanes++
		if n, err := strconv.ParseFloat(line[2], 64); err != nil || n != 0 {
			taken = append(taken, fmt.Sprintf("%s of queue %s in %s", line[2], line[1], worker))
		}
	}
	if lanes == 0 {
		taken = append(taken, worker+" has no lane")
	}
	return taken, lanes
}

// maxMetrics bounds what a worker may say.
const maxMetrics = 1 << 20

// metricsOf asks the worker's present life, whose address is in its log.
func (s *stack) metricsOf(ctx context.Context, worker string) (string, error) {
	log, err := os.ReadFile(devstack.Layout{Dir: s.devDir()}.Log(worker))
	if err != nil {
		return "", err
	}
	begun := probesLine.FindAllStringSubmatch(string(log), -1)
	if len(begun) == 0 {
		return "", errors.New("its log has no address")
	}
	token, err := os.ReadFile(s.state.TokenFile)
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, begun[len(begun)-1][1]+"/metrics", http.NoBody)
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	answer, err := s.http.Do(req)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxMetrics))
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, text)
	}
	return string(text), err
}

// bells counts the messages that are left in the queues.
func (s *stack) bells(ctx context.Context) (bells int, err error) {
	listed, err := s.queues.ListQueues(ctx, &sqs.ListQueuesInput{})
	if err != nil {
		return 0, fmt.Errorf("list the queues: %w", err)
	}
	for _, url := range listed.QueueUrls {
		got, err := s.queues.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{
			QueueUrl:       aws.String(url),
			AttributeNames: []types.QueueAttributeName{types.QueueAttributeNameApproximateNumberOfMessages, types.QueueAttributeNameApproximateNumberOfMessagesNotVisible},
		})
		if err != nil {
			return 0, fmt.Errorf("ask %s what it holds: %w", url, err)
		}
		for _, text := range got.Attributes {
			var n int
			if err := json.Unmarshal([]byte(text), &n); err != nil {
				return 0, fmt.Errorf("%s holds %q messages: %w", url, text, err)
			}
			bells += n
		}
	}
	return bells, nil
}
