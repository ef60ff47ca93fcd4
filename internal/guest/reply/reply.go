// Package reply writes the answers of the plain HTTP routes (files, archive, envs): JSON, and
// errors as {"message","code"} with the HTTP status for code, which is what E2B's SDKs read.
package reply

import (
	"encoding/json"
	"net/http"

	"github.com/roosthq/roost/internal/fault"
)

type failure struct {
	Message string `json:"message"`
	Code    int    `json:"code"`
}

// Error answers with err.
func Error(w http.ResponseWriter, err error) {
	status := Status(fault.KindOf(err))
	JSON(w, status, failure{Message: fault.Message(err), Code: status})
}

// JSON answers with a value.
func JSON(w http.ResponseWriter, status int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// Status is the HTTP status of a kind. A full disk is 507: nothing else is exhausted here.
func Status(kind fault.Kind) int {
	switch kind {
	case fault.Invalid, fault.FailedPrecondition:
		return http.StatusBadRequest
	case fault.Unauthenticated:
		return http.StatusUnauthorized
	case fault.PermissionDenied:
		return http.StatusForbidden
	case fault.NotFound:
		return http.StatusNotFound
	case fault.AlreadyExists:
		return http.StatusConflict
	case fault.ResourceExhausted:
		return http.StatusInsufficientStorage
	case fault.Unavailable:
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}
