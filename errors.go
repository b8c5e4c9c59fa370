package stepfleet

import (
	"errors"
	"net/http"
)

// Refusal is an error of the system's own: a sentinel with a stable code. Wrap it with what was
// being done and to what; the code survives the wrapping.
type Refusal struct {
	// Code is stable, used in JSON, audit rows and metric labels, and has a page in docs.
	Code string
	// HTTPStatus is how the server answers it.
	HTTPStatus int
	// Retry says that the same call may succeed later, unchanged.
	Retry bool
	text  string
}

func (r *Refusal) Error() string { return r.text }

// The refusals.
var (
	ErrFenced         = &Refusal{"fenced", http.StatusConflict, false, "the task has another owner now"}
	ErrSessionDead    = &Refusal{"session_dead", http.StatusConflict, false, "the session is dead"}
	ErrSessionSuspect = &Refusal{"session_suspect", http.StatusConflict, true, "the session has missed its renewals"}
	ErrRunClosed      = &Refusal{"run_closed", http.StatusGone, false, "the run is closed"}
	ErrSuperseded     = &Refusal{"superseded", http.StatusConflict, false, "another executor has taken over the run"}
	ErrConflict       = &Refusal{"conflict", http.StatusConflict, false, "the run is known with another identity"}
	ErrCancelled      = &Refusal{"cancelled", http.StatusConflict, false, "the task was cancelled"}
	ErrUnknownQueue   = &Refusal{"unknown_queue", http.StatusUnprocessableEntity, false, "unknown queue"}
	ErrPayloadTooBig  = &Refusal{"payload_too_big", http.StatusRequestEntityTooLarge, false, "the payload is over the limit"}
	ErrTaskInvalid    = &Refusal{"task_invalid", http.StatusBadRequest, false, "invalid"}
	ErrNotFound       = &Refusal{"not_found", http.StatusNotFound, false, "not found"}
	ErrUnauthorized   = &Refusal{"unauthorized", http.StatusUnauthorized, false, "the token is missing or wrong"}
	ErrBusy           = &Refusal{"busy", http.StatusTooManyRequests, true, "the server takes no more for now"}
	ErrUnavailable    = &Refusal{"unavailable", http.StatusServiceUnavailable, true, "not reachable"}
	ErrSchema         = &Refusal{"schema", http.StatusServiceUnavailable, true, "the database does not fit this binary"}
)

// Refusals lists every refusal, for tables and tests.
var Refusals = []*Refusal{
	ErrFenced, ErrSessionDead, ErrSessionSuspect, ErrRunClosed, ErrSuperseded, ErrConflict, ErrCancelled,
	ErrUnknownQueue, ErrPayloadTooBig, ErrTaskInvalid, ErrNotFound, ErrUnauthorized, ErrBusy,
	ErrUnavailable, ErrSchema,
}

// RefusalOf returns the refusal inside err, or nil when err is none of ours.
func RefusalOf(err error) *Refusal {
	var r *Refusal
	if errors.As(err, &r) {
		return r
	}
	return nil
}
