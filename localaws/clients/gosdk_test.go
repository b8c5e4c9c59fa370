package clients_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
)

// goSDK calls the operations of the Go SDK by name.
type goSDK struct {
	ctx      context.Context
	services map[string]reflect.Value
}

func newGoSDK(ctx context.Context, endpoint string) *goSDK {
	config := aws.Config{
		Region: region, BaseEndpoint: &endpoint, Credentials: credentials.NewStaticCredentialsProvider(account, "secret", ""),
		Retryer: func() aws.Retryer { return aws.NopRetryer{} },
	}
	return &goSDK{ctx, map[string]reflect.Value{
		"sqs": reflect.ValueOf(sqs.NewFromConfig(config)), "sts": reflect.ValueOf(sts.NewFromConfig(config)),
		"cloudwatch": reflect.ValueOf(cloudwatch.NewFromConfig(config)),
	}}
}

func (g *goSDK) call(service, op string, in map[string]any) (answer, error) {
	method := g.services[service].MethodByName(op)
	if !method.IsValid() {
		return answer{}, fmt.Errorf("the SDK's %s has no %s", service, op)
	}
	input := reflect.New(method.Type().In(1).Elem())
	text, err := json.Marshal(unwrap(in))
	if err != nil {
		return answer{}, err
	}
	if err := json.Unmarshal(text, input.Interface()); err != nil {
		return answer{}, err
	}
	results := method.Call([]reflect.Value{reflect.ValueOf(g.ctx), input})
	if err, _ := results[1].Interface().(error); err != nil {
		return goFailure(err)
	}
	return goAnswer(results[0].Interface())
}

// unwrap makes binary values what encoding/json reads into a []byte, and moments what it reads into a
// time.
func unwrap(v any) any {
	switch x := v.(type) {
	case []any:
		list := make([]any, len(x))
		for i, e := range x {
			list[i] = unwrap(e)
		}
		return list
	case map[string]any:
		for _, kind := range []string{"$bytes", "$time"} {
			if text, ok := x[kind]; ok {
				return text
			}
		}
		m := map[string]any{}
		for key, e := range x {
			m[key] = unwrap(e)
		}
		return m
	}
	return v
}

func goFailure(err error) (answer, error) {
	var e smithy.APIError
	if !errors.As(err, &e) {
		return answer{}, err
	}
	f := &failure{Code: e.ErrorCode(), Message: e.ErrorMessage()}
	if _, generic := e.(*smithy.GenericAPIError); !generic {
		f.Type = reflect.TypeOf(e).Elem().Name()
	}
	return answer{Error: f}, nil
}

// wireNames are members that the SDK spells otherwise than the service.
var wireNames = map[string]string{"*sqs.ListDeadLetterSourceQueuesOutput.QueueUrls": "queueUrls"}

func goAnswer(out any) (answer, error) {
	text, err := json.Marshal(out)
	if err != nil {
		return answer{}, err
	}
	var members map[string]any
	if err := json.Unmarshal(text, &members); err != nil {
		return answer{}, err
	}
	delete(members, "ResultMetadata")
	for name, value := range members {
		if wire, ok := wireNames[fmt.Sprintf("%T.%s", out, name)]; ok {
			delete(members, name)
			members[wire] = value
		}
	}
	return answer{Out: withoutUnset(members).(map[string]any)}, nil
}

// withoutUnset leaves out what is absent from an answer: what is nil, and enums, which are empty.
func withoutUnset(v any) any {
	switch x := v.(type) {
	case []any:
		for i := range x {
			x[i] = withoutUnset(x[i])
		}
	case map[string]any:
		for key, e := range x {
			if e == nil || e == "" {
				delete(x, key)
				continue
			}
			x[key] = withoutUnset(e)
		}
	}
	return v
}
