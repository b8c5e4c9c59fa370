// Package arn writes and reads Amazon Resource Names.
package arn

import (
	"fmt"
	"strings"
)

// ARN is a resource name in its parts. Region and account are empty for resources that have none,
// such as IAM roles and S3 buckets.
type ARN struct{ Partition, Service, Region, Account, Resource string }

// Format returns the ARN of a resource in the region's partition.
func Format(service, region, account, resource string) string {
	return ARN{Partition(region), service, region, account, resource}.String()
}

// Global returns the ARN of a resource that belongs to no region, in the partition of the region
// it is seen from.
func Global(service, seenFrom, account, resource string) string {
	return ARN{Partition(seenFrom), service, "", account, resource}.String()
}

// partitions are those that are not "aws", by how the names of their regions begin.
var partitions = map[string]string{
	"cn-": "aws-cn", "us-gov-": "aws-us-gov", "us-iso-": "aws-iso", "us-isob-": "aws-iso-b", "us-isof-": "aws-iso-f",
	"eu-isoe-": "aws-iso-e", "eusc-": "aws-eusc",
}

// Partition returns the partition that a region belongs to.
func Partition(region string) string {
	for prefix, partition := range partitions {
		if strings.HasPrefix(region, prefix) {
			return partition
		}
	}
	return "aws"
}

// String returns the ARN as text.
func (a ARN) String() string {
	return "arn:" + a.Partition + ":" + a.Service + ":" + a.Region + ":" + a.Account + ":" + a.Resource
}

// maxBytes is the longest ARN that any service takes.
const maxBytes = 2048

// IsAccount reports whether the text is the number of an account: twelve digits. It is a loop, as it
// is asked of every call.
func IsAccount(text string) bool {
	if len(text) != 12 {
		return false
	}
	for i := range len(text) {
		if text[i] < '0' || text[i] > '9' {
			return false
		}
	}
	return true
}

// Parse reads an ARN. The resource may hold colons.
func Parse(text string) (ARN, error) {
	if len(text) > maxBytes {
		return ARN{}, fmt.Errorf("an ARN of %d bytes: want at most %d", len(text), maxBytes)
	}
	parts := strings.SplitN(text, ":", 6)
	if len(parts) != 6 || parts[0] != "arn" || parts[1] == "" || parts[2] == "" || parts[5] == "" {
		return ARN{}, fmt.Errorf("%q is not an ARN: want arn:partition:service:region:account:resource", text)
	}
	if a := parts[4]; a != "" && a != "aws" && !IsAccount(a) {
		return ARN{}, fmt.Errorf("%q is not an ARN: %q is not an account", text, parts[4])
	}
	return ARN{parts[1], parts[2], parts[3], parts[4], parts[5]}, nil
}

// Split returns the kind and the name of the resource: "task" and "cluster/id" of
// "task/cluster/id". A resource that is a name alone, like a queue, has no kind.
func (a ARN) Split() (kind, name string) {
	if i := strings.IndexAny(a.Resource, "/:"); i >= 0 {
		return a.Resource[:i], a.Resource[i+1:]
	}
	return "", a.Resource
}
