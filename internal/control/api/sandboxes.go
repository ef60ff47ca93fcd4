package api

import (
	"context"
	"fmt"
	"net/http"
	"strconv"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/control/sandbox"
	"github.com/roosthq/roost/internal/fault"
)

const defaultPage = 100

// ListSandboxes gives one page.
func (a *API) ListSandboxes(ctx context.Context, r v1.ListSandboxesRequestObject) (v1.ListSandboxesResponseObject, error) {
	state := or(r.Params.State, "")
	if state != "" && !state.Valid() {
		return nil, fault.New(fault.Invalid, "", "", fmt.Sprintf("state is %.32q: "+
			"must be creating, running, pausing, paused, resuming, failed, lost, deleting or deleted", state))
	}
	rows, next, err := a.sandboxes.List(ctx, sandbox.State(state), or(r.Params.Limit, defaultPage), or(r.Params.Cursor, ""))
	if err != nil {
		return nil, err
	}
	out := v1.ListSandboxes200JSONResponse{Sandboxes: make([]v1.Sandbox, len(rows)), NextCursor: optional(next)}
	for i, row := range rows {
		out.Sandboxes[i] = sandboxOf(row)
	}
	return out, nil
}

// GetSandbox gives one sandbox.
func (a *API) GetSandbox(ctx context.Context, r v1.GetSandboxRequestObject) (v1.GetSandboxResponseObject, error) {
	row, err := a.sandboxes.Get(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	return v1.GetSandbox200JSONResponse(sandboxOf(row)), nil
}

// DeleteSandbox removes a sandbox.
func (a *API) DeleteSandbox(ctx context.Context, r v1.DeleteSandboxRequestObject) (v1.DeleteSandboxResponseObject, error) {
	if err := a.sandboxes.Delete(ctx, r.Id); err != nil {
		return nil, err
	}
	return v1.DeleteSandbox204Response{}, nil
}

// PauseSandbox saves a sandbox.
func (a *API) PauseSandbox(ctx context.Context, r v1.PauseSandboxRequestObject) (v1.PauseSandboxResponseObject, error) {
	diskOnly := r.Body != nil && or(r.Body.DiskOnly, false)
	row, err := a.sandboxes.Pause(ctx, r.Id, diskOnly)
	if err != nil {
		return nil, err
	}
	return v1.PauseSandbox200JSONResponse(sandboxOf(row)), nil
}

// ResumeSandbox wakes a sandbox, or starts it from its disk.
func (a *API) ResumeSandbox(ctx context.Context, r v1.ResumeSandboxRequestObject) (v1.ResumeSandboxResponseObject, error) {
	cold := r.Body != nil && or(r.Body.Cold, false)
	row, err := a.sandboxes.Resume(ctx, r.Id, cold)
	if err != nil {
		return nil, err
	}
	return v1.ResumeSandbox200JSONResponse(sandboxOf(row)), nil
}

// SetSandboxTimeout sets the idle timeout.
func (a *API) SetSandboxTimeout(ctx context.Context, r v1.SetSandboxTimeoutRequestObject) (v1.SetSandboxTimeoutResponseObject, error) {
	row, err := a.sandboxes.SetTimeout(ctx, r.Id, r.Body.IdleTimeoutS)
	if err != nil {
		return nil, err
	}
	return v1.SetSandboxTimeout200JSONResponse(sandboxOf(row)), nil
}

// GetSandboxLogs gives the console's end.
func (a *API) GetSandboxLogs(ctx context.Context, r v1.GetSandboxLogsRequestObject) (v1.GetSandboxLogsResponseObject, error) {
	tail := or(r.Params.TailBytes, 0)
	if r.Params.TailBytes != nil && tail < 1 {
		return nil, fault.New(fault.Invalid, "", "", fmt.Sprintf("tail_bytes is %d: must be 1 to 1048576", tail))
	}
	text, err := a.sandboxes.Console(ctx, r.Id, tail)
	if err != nil {
		return nil, err
	}
	return console(text), nil
}

// console stands in for the generated response, which prints its Go value.
type console []byte

func (c console) VisitGetSandboxLogsResponse(w http.ResponseWriter) error {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff") // a guest wrote this
	h.Set("Content-Length", strconv.Itoa(len(c)))
	w.WriteHeader(http.StatusOK)
	_, err := w.Write(c)
	return err
}
