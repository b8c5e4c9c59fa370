package ec2query_test

import (
	"encoding/xml"
	"errors"
	"io"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/awsquery"
	"github.com/stepfleet/stepfleet/localaws/ec2query"
)

type tag struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

type subnet struct {
	ID      string `json:"subnetId"`
	Public  bool   `json:"mapPublicIpOnLaunch"`
	Tags    []tag  `json:"tagSet,omitempty"`
	CIDR    string `json:"cidrBlock,omitempty"`
	Numbers []int  `json:"numbers" query:"numberSet,flat"`
}

type describeInput struct {
	IDs     []string `json:"subnetId"`
	Filters []struct {
		Name   string   `json:"name"`
		Values []string `json:"value"`
	} `json:"filter"`
	DryRun *bool `json:"dryRun"`
	Tags   []tag `json:"tag"`
}

type describeOutput struct {
	Subnets   []subnet `json:"subnetSet"`
	NextToken string   `json:"nextToken,omitempty"`
}

func codec(t *testing.T, form string) *ec2query.Codec {
	t.Helper()
	p, err := awsquery.Parse(form)
	if err != nil {
		t.Fatal(err)
	}
	return &ec2query.Codec{Params: p, Op: "DescribeSubnets", Namespace: "http://ec2.amazonaws.com/doc/2016-11-15/"}
}

func TestDecode(t *testing.T) {
	var in describeInput
	err := codec(t, "SubnetId.1=a&SubnetId.2=b&Filter.1.Name=vpc-id&Filter.1.Value.1=v&Filter.1.Value.2=w&DryRun=true&Tag.1.Key=k&Tag.1.Value=v&tag.1.Key=no").Decode(&in)
	if err != nil {
		t.Fatal(err)
	}
	yes := true
	want := describeInput{IDs: []string{"a", "b"}, DryRun: &yes, Tags: []tag{{"k", "v"}}}
	want.Filters = append(want.Filters, struct {
		Name   string   `json:"name"`
		Values []string `json:"value"`
	}{"vpc-id", []string{"v", "w"}})
	if diff := cmp.Diff(want, in); diff != "" {
		t.Error(diff)
	}
}

func TestEncode(t *testing.T) {
	const start = "<?xml version=\"1.0\"?>\n" + `<DescribeSubnetsResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>id</requestId>`
	for want, out := range map[string]any{
		"<subnetSet/>":          &describeOutput{Subnets: []subnet{}},
		"<return>true</return>": &api.Empty{},
		"<subnetSet><item><subnetId>s</subnetId><mapPublicIpOnLaunch>true</mapPublicIpOnLaunch>" +
			"<tagSet><item><key>k</key><value>v</value></item></tagSet><numberSet><item>1</item></numberSet></item></subnetSet><nextToken>t</nextToken>": &describeOutput{
			Subnets: []subnet{{ID: "s", Public: true, Tags: []tag{{"k", "v"}}, Numbers: []int{1}}}, NextToken: "t",
		},
	} {
		w := httptest.NewRecorder()
		if err := codec(t, "").Encode(w, "id", out); err != nil {
			t.Fatal(err)
		}
		if got := w.Body.String(); got != start+want+"</DescribeSubnetsResponse>" {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestEncodeError(t *testing.T) {
	w := httptest.NewRecorder()
	c := codec(t, "")
	c.EncodeError(w, "id", c.Unknown("Foo"))
	want := "<?xml version=\"1.0\"?>\n<Response><Errors><Error><Code>InvalidAction</Code><Message>The action Foo is not valid for this web service.</Message></Error></Errors><RequestID>id</RequestID></Response>"
	if w.Body.String() != want || w.Code != 400 || w.Header().Get("X-Amzn-Requestid") != "id" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// FuzzCall feeds forms: they decode or are refused, and what was decoded comes out as XML that
// another parser takes.
func FuzzCall(f *testing.F) {
	for _, form := range []string{"SubnetId.1=a&SubnetId.3=b", "Filter.1.Name=n&Filter.1.Value.1=v", "DryRun=maybe", "Tag.1.Key=%00&Tag=x"} {
		f.Add(form)
	}
	f.Fuzz(func(t *testing.T, form string) {
		p, err := awsquery.Parse(form)
		if err != nil {
			return
		}
		c := &ec2query.Codec{Params: p, Op: "Do", Namespace: "urn:x"}
		var in describeInput
		if err := c.Decode(&in); err != nil {
			var e *api.Error
			if !errors.As(err, &e) || e.Status != 400 {
				t.Errorf("%q: %v", form, err)
			}
			return
		}
		w := httptest.NewRecorder()
		if err := c.Encode(w, "id", &in); err != nil {
			t.Fatalf("%q: %v", form, err)
		}
		for d := xml.NewDecoder(strings.NewReader(w.Body.String())); ; {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%q: %v in %s", form, err, w.Body)
			}
		}
	})
}
