package arn_test

import (
	"strings"
	"testing"

	"github.com/stepfleet/stepfleet/localaws/arn"
)

func TestFormatAndParse(t *testing.T) {
	for text, want := range map[string]arn.ARN{
		arn.Format("sqs", "eu-west-1", "123456789012", "q.fifo"):          {"aws", "sqs", "eu-west-1", "123456789012", "q.fifo"},
		arn.Format("ecs", "cn-north-1", "123456789012", "task/c/1"):       {"aws-cn", "ecs", "cn-north-1", "123456789012", "task/c/1"},
		arn.Global("iam", "us-gov-west-1", "123456789012", "role/p/r"):    {"aws-us-gov", "iam", "", "123456789012", "role/p/r"},
		"arn:aws:logs:eu-west-1:123456789012:log-group:/a:log-stream:b/c": {"aws", "logs", "eu-west-1", "123456789012", "log-group:/a:log-stream:b/c"},
		"arn:aws:iam::aws:policy/AdministratorAccess":                     {"aws", "iam", "", "aws", "policy/AdministratorAccess"},
		"arn:aws:s3:::bucket": {"aws", "s3", "", "", "bucket"},
	} {
		got, err := arn.Parse(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%s: %+v %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "arn", "arn:aws:sqs:eu-west-1:123456789012", "arn:aws:sqs:eu-west-1:123456789012:", "arn::sqs:eu-west-1:123456789012:q",
		"arn:aws::eu-west-1:123456789012:q", "ARN:aws:sqs:eu-west-1:123456789012:q", "arn:aws:sqs:eu-west-1:12345:q",
		"arn:aws:sqs:eu-west-1:123456789012:" + strings.Repeat("q", 2048),
	} {
		if got, err := arn.Parse(text); err == nil {
			t.Errorf("%q parsed as %+v", text, got)
		}
	}
}

func TestPartitions(t *testing.T) {
	for region, want := range map[string]string{
		"eu-west-1": "aws", "": "aws", "cn-north-1": "aws-cn", "us-gov-west-1": "aws-us-gov", "us-iso-east-1": "aws-iso",
		"us-isob-east-1": "aws-iso-b", "us-isof-south-1": "aws-iso-f", "eu-isoe-west-1": "aws-iso-e", "eusc-de-east-1": "aws-eusc",
	} {
		if got := arn.Partition(region); got != want {
			t.Errorf("%s is of %s, want %s", region, got, want)
		}
	}
}

func TestSplit(t *testing.T) {
	for resource, want := range map[string][2]string{
		"task/c/1": {"task", "c/1"}, "q.fifo": {"", "q.fifo"}, "log-group:/a": {"log-group", "/a"}, "role/p/r": {"role", "p/r"},
	} {
		kind, name := arn.ARN{Resource: resource}.Split()
		if kind != want[0] || name != want[1] {
			t.Errorf("%s: %q %q", resource, kind, name)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("arn:aws:sqs:eu-west-1:123456789012:q")
	f.Fuzz(func(t *testing.T, text string) {
		if a, err := arn.Parse(text); err == nil && a.String() != text {
			t.Errorf("%q became %q", text, a)
		}
	})
}
