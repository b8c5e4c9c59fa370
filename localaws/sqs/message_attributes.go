package sqs

import (
	"crypto/md5"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// AttributeValue is a message attribute, or a message system attribute, as it travels.
type AttributeValue struct {
	DataType    string  `json:"DataType"`
	StringValue *string `json:"StringValue,omitempty"`
	BinaryValue []byte  `json:"BinaryValue,omitempty"`
}

const (
	maxAttributes         = 10
	maxAttributeNameBytes = 256
)

var (
	attributeName = regexp.MustCompile(`^[A-Za-z0-9_.\x{00C0}-\x{017F}-]+$`) // AWS takes letters like ø and ß too
	attributeType = regexp.MustCompile(`^(String|Number|Binary)(\..+)?$`)
	numberValue   = regexp.MustCompile(`^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$`)
)

// checkAttributes refuses message attributes that AWS would.
func checkAttributes(attributes map[string]AttributeValue) error {
	if len(attributes) > maxAttributes {
		return errInvalidValue.With("Number of message attributes [%d] exceeds the allowed maximum [%d].", len(attributes), maxAttributes)
	}
	for _, name := range slices.Sorted(maps.Keys(attributes)) {
		if err := checkAttributeName(name); err != nil {
			return err
		}
		if err := checkAttributeValue(name, attributes[name]); err != nil {
			return err
		}
	}
	return nil
}

func checkAttributeName(name string) error {
	lower := strings.ToLower(name)
	switch {
	case len(name) > maxAttributeNameBytes:
		return errInvalidValue.With("Message (user) attribute names must be shorter than 256 Bytes")
	case !attributeName.MatchString(name):
		return errInvalidValue.With("Message (user) attributes name can only contain upper and lower score characters, digits, periods, hyphens and underscores. ")
	case strings.HasPrefix(lower, "aws."), strings.HasPrefix(lower, "amazon."),
		strings.HasPrefix(name, "."), strings.HasSuffix(name, "."), strings.Contains(name, ".."):
		return errInvalidValue.With("You can't use message attribute names beginning with 'AWS.' or 'Amazon.'. These strings are reserved for internal use. Additionally, they cannot start or end with '.'.")
	}
	return nil
}

func checkAttributeValue(name string, v AttributeValue) error {
	if v.DataType == "" {
		return errInvalidValue.With("The message attribute '%s' must contain non-empty message attribute type.", name)
	}
	if !attributeType.MatchString(v.DataType) {
		return errInvalidValue.With("The message attribute '%s' has an invalid message attribute type, the set of supported type prefixes is Binary, Number, and String.", name)
	}
	if len(v.DataType) > maxAttributeNameBytes {
		return errInvalidValue.With("Message (user) attribute types must be shorter than 256 Bytes")
	}
	base, _, _ := strings.Cut(v.DataType, ".")
	if base == "Binary" {
		if len(v.BinaryValue) == 0 {
			return errInvalidValue.With("Message (user) attribute '%s' must contain a non-empty value of type '%s'.", name, v.DataType)
		}
		return nil
	}
	if v.StringValue == nil || *v.StringValue == "" {
		return errInvalidValue.With("Message (user) attribute '%s' must contain a non-empty value of type '%s'.", name, v.DataType)
	}
	if !validText(*v.StringValue) {
		return errInvalidValue.With("%s", errBadContents.Message) // which AWS has for the body alone
	}
	if base == "Number" && !numberValue.MatchString(*v.StringValue) {
		return errInvalidValue.With("Can't cast the value of message (user) attribute '%s' to a number.", name)
	}
	return nil
}

// checkSystemAttributes refuses what may not be sent as a system attribute.
func checkSystemAttributes(attributes map[string]AttributeValue) error {
	for name, v := range attributes {
		if name != "AWSTraceHeader" {
			return invalid(name, "MessageSystemAttributes", "Unknown message system attribute.")
		}
		if v.DataType != "String" || v.StringValue == nil || *v.StringValue == "" {
			return invalid(v.DataType, "MessageSystemAttributes.AWSTraceHeader", "The system attribute must be a non-empty value of type String.")
		}
	}
	return nil
}

// validText reports whether AWS takes every character of s.
func validText(s string) bool {
	for _, r := range s {
		if r < 0x20 && r != '\t' && r != '\n' && r != '\r' || r == 0xFFFE || r == 0xFFFF {
			return false
		}
	}
	return true
}

func sizeOf(attributes map[string]AttributeValue) int {
	n := 0
	for name, v := range attributes {
		n += len(name) + len(v.DataType) + len(v.BinaryValue)
		if v.StringValue != nil {
			n += len(*v.StringValue)
		}
	}
	return n
}

// digest is an MD5, which takes a third of its text.
type digest [md5.Size]byte

func (d digest) String() string { return hex.EncodeToString(d[:]) }

func md5Text(s string) digest { return md5.Sum([]byte(s)) }

// md5Attributes is the digest by which clients verify attributes: by sorted name, every part with
// its length before it and a byte for the kind of value. It is empty when there are none.
func md5Attributes(attributes map[string]AttributeValue) string {
	if len(attributes) == 0 {
		return ""
	}
	h := md5.New()
	for _, name := range slices.Sorted(maps.Keys(attributes)) {
		v := attributes[name]
		writePart(h, []byte(name))
		writePart(h, []byte(v.DataType))
		if strings.HasPrefix(v.DataType, "Binary") {
			h.Write([]byte{2})
			writePart(h, v.BinaryValue)
			continue
		}
		h.Write([]byte{1})
		writePart(h, []byte(*v.StringValue))
	}
	return hex.EncodeToString(h.Sum(nil))
}

func writePart(h hash.Hash, part []byte) {
	var length [4]byte
	binary.BigEndian.PutUint32(length[:], uint32(len(part)))
	h.Write(length[:])
	h.Write(part)
}

// pickAttributes returns what a receive asked for: names, "All", "*" or ".*", or a prefix as in "order.*".
// Names that are not there are no error.
func pickAttributes(attributes map[string]AttributeValue, wanted []string) map[string]AttributeValue {
	var picked map[string]AttributeValue
	for name, v := range attributes {
		if !slices.ContainsFunc(wanted, func(w string) bool { return matches(w, name) }) {
			continue
		}
		if picked == nil {
			picked = map[string]AttributeValue{}
		}
		picked[name] = v
	}
	return picked
}

func matches(wanted, name string) bool {
	if wanted == "All" || wanted == "*" || wanted == name {
		return true
	}
	prefix, wild := strings.CutSuffix(wanted, ".*")
	return wild && strings.HasPrefix(name, prefix)
}
