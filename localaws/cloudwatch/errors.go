package cloudwatch

import (
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"

	"github.com/stepfleet/stepfleet/localaws/api"
)

// The service's errors, with AWS's types, codes and statuses.
var (
	errInvalidValue       = &api.Error{Type: "InvalidParameterValueException", Code: "InvalidParameterValue", Status: http.StatusBadRequest}
	errInvalidCombination = &api.Error{Type: "InvalidParameterCombinationException", Code: "InvalidParameterCombination", Status: http.StatusBadRequest}
	errMissing            = &api.Error{Type: "MissingRequiredParameterException", Code: "MissingParameter", Status: http.StatusBadRequest}
	errInvalidToken       = &api.Error{Type: "InvalidNextToken", Status: http.StatusBadRequest, Message: "The next token specified is invalid."}
	errInvalidFormat      = &api.Error{Type: "InvalidFormatFault", Code: "InvalidFormat", Status: http.StatusBadRequest}
	errLimit              = &api.Error{Type: "LimitExceededFault", Code: "LimitExceeded", Status: http.StatusBadRequest}
	errNoAlarm            = &api.Error{Type: "ResourceNotFound", Status: http.StatusNotFound}
	errNoResource         = &api.Error{Type: "ResourceNotFoundException", Status: http.StatusNotFound}
	errValidation         = &api.Error{Type: "ValidationError", Common: true, Status: http.StatusBadRequest}
	errThrottled          = &api.Error{Type: "ThrottlingException", Common: true, Code: "Throttling", Status: http.StatusBadRequest, Message: "Rate exceeded"}
)

// notEmulated refuses what AWS would take.
func notEmulated(what, instead string) error {
	return errValidation.With("localaws does not emulate %s: %s.", what, instead)
}

func missing(parameter string) error {
	return errMissing.With("The parameter %s is required.", parameter)
}

func invalid(value any, parameter string) error {
	return errInvalidValue.With("The value %v for parameter %s is invalid.", value, parameter)
}

// constraint refuses a member as AWS's own checks of a shape do. The member is spelled as in the
// request but for its first letter.
func constraint(value any, member, rule string) error {
	return errValidation.With("1 validation error detected: Value '%v' at '%s' failed to satisfy constraint: %s", value, member, rule)
}

// enum refuses a value that is none of those; empty is absent.
func enum(value, member string, values ...string) error {
	if value == "" || slices.Contains(values, value) {
		return nil
	}
	return constraint(value, member, "Member must satisfy enum value set: ["+strings.Join(values, ", ")+"]")
}

// length refuses text that is too long or, if required, absent.
func length(text, member string, limit int, required bool) error {
	switch {
	case text == "" && required:
		return missing(member)
	case len(text) > limit:
		first, rest := strings.ToLower(member[:1]), member[1:]
		return constraint(text, first+rest, fmt.Sprintf("Member must have length less than or equal to %d", limit))
	}
	return nil
}

// firstOf returns the first error.
func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// maxValue is the largest magnitude of a value.
var maxValue = math.Pow(2, 360)

func checkValue(v float64, parameter string) error {
	if math.IsNaN(v) || math.Abs(v) > maxValue {
		return invalid(v, parameter)
	}
	return nil
}

// units are the units that a value may have.
var units = []string{
	"Seconds", "Microseconds", "Milliseconds", "Bytes", "Kilobytes", "Megabytes", "Gigabytes", "Terabytes",
	"Bits", "Kilobits", "Megabits", "Gigabits", "Terabits", "Percent", "Count", "Bytes/Second", "Kilobytes/Second",
	"Megabytes/Second", "Gigabytes/Second", "Terabytes/Second", "Bits/Second", "Kilobits/Second", "Megabits/Second",
	"Gigabits/Second", "Terabits/Second", "Count/Second", "None",
}

// maxDimensions is how many dimensions a metric may have.
const maxDimensions = 30

// checkMetric refuses what can name no metric. The prefix is where the members are, as in
// "MetricData.member.1.".
func checkMetric(prefix, name string, dimensions []Dimension) error {
	if err := length(name, prefix+"MetricName", 255, true); err != nil {
		return err
	}
	if len(dimensions) > maxDimensions {
		return errInvalidValue.With("The collection %sDimensions must not have a size greater than %d.", prefix, maxDimensions)
	}
	seen := map[string]bool{}
	for i, d := range dimensions {
		at := fmt.Sprintf("%sDimensions.member.%d.", prefix, i+1)
		if err := firstOf(length(d.Name, at+"Name", 255, true), length(d.Value, at+"Value", 1024, true)); err != nil {
			return err
		}
		if seen[d.Name] {
			return errInvalidValue.With("No more than one value may be specified for the dimension name %s.", d.Name)
		}
		seen[d.Name] = true
	}
	return nil
}

// checkPeriod refuses what is no period.
func checkPeriod(seconds int, parameter string) error {
	if seconds == 1 || seconds == 5 || seconds == 10 || seconds == 30 || seconds >= 60 && seconds%60 == 0 && seconds <= maxPeriod {
		return nil
	}
	return errInvalidValue.With("The value %d for parameter %s is invalid: it must be 1, 5, 10, 30 or a multiple of 60.", seconds, parameter)
}

// maxPeriod is the longest period, one day, in seconds.
const maxPeriod = 86_400
