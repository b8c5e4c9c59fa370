package sqs

import (
	"encoding/json"

	"github.com/go-json-experiment/json/jsontext"
)

// receivedMessage is a message as a receive answers it.
type receivedMessage struct {
	MessageID              string                    `json:"MessageId"`
	ReceiptHandle          string                    `json:"ReceiptHandle"`
	MD5OfBody              string                    `json:"MD5OfBody"`
	Body                   string                    `json:"Body"`
	Attributes             map[string]string         `json:"Attributes,omitempty" query:"Attribute,flat,key=Name,value=Value"`
	MD5OfMessageAttributes string                    `json:"MD5OfMessageAttributes,omitempty"`
	MessageAttributes      map[string]AttributeValue `json:"MessageAttributes,omitempty" query:"MessageAttribute,flat,key=Name,value=Value"`
}

type receiveMessageOutput struct {
	Messages []receivedMessage `json:"Messages,omitempty" query:"Message,flat,json=messages"`
}

// AppendJSON appends the output as the standard library has it, without reflection: it is most of
// what a busy server writes.
func (out *receiveMessageOutput) AppendJSON(b []byte) (_ []byte, err error) {
	if len(out.Messages) == 0 {
		return append(b, "{}"...), nil
	}
	b = append(b, `{"Messages":[`...)
	for i := range out.Messages {
		if i > 0 {
			b = append(b, ',')
		}
		if b, err = out.Messages[i].append(b); err != nil {
			return nil, err
		}
	}
	return append(b, "]}"...), nil
}

func (m *receivedMessage) append(b []byte) (_ []byte, err error) {
	b = appendPlain(append(b, `{"MessageId":`...), m.MessageID)
	b = appendPlain(append(b, `,"ReceiptHandle":`...), m.ReceiptHandle)
	b = appendPlain(append(b, `,"MD5OfBody":`...), m.MD5OfBody)
	b = appendText(append(b, `,"Body":`...), m.Body)
	if len(m.Attributes) > 0 {
		if b, err = appendAny(append(b, `,"Attributes":`...), m.Attributes); err != nil {
			return nil, err
		}
	}
	if m.MD5OfMessageAttributes != "" {
		b = appendPlain(append(b, `,"MD5OfMessageAttributes":`...), m.MD5OfMessageAttributes)
	}
	if len(m.MessageAttributes) > 0 {
		if b, err = appendAny(append(b, `,"MessageAttributes":`...), m.MessageAttributes); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

// appendPlain appends a JSON string of ours: digits, letters and the like, nothing to escape.
func appendPlain(b []byte, text string) []byte {
	return append(append(append(b, '"'), text...), '"')
}

// appendText appends a JSON string. What is not UTF-8 is replaced, and is none of ours: sends refuse it.
func appendText(b []byte, text string) []byte {
	b, _ = jsontext.AppendQuote(b, text)
	return b
}

func appendAny(b []byte, v any) ([]byte, error) {
	text, err := json.Marshal(v)
	return append(b, text...), err
}
