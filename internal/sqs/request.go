package sqs

import (
	"context"
	"errors"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
)

// The SDK's retry budget: each request that was answered adds one token, a repeat takes ten, so that a
// tenth of the requests may be repeats. The SDK's own is twice that.
const (
	tokensPerRepeat = 10
	tokensSaved     = 100
)

// retryer is the SDK's standard one with our bounds.
func retryer() aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts = attempts
		o.RateLimiter = ratelimit.NewTokenRateLimit(tokensSaved)
		o.RetryCost, o.RetryTimeoutCost, o.ThrottlingRetryCost = tokensPerRepeat, tokensPerRepeat, tokensPerRepeat
		o.NoRetryIncrement = 1
	})
}

// watch has OnRequest told of each request: the step it joins runs once for each, not once a call.
func (o Options) watch(stack *middleware.Stack) error {
	if o.OnRequest == nil {
		return nil
	}
	return stack.Deserialize.Add(middleware.DeserializeMiddlewareFunc("stepfleet requests", func(
		ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler,
	) (middleware.DeserializeOutput, middleware.Metadata, error) {
		out, metadata, err := next.HandleDeserialize(ctx, in)
		o.OnRequest(middleware.GetOperationName(ctx), codeOf(err))
		return out, metadata, err
	}), middleware.Before)
}

func codeOf(err error) string {
	var coded smithy.APIError
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &coded):
		return coded.ErrorCode()
	}
	return "error"
}
