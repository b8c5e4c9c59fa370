package sqs

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is appended by hand says what the struct says, member by member.
func TestReceivedMessagesAreAppendedAsTheStandardLibraryDoes(t *testing.T) {
	text, plain := "text", receivedMessage{MessageID: "id", ReceiptHandle: "h+/=", MD5OfBody: "md5", Body: "body"}
	odd := plain
	odd.Body = "\"\\\b\f\n\r\t\x7f<&>é\u2028\U0001f600"
	full := odd
	full.Attributes, full.MD5OfMessageAttributes = map[string]string{"SenderId": "a", "AWSTraceHeader": `"`}, "md5"
	full.MessageAttributes = map[string]AttributeValue{"b": {DataType: "Binary", BinaryValue: []byte{0, 255}}, "s": {DataType: "String", StringValue: &text}}
	for name, out := range map[string]receiveMessageOutput{
		"none": {}, "one": {[]receivedMessage{plain}}, "odd": {[]receivedMessage{odd}}, "all": {[]receivedMessage{plain, full, odd}},
	} {
		want, err := json.Marshal(out)
		if err != nil {
			t.Fatal(err)
		}
		got, err := out.AppendJSON([]byte("before"))
		if err != nil {
			t.Fatal(err)
		}
		if string(got[:6]) != "before" {
			t.Errorf("%s: what was there is lost: %s", name, got)
		}
		if diff := cmp.Diff(decoded(t, want), decoded(t, got[6:])); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

func decoded(t *testing.T, text []byte) (v any) {
	t.Helper()
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}
