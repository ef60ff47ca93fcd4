package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"syscall"

	"github.com/go-chi/chi/v5/middleware"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/fault"
)

// statusGone is what the log shows for a client that left before its answer.
const statusGone = 499

var statuses = map[fault.Kind]int{
	fault.Canceled:           statusGone,
	fault.Invalid:            http.StatusBadRequest,
	fault.Unauthenticated:    http.StatusUnauthorized,
	fault.PermissionDenied:   http.StatusForbidden,
	fault.NotFound:           http.StatusNotFound,
	fault.AlreadyExists:      http.StatusConflict,
	fault.FailedPrecondition: http.StatusConflict,
	fault.Aborted:            http.StatusConflict,
	fault.Unimplemented:      http.StatusNotImplemented,
	fault.Unavailable:        http.StatusServiceUnavailable,
	fault.DeadlineExceeded:   http.StatusGatewayTimeout,
	fault.Internal:           http.StatusInternalServerError,
}

// statusOf is the HTTP status of an error's kind. What is exhausted decides between "no
// space" and "too many": after RPC only the words are left to tell.
func statusOf(err error) int {
	kind := fault.KindOf(err)
	if kind == fault.ResourceExhausted {
		text := strings.ToLower(fault.Message(err))
		if errors.Is(err, syscall.ENOSPC) || strings.Contains(text, "disk") || strings.Contains(text, "no space") {
			return http.StatusInsufficientStorage
		}
		return http.StatusTooManyRequests
	}
	if status, known := statuses[kind]; known {
		return status
	}
	return http.StatusInternalServerError
}

// problem is an error as the API shows it.
func problem(err error) v1.Error {
	out := v1.Error{Code: fault.KindOf(err).String(), Message: fault.Message(err)}
	if hint := fault.HintOf(err); hint != "" {
		out.Hint = &hint
	}
	return out
}

// fail answers with an error, when there still is somebody and nothing was answered.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	status := statusOf(err)
	if status >= http.StatusInternalServerError && status != http.StatusGatewayTimeout {
		a.log.Error("request failed", "method", r.Method, "path", r.URL.Path, "status", status, "error", err)
	}
	if begun(w) {
		panic(http.ErrAbortHandler)
	}
	if r.Context().Err() != nil {
		w.WriteHeader(statusGone) // for the log alone
		return
	}
	writeProblem(w, status, err)
}

func writeProblem(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/json")
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="roost"`)
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v1.ErrorBody{Error: problem(err)}) // a write error is the client's leaving
}

// begun says whether an answer's header is out.
func begun(w http.ResponseWriter) bool {
	ww, ok := w.(middleware.WrapResponseWriter)
	return ok && ww.Status() != 0
}

// badRequest is for what the generated code could not read.
func (a *API) badRequest(w http.ResponseWriter, r *http.Request, err error) {
	var f *fault.Error
	if !errors.As(err, &f) && !errors.Is(err, context.Canceled) {
		err = fault.New(fault.Invalid, "", "", err.Error())
	}
	a.fail(w, r, err)
}
