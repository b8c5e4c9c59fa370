package sqs

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"time"
)

// settings is the part of a queue's attributes that its engine acts on.
type settings struct {
	delay, retention, visibility, wait time.Duration
	maxSize                            int
	contentBased                       bool // the body's digest stands in for a deduplication id
	redrive                            redrivePolicy
	allowed                            allowDocument
}

// number is an attribute that is a whole number in a range.
type number struct {
	min, max, initial int
	set               func(*settings, int)
}

// MaxMessageBytes is AWS's limit of a message, and of a whole batch.
const MaxMessageBytes = 1 << 20

var numbers = map[string]number{
	"DelaySeconds":                  {0, 900, 0, func(s *settings, n int) { s.delay = time.Duration(n) * time.Second }},
	"MaximumMessageSize":            {1024, MaxMessageBytes, MaxMessageBytes, func(s *settings, n int) { s.maxSize = n }},
	"MessageRetentionPeriod":        {60, 1_209_600, 345_600, func(s *settings, n int) { s.retention = time.Duration(n) * time.Second }},
	"ReceiveMessageWaitTimeSeconds": {0, 20, 0, func(s *settings, n int) { s.wait = time.Duration(n) * time.Second }},
	"VisibilityTimeout":             {0, maxVisibilitySeconds, 30, func(s *settings, n int) { s.visibility = time.Duration(n) * time.Second }},
}

// choices are attributes with a few values; the first is that of a new queue.
var choices = map[string][]string{
	"ContentBasedDeduplication": {"false", "true"},
	"DeduplicationScope":        {"queue", "messageGroup"},
	"FifoThroughputLimit":       {"perQueue", "perMessageGroupId"},
	"SqsManagedSseEnabled":      {"true", "false"},
	"FifoQueue":                 {"true"},
}

// fifoOnly are attributes that a standard queue does not know.
var fifoOnly = []string{"FifoQueue", "ContentBasedDeduplication", "DeduplicationScope", "FifoThroughputLimit"}

// documents are attributes in JSON, and how each is checked and put into the form that AWS answers.
var documents = map[string]func(text string) (string, error){
	"RedrivePolicy": func(text string) (string, error) {
		policy, err := parseRedrive(text)
		return asJSON(policy), err
	},
	"RedriveAllowPolicy": func(text string) (string, error) {
		policy, err := parseAllow(text)
		return asJSON(policy), err
	},
	"Policy": func(text string) (string, error) {
		if !json.Valid([]byte(text)) {
			return "", errAttributeValue.With("Invalid value for the parameter Policy.")
		}
		return text, nil
	},
}

// There is no encryption: a key is kept and answered.
const (
	kmsKey          = "KmsMasterKeyId"
	kmsReuse        = "KmsDataKeyReusePeriodSeconds"
	kmsReuseInitial = "300" // which AWS does not answer
)

// computed are attributes that are read and never set.
var computed = []string{
	"ApproximateNumberOfMessages", "ApproximateNumberOfMessagesDelayed", "ApproximateNumberOfMessagesNotVisible",
	"CreatedTimestamp", "LastModifiedTimestamp", "QueueArn",
}

func asJSON(v any) string {
	text, _ := json.Marshal(v) // documents of strings and numbers always encode
	return string(text)
}

// defaults returns the attributes of a queue that was created with none.
func defaults(fifo bool) map[string]string {
	attributes := map[string]string{"SqsManagedSseEnabled": "true"}
	for name, n := range numbers {
		attributes[name] = strconv.Itoa(n.initial)
	}
	if fifo {
		for _, name := range fifoOnly {
			attributes[name] = choices[name][0]
		}
	}
	return attributes
}

// merge validates changes and returns attributes with them applied, in the form that AWS answers.
// An empty value takes an attribute back.
func merge(attributes, changes map[string]string, fifo bool) (map[string]string, error) {
	merged := maps.Clone(attributes)
	for _, name := range slices.Sorted(maps.Keys(changes)) {
		value, err := checkAttribute(name, changes[name], fifo)
		if err != nil {
			return nil, err
		}
		if value == "" {
			delete(merged, name)
			continue
		}
		merged[name] = value
	}
	if merged["FifoThroughputLimit"] == "perMessageGroupId" && merged["DeduplicationScope"] != "messageGroup" {
		return nil, errAttributeValue.With("Invalid value for the parameter FifoThroughputLimit. Reason: perMessageGroupId is allowed only when DeduplicationScope is messageGroup.")
	}
	return exclusiveEncryption(merged, changes)
}

// checkAttribute returns the value as it is kept; an empty one takes the attribute back.
func checkAttribute(name, value string, fifo bool) (string, error) {
	badValue := errAttributeValue.With("Invalid value for the parameter %s.", name)
	if slices.Contains(fifoOnly, name) && !fifo {
		return "", errAttributeName.With("Unknown Attribute %s.", name)
	}
	if n, ok := numbers[name]; ok {
		return checkNumber(value, n.min, n.max, badValue)
	}
	if name == "FifoQueue" && value == "false" {
		return "", errAttributeValue.With("Invalid value for the parameter FifoQueue. Reason: Modifying queue type is not supported.")
	}
	if allowed, ok := choices[name]; ok {
		if !slices.Contains(allowed, value) {
			return "", badValue
		}
		return value, nil
	}
	if check, ok := documents[name]; ok {
		if value == "" {
			return "", nil
		}
		return check(value)
	}
	switch name {
	case kmsKey:
		return value, nil
	case kmsReuse:
		if value == "" || value == kmsReuseInitial {
			return "", nil
		}
		return checkNumber(value, 60, 86_400, badValue)
	}
	return "", errAttributeName.With("Unknown Attribute %s.", name)
}

func checkNumber(value string, low, high int, bad error) (string, error) {
	given, err := strconv.Atoi(value)
	if err != nil || given < low || given > high {
		return "", bad
	}
	return strconv.Itoa(given), nil
}

// exclusiveEncryption keeps a queue to one kind of encryption: naming a key switches the managed
// one off, naming both is an error.
func exclusiveEncryption(merged, changes map[string]string) (map[string]string, error) {
	if changes[kmsKey] != "" && changes["SqsManagedSseEnabled"] == "true" {
		return nil, errAttributeName.With("You can use one type of server-side encryption (SSE) at one time. You can either enable KMS SSE or SQS SSE.")
	}
	if changes[kmsKey] != "" {
		merged["SqsManagedSseEnabled"] = "false"
	}
	if changes["SqsManagedSseEnabled"] == "true" {
		delete(merged, kmsKey)
		delete(merged, kmsReuse)
	}
	return merged, nil
}

// settingsOf parses attributes that merge has validated.
func settingsOf(attributes map[string]string) settings {
	s := settings{contentBased: attributes["ContentBasedDeduplication"] == "true"}
	for name, n := range numbers {
		value, err := strconv.Atoi(attributes[name])
		if err != nil {
			value = n.initial
		}
		n.set(&s, value)
	}
	if policy, err := parseRedrive(attributes["RedrivePolicy"]); err == nil {
		s.redrive.target, _ = parseARN(policy.Target)
		s.redrive.maxReceives = policy.MaxReceives
	}
	if allowed, err := parseAllow(attributes["RedriveAllowPolicy"]); err == nil {
		s.allowed = allowed
	}
	return s
}

// differing returns the first of the attributes that were asked for whose value the queue has not.
func differing(have, wanted, asked map[string]string) (string, bool) {
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		if have[name] != wanted[name] {
			return name, true
		}
	}
	return "", false
}

// selectAttributes picks the named attributes out of all; AWS leaves out those that have no value.
func selectAttributes(all map[string]string, names []string) (map[string]string, error) {
	selected := map[string]string{}
	for _, name := range names {
		if name == "All" {
			maps.Copy(selected, all)
			continue
		}
		if !knownAttribute(name) {
			return nil, errAttributeName.With("Unknown Attribute %s.", name)
		}
		if value, ok := all[name]; ok {
			selected[name] = value
		}
	}
	return selected, nil
}

func knownAttribute(name string) bool {
	_, numeric := numbers[name]
	return numeric || choices[name] != nil || documents[name] != nil || name == kmsKey || name == kmsReuse ||
		slices.Contains(computed, name)
}
