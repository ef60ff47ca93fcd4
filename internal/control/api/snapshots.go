package api

import (
	"context"
	"net/http"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/control/sandbox"
	"github.com/roosthq/roost/internal/control/template"
)

// CreateSnapshot saves a sandbox. The snapshot stands when its client has left.
func (a *API) CreateSnapshot(ctx context.Context, r v1.CreateSnapshotRequestObject) (v1.CreateSnapshotResponseObject, error) {
	snap, err := a.sandboxes.Snapshot(ctx, r.Body.SandboxId, or(r.Body.Name, ""))
	hangUpOnGone(ctx)
	if err != nil {
		return nil, err
	}
	return v1.CreateSnapshot201JSONResponse(templateOf(snap)), nil
}

// hangUpOnGone ends a request whose client left meanwhile: nothing is written to its
// connection.
func hangUpOnGone(ctx context.Context) {
	if ctx.Err() != nil {
		panic(http.ErrAbortHandler)
	}
}

// ListSnapshots lists snapshots.
func (a *API) ListSnapshots(ctx context.Context, r v1.ListSnapshotsRequestObject) (v1.ListSnapshotsResponseObject, error) {
	list, err := a.templates.List(ctx, template.Snapshot, or(r.Params.SandboxId, ""))
	if err != nil {
		return nil, err
	}
	return v1.ListSnapshots200JSONResponse{Templates: templatesOf(list)}, nil
}

// GetSnapshot gives one snapshot.
func (a *API) GetSnapshot(ctx context.Context, r v1.GetSnapshotRequestObject) (v1.GetSnapshotResponseObject, error) {
	t, err := a.templates.GetSnapshot(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	return v1.GetSnapshot200JSONResponse(templateOf(t)), nil
}

// DeleteSnapshot removes a snapshot.
func (a *API) DeleteSnapshot(ctx context.Context, r v1.DeleteSnapshotRequestObject) (v1.DeleteSnapshotResponseObject, error) {
	if err := a.templates.Delete(ctx, r.Name, template.Snapshot); err != nil {
		return nil, err
	}
	return v1.DeleteSnapshot204Response{}, nil
}

// ForkSandbox makes sandboxes of another.
func (a *API) ForkSandbox(ctx context.Context, r v1.ForkSandboxRequestObject) (v1.ForkSandboxResponseObject, error) {
	b := r.Body
	if b == nil {
		b = &v1.Fork{}
	}
	made, err := a.sandboxes.Fork(ctx, r.Id, sandbox.ForkRequest{Count: or(b.Count, 1),
		IdleTimeoutS: b.IdleTimeoutS, Env: or(b.Env, nil), Metadata: or(b.Metadata, nil)})
	if err != nil {
		return nil, err
	}
	out := v1.ForkSandbox201JSONResponse{Sandboxes: make([]v1.Sandbox, len(made.Sandboxes)),
		FrozenMs: milliseconds(made.Frozen), Phases: phasesOf(made.Phases)}
	for i, row := range made.Sandboxes {
		out.Sandboxes[i] = sandboxOf(row)
	}
	return out, nil
}
