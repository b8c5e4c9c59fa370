package sqs

import (
	"net/http"

	"github.com/stepfleet/stepfleet/localaws/api"
)

// legacy is the prefix that some codes had in the Query protocol and keep in the header.
const legacy = "AWS.SimpleQueueService."

// The service's errors, with AWS's types, codes, statuses and texts.
var (
	errNoQueue = &api.Error{
		Type: "QueueDoesNotExist", Code: legacy + "NonExistentQueue", Status: http.StatusBadRequest,
		Message:      "The specified queue does not exist.",
		QueryMessage: "The specified queue does not exist for this wsdl version.",
	}
	errQueueExists   = &api.Error{Type: "QueueNameExists", Code: "QueueAlreadyExists", Status: http.StatusBadRequest}
	errDeletedLately = &api.Error{
		Type: "QueueDeletedRecently", Code: legacy + "QueueDeletedRecently", Status: http.StatusBadRequest,
		Message: "You must wait 60 seconds after deleting a queue before you can create another with the same name.",
	}
	errPurging   = &api.Error{Type: "PurgeQueueInProgress", Code: legacy + "PurgeQueueInProgress", Status: http.StatusForbidden}
	errOverLimit = &api.Error{
		Type: "OverLimit", Status: http.StatusForbidden,
		Message: "Too many messages in flight: delete messages or wait for their visibility timeout.",
	}
	errThrottled      = &api.Error{Type: "RequestThrottled", Status: http.StatusForbidden, Message: "Request is throttled."}
	errNotFound       = &api.Error{Type: "ResourceNotFoundException", Status: http.StatusNotFound}
	errUnsupported    = &api.Error{Type: "UnsupportedOperation", Code: legacy + "UnsupportedOperation", Status: http.StatusBadRequest}
	errInvalidAddress = &api.Error{Type: "InvalidAddress", Status: http.StatusNotFound}
	errBadHandle      = &api.Error{Type: "ReceiptHandleIsInvalid", Status: http.StatusNotFound}
	errBadContents    = &api.Error{
		Type: "InvalidMessageContents", Status: http.StatusBadRequest,
		Message: "Invalid characters found. Valid unicode characters are #x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF",
	}
	errAttributeName  = &api.Error{Type: "InvalidAttributeName", Status: http.StatusBadRequest}
	errAttributeValue = &api.Error{Type: "InvalidAttributeValue", Status: http.StatusBadRequest}
	errInvalidValue   = &api.Error{Type: "InvalidParameterValueException", Common: true, Code: "InvalidParameterValue", Status: http.StatusBadRequest}
	errMissing        = &api.Error{Type: "MissingRequiredParameterException", Common: true, Code: "MissingParameter", Status: http.StatusBadRequest}

	errEmptyBatch     = &api.Error{Type: "EmptyBatchRequest", Code: legacy + "EmptyBatchRequest", Status: http.StatusBadRequest}
	errBatchTooMany   = &api.Error{Type: "TooManyEntriesInBatchRequest", Code: legacy + "TooManyEntriesInBatchRequest", Status: http.StatusBadRequest}
	errBatchTooLong   = &api.Error{Type: "BatchRequestTooLong", Code: legacy + "BatchRequestTooLong", Status: http.StatusBadRequest}
	errBatchSameID    = &api.Error{Type: "BatchEntryIdsNotDistinct", Code: legacy + "BatchEntryIdsNotDistinct", Status: http.StatusBadRequest}
	errBatchInvalidID = &api.Error{
		Type: "InvalidBatchEntryId", Code: legacy + "InvalidBatchEntryId", Status: http.StatusBadRequest,
		Message: "A batch entry id can only contain alphanumeric characters, hyphens and underscores. It can be at most 80 letters long.",
	}
)

func missing(parameter string) *api.Error {
	return errMissing.With("The request must contain the parameter %s.", parameter)
}

func invalid(value any, parameter, reason string) *api.Error {
	return errInvalidValue.With("Value %v for parameter %s is invalid. Reason: %s", value, parameter, reason)
}
