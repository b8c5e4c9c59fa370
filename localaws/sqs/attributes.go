package sqs

import (
	"maps"
	"slices"
	"strconv"
	"time"
)

// settings is the part of a queue's attributes that its engine acts on.
type settings struct {
	delay, retention, visibility, wait time.Duration
	maxSize                            int
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

// stored are attributes that are kept and returned and change nothing here: there is no encryption
// and no evaluation of policies.
var stored = []string{"Policy", "KmsMasterKeyId", "KmsDataKeyReusePeriodSeconds", "SqsManagedSseEnabled"}

// redrive are attributes whose effect is not emulated yet; a value is refused, an empty one clears nothing.
var redrive = []string{"RedrivePolicy", "RedriveAllowPolicy"}

// fifoOnly are attributes that a standard queue does not know.
var fifoOnly = []string{"FifoQueue", "ContentBasedDeduplication", "DeduplicationScope", "FifoThroughputLimit"}

// computed are attributes that are read and never set.
var computed = []string{
	"ApproximateNumberOfMessages", "ApproximateNumberOfMessagesDelayed", "ApproximateNumberOfMessagesNotVisible",
	"CreatedTimestamp", "LastModifiedTimestamp", "QueueArn",
}

// defaults returns the attributes of a queue that was created with none.
func defaults() map[string]string {
	attributes := map[string]string{"SqsManagedSseEnabled": "true"}
	for name, n := range numbers {
		attributes[name] = strconv.Itoa(n.initial)
	}
	return attributes
}

// merge validates changes and returns attributes with them applied.
func merge(attributes, changes map[string]string) (map[string]string, error) {
	merged := maps.Clone(attributes)
	for _, name := range slices.Sorted(maps.Keys(changes)) {
		value := changes[name]
		if err := checkAttribute(name, value); err != nil {
			return nil, err
		}
		if value == "" {
			delete(merged, name)
			continue
		}
		merged[name] = value
	}
	return exclusiveEncryption(merged, changes)
}

func checkAttribute(name, value string) error {
	if n, ok := numbers[name]; ok {
		given, err := strconv.Atoi(value)
		if err != nil || given < n.min || given > n.max {
			return errAttributeValue.With("Invalid value for the parameter %s.", name)
		}
		return nil
	}
	if slices.Contains(redrive, name) {
		if value == "" {
			return nil
		}
		return errUnsupported.With("localaws does not emulate %s yet.", name)
	}
	if !slices.Contains(stored, name) {
		return errAttributeName.With("Unknown Attribute %s.", name)
	}
	if name == "SqsManagedSseEnabled" && value != "true" && value != "false" {
		return errAttributeValue.With("Invalid value for the parameter %s.", name)
	}
	return nil
}

// exclusiveEncryption keeps a queue to one kind of encryption: naming a key switches the managed
// one off, naming both is an error.
func exclusiveEncryption(merged, changes map[string]string) (map[string]string, error) {
	if changes["KmsMasterKeyId"] != "" && changes["SqsManagedSseEnabled"] == "true" {
		return nil, errAttributeName.With("You can use one type of server-side encryption (SSE) at one time. You can either enable KMS SSE or SQS SSE.")
	}
	if changes["KmsMasterKeyId"] != "" {
		merged["SqsManagedSseEnabled"] = "false"
	}
	if changes["SqsManagedSseEnabled"] == "true" {
		delete(merged, "KmsMasterKeyId")
		delete(merged, "KmsDataKeyReusePeriodSeconds")
	}
	return merged, nil
}

// settingsOf parses attributes that merge has validated.
func settingsOf(attributes map[string]string) settings {
	var s settings
	for name, n := range numbers {
		value, err := strconv.Atoi(attributes[name])
		if err != nil {
			value = n.initial
		}
		n.set(&s, value)
	}
	return s
}

// differing returns the first attribute of wanted whose value the queue does not have.
func differing(have, wanted map[string]string) (string, bool) {
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
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
	return numeric || slices.Contains(stored, name) || slices.Contains(redrive, name) ||
		slices.Contains(fifoOnly, name) || slices.Contains(computed, name)
}
