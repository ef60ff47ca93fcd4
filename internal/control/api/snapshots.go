package api

import (
	"context"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/fault"
)

var errComing = fault.New(fault.Unimplemented, "", "", "this control plane cannot do that yet")

// CreateSnapshot saves a sandbox.
func (a *API) CreateSnapshot(context.Context, v1.CreateSnapshotRequestObject) (v1.CreateSnapshotResponseObject, error) {
	return nil, errComing
}

// ListSnapshots lists snapshots.
func (a *API) ListSnapshots(context.Context, v1.ListSnapshotsRequestObject) (v1.ListSnapshotsResponseObject, error) {
	return nil, errComing
}

// GetSnapshot gives one snapshot.
func (a *API) GetSnapshot(context.Context, v1.GetSnapshotRequestObject) (v1.GetSnapshotResponseObject, error) {
	return nil, errComing
}

// DeleteSnapshot removes a snapshot.
func (a *API) DeleteSnapshot(context.Context, v1.DeleteSnapshotRequestObject) (v1.DeleteSnapshotResponseObject, error) {
	return nil, errComing
}

// ForkSandbox makes sandboxes of another.
func (a *API) ForkSandbox(context.Context, v1.ForkSandboxRequestObject) (v1.ForkSandboxResponseObject, error) {
	return nil, errComing
}

// CreateTemplate makes a template.
func (a *API) CreateTemplate(context.Context, v1.CreateTemplateRequestObject) (v1.CreateTemplateResponseObject, error) {
	return nil, errComing
}

// DeleteTemplate removes a template.
func (a *API) DeleteTemplate(context.Context, v1.DeleteTemplateRequestObject) (v1.DeleteTemplateResponseObject, error) {
	return nil, errComing
}

// ListLeaks says what belongs to nobody.
func (a *API) ListLeaks(context.Context, v1.ListLeaksRequestObject) (v1.ListLeaksResponseObject, error) {
	return nil, errComing
}

// RemoveLeaks removes what belongs to nobody.
func (a *API) RemoveLeaks(context.Context, v1.RemoveLeaksRequestObject) (v1.RemoveLeaksResponseObject, error) {
	return nil, errComing
}
