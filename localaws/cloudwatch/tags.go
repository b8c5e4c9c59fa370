package cloudwatch

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/stepfleet/stepfleet/localaws/api"
)

// maxTags is how many tags an alarm may have.
const maxTags = 50

type tag struct {
	Key   string `json:"Key"`
	Value string `json:"Value"`
}

func checkTags(tags []tag) error {
	if len(tags) > maxTags {
		return errInvalidValue.With("The collection Tags must not have a size greater than %d.", maxTags)
	}
	for _, t := range tags {
		if err := firstOf(length(t.Key, "Key", 128, true), length(t.Value, "Value", 256, false)); err != nil {
			return err
		}
	}
	return nil
}

type tagResourceInput struct {
	ResourceARN string `json:"ResourceARN"`
	Tags        []tag  `json:"Tags"`
}

// tagged is the output of a change of tags: there is one, unlike that of other operations, and it is
// empty. The AWS command line 2.9 dies of a <TagResourceResult/> that is absent.
type tagged struct{}

func (s *Service) tagResource(ctx context.Context, in *tagResourceInput) (*tagged, error) {
	if err := checkTags(in.Tags); err != nil {
		return nil, err
	}
	return &tagged{}, s.withTags(ctx, in.ResourceARN, func(tags map[string]string) error {
		after := maps.Clone(tags)
		for _, t := range in.Tags {
			after[t.Key] = t.Value
		}
		if len(after) > maxTags {
			return errInvalidValue.With("A resource can not have more than %d tags.", maxTags)
		}
		maps.Copy(tags, after)
		return nil
	})
}

type untagResourceInput struct {
	ResourceARN string   `json:"ResourceARN"`
	TagKeys     []string `json:"TagKeys"`
}

func (s *Service) untagResource(ctx context.Context, in *untagResourceInput) (*tagged, error) {
	return &tagged{}, s.withTags(ctx, in.ResourceARN, func(tags map[string]string) error {
		for _, key := range in.TagKeys {
			delete(tags, key)
		}
		return nil
	})
}

type listTagsForResourceInput struct {
	ResourceARN string `json:"ResourceARN"`
}

type listTagsForResourceOutput struct {
	Tags []tag `json:"Tags"`
}

func (s *Service) listTagsForResource(ctx context.Context, in *listTagsForResourceInput) (*listTagsForResourceOutput, error) {
	out := &listTagsForResourceOutput{Tags: []tag{}}
	err := s.withTags(ctx, in.ResourceARN, func(tags map[string]string) error {
		for _, key := range slices.Sorted(maps.Keys(tags)) {
			out.Tags = append(out.Tags, tag{key, tags[key]})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// withTags runs f on the tags of the alarm with that ARN.
func (s *Service) withTags(ctx context.Context, arn string, f func(map[string]string) error) error {
	if arn == "" {
		return missing("ResourceARN")
	}
	c := api.CallOf(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	name, _ := strings.CutPrefix(arn, alarmKey{c.Region, c.Account, ""}.arn())
	key := alarmKey{c.Region, c.Account, name}
	if a := s.alarms[key]; a != nil && key.arn() == arn {
		return f(a.tags)
	}
	return errNoResource
}
