package sqs

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/arn"
)

// AWS's limits of tags.
const (
	maxTags          = 50
	maxTagKeyChars   = 128
	maxTagValueChars = 256
)

// checkTags refuses tags that AWS would; have is how many other tags the queue has.
func checkTags(tags map[string]string, have int) error {
	if have+len(tags) > maxTags {
		return errInvalidValue.With("Too many tags added for queue: a queue can have at most %d tags.", maxTags)
	}
	for key, value := range tags {
		switch {
		case key == "" || utf8.RuneCountInString(key) > maxTagKeyChars:
			return errInvalidValue.With("Tag keys must be between 1 and %d characters in length.", maxTagKeyChars)
		case strings.HasPrefix(strings.ToLower(key), "aws:"):
			return errInvalidValue.With("Tag keys cannot start with aws: because that prefix is reserved for AWS use.")
		case utf8.RuneCountInString(value) > maxTagValueChars:
			return errInvalidValue.With("Tag values must be between 0 and %d characters in length.", maxTagValueChars)
		}
	}
	return nil
}

type tagQueueInput struct {
	QueueURL string            `json:"QueueUrl"`
	Tags     map[string]string `json:"Tags" query:"Tag,flat,key=Key,value=Value"`
}

func (s *Service) tagQueue(ctx context.Context, in *tagQueueInput) (*api.Empty, error) {
	q, err := s.find(api.CallOf(ctx), in.QueueURL)
	if err != nil {
		return nil, err
	}
	if len(in.Tags) == 0 {
		return nil, missing("Tags")
	}
	return &api.Empty{}, q.change(func(time.Time) error {
		others := 0
		for key := range q.tags {
			if _, replaced := in.Tags[key]; !replaced {
				others++
			}
		}
		if err := checkTags(in.Tags, others); err != nil {
			return err
		}
		merged := maps.Clone(q.tags)
		if merged == nil {
			merged = map[string]string{}
		}
		maps.Copy(merged, in.Tags)
		q.tags = merged
		return nil
	})
}

type untagQueueInput struct {
	QueueURL string   `json:"QueueUrl"`
	TagKeys  []string `json:"TagKeys" query:"TagKey,flat"`
}

func (s *Service) untagQueue(ctx context.Context, in *untagQueueInput) (*api.Empty, error) {
	q, err := s.find(api.CallOf(ctx), in.QueueURL)
	if err != nil {
		return nil, err
	}
	if len(in.TagKeys) == 0 {
		return nil, missing("TagKeys")
	}
	return &api.Empty{}, q.change(func(time.Time) error {
		left := maps.Clone(q.tags)
		for _, key := range in.TagKeys {
			delete(left, key)
		}
		q.tags = left
		return nil
	})
}

type listQueueTagsOutput struct {
	Tags map[string]string `json:"Tags,omitempty" query:"Tag,flat,key=Key,value=Value"`
}

func (s *Service) listQueueTags(ctx context.Context, in *queueInput) (*listQueueTagsOutput, error) {
	q, err := s.find(api.CallOf(ctx), in.QueueURL)
	if err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return &listQueueTagsOutput{maps.Clone(q.tags)}, nil
}

// policyDocument is a queue's Policy as AddPermission writes it.
type policyDocument struct {
	Version   string     `json:"Version"`
	ID        string     `json:"Id,omitempty"`
	Statement statements `json:"Statement"`
}

// statements is a list that may come as its one element.
type statements []json.RawMessage

// UnmarshalJSON reads a list, or one object.
func (s *statements) UnmarshalJSON(text []byte) error {
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) {
		*s = statements{bytes.Clone(text)}
		return nil
	}
	return json.Unmarshal(text, (*[]json.RawMessage)(s))
}

type statement struct {
	Sid       string    `json:"Sid"`
	Effect    string    `json:"Effect"`
	Principal principal `json:"Principal"`
	Action    oneOrMore `json:"Action"`
	Resource  string    `json:"Resource"`
}

type principal struct {
	AWS oneOrMore `json:"AWS"`
}

// oneOrMore is a list that is written as a string if it has one element.
type oneOrMore []string

// MarshalJSON writes one element without its list.
func (o oneOrMore) MarshalJSON() ([]byte, error) {
	if len(o) == 1 {
		return json.Marshal(o[0])
	}
	return json.Marshal([]string(o))
}

// grantable are the actions that the owner may allow to others.
var grantable = []string{
	"*", "ChangeMessageVisibility", "DeleteMessage", "GetQueueAttributes", "GetQueueUrl", "ListDeadLetterSourceQueues",
	"PurgeQueue", "ReceiveMessage", "SendMessage",
}

const (
	maxGrantees      = 20 // accounts, and actions, of one permission; of a policy's statements too
	maxGrantedAction = 7
)

var label = regexp.MustCompile(`^[A-Za-z0-9_-]{1,80}$`)

type addPermissionInput struct {
	QueueURL      string   `json:"QueueUrl"`
	Label         string   `json:"Label"`
	AWSAccountIDs []string `json:"AWSAccountIds" query:"AWSAccountId,flat"`
	Actions       []string `json:"Actions" query:"ActionName,flat"`
}

func (in *addPermissionInput) check() error {
	switch {
	case in.Label == "":
		return missing("Label")
	case !label.MatchString(in.Label):
		return invalid(in.Label, "Label", "Must be 1 to 80 alphanumeric characters, hyphens or underscores.")
	case len(in.AWSAccountIDs) == 0:
		return invalid("[]", "PrincipalId", "Unable to verify.")
	case len(in.Actions) == 0:
		return missing("Actions")
	case len(in.AWSAccountIDs) > maxGrantees || len(in.Actions) > maxGrantedAction:
		return errOverLimit.With("%d accounts and %d actions were found, maximum allowed is %d and %d.", len(in.AWSAccountIDs), len(in.Actions), maxGrantees, maxGrantedAction)
	}
	for _, action := range in.Actions {
		if !slices.Contains(grantable, action) {
			return invalid("SQS:"+action, "ActionName", "Only the queue owner is allowed to invoke this action.")
		}
	}
	return nil
}

// addPermission adds a statement to the queue's policy. Policies are kept and not evaluated.
func (s *Service) addPermission(ctx context.Context, in *addPermissionInput) (*api.Empty, error) {
	q, err := s.find(api.CallOf(ctx), in.QueueURL)
	if err != nil {
		return nil, err
	}
	if err := in.check(); err != nil {
		return nil, err
	}
	return &api.Empty{}, q.changePolicy(func(p *policyDocument) error {
		if p.find(in.Label) >= 0 {
			return invalid(in.Label, "Label", "Already exists.")
		}
		if len(p.Statement) >= maxGrantees {
			return errOverLimit.With("%d statements were found, maximum allowed is %d.", len(p.Statement)+1, maxGrantees)
		}
		granted := statement{Sid: in.Label, Effect: "Allow", Resource: q.key.arn()}
		for _, account := range in.AWSAccountIDs {
			granted.Principal.AWS = append(granted.Principal.AWS, arn.Global("iam", q.key.region, account, "root"))
		}
		for _, action := range in.Actions {
			granted.Action = append(granted.Action, "SQS:"+action)
		}
		p.Statement = append(p.Statement, json.RawMessage(asJSON(granted)))
		return nil
	})
}

type removePermissionInput struct {
	QueueURL string `json:"QueueUrl"`
	Label    string `json:"Label"`
}

func (s *Service) removePermission(ctx context.Context, in *removePermissionInput) (*api.Empty, error) {
	q, err := s.find(api.CallOf(ctx), in.QueueURL)
	if err != nil {
		return nil, err
	}
	if in.Label == "" {
		return nil, missing("Label")
	}
	return &api.Empty{}, q.changePolicy(func(p *policyDocument) error {
		at := p.find(in.Label)
		if at < 0 {
			return invalid(in.Label, "Label", "can't find label.")
		}
		p.Statement = slices.Delete(p.Statement, at, at+1)
		return nil
	})
}

// changePolicy lets f alter the queue's policy; one that has no statement left is taken back.
func (q *queue) changePolicy(f func(*policyDocument) error) error {
	return q.change(func(now time.Time) error {
		p := policyDocument{Version: "2008-10-17", ID: q.key.arn() + "/SQSDefaultPolicy"}
		if text := q.attributes["Policy"]; text != "" {
			if err := json.Unmarshal([]byte(text), &p); err != nil {
				return errAttributeValue.With("Invalid value for the parameter Policy.")
			}
		}
		if err := f(&p); err != nil {
			return err
		}
		merged := maps.Clone(q.attributes)
		merged["Policy"] = asJSON(p)
		if len(p.Statement) == 0 {
			delete(merged, "Policy")
		}
		q.attributes, q.modified = merged, now
		return nil
	})
}

// find returns the place of the statement with the label, or -1.
func (p *policyDocument) find(label string) int {
	return slices.IndexFunc(p.Statement, func(text json.RawMessage) bool {
		var named struct{ Sid string }
		return json.Unmarshal(text, &named) == nil && named.Sid == label
	})
}
