package agent

import (
	"context"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/sandbox"
)

func (s *service) CreateSnapshot(ctx context.Context, req *connect.Request[hostv1.CreateSnapshotRequest]) (*connect.Response[hostv1.CreateSnapshotResponse], error) {
	m := req.Msg
	snap, view, err := s.sandboxes.CreateSnapshot(ctx, operation(m.GetOperation()), m.GetSandboxId(), m.GetSnapshotId())
	if err != nil {
		return nil, fault.ToConnect(err)
	}
	return connect.NewResponse(&hostv1.CreateSnapshotResponse{Snapshot: toSnapshot(snap), Sandbox: toSandbox(view)}), nil
}

func (s *service) DeleteSnapshot(ctx context.Context, req *connect.Request[hostv1.DeleteSnapshotRequest]) (*connect.Response[hostv1.DeleteSnapshotResponse], error) {
	err := s.sandboxes.DeleteSnapshot(ctx, req.Msg.GetSnapshotId())
	return connect.NewResponse(&hostv1.DeleteSnapshotResponse{}), fault.ToConnect(err)
}

func (s *service) GetSnapshot(_ context.Context, req *connect.Request[hostv1.GetSnapshotRequest]) (*connect.Response[hostv1.GetSnapshotResponse], error) {
	snap, err := s.sandboxes.Snapshot(req.Msg.GetSnapshotId())
	if err != nil {
		return nil, fault.ToConnect(err)
	}
	return connect.NewResponse(&hostv1.GetSnapshotResponse{Snapshot: toSnapshot(snap)}), nil
}

func (s *service) ListSnapshots(context.Context, *connect.Request[hostv1.ListSnapshotsRequest]) (*connect.Response[hostv1.ListSnapshotsResponse], error) {
	all, err := s.sandboxes.Snapshots()
	if err != nil {
		return nil, fault.ToConnect(err)
	}
	out := &hostv1.ListSnapshotsResponse{}
	for _, snap := range all {
		out.Snapshots = append(out.Snapshots, toSnapshot(snap))
	}
	return connect.NewResponse(out), nil
}

func (s *service) ForkSandbox(ctx context.Context, req *connect.Request[hostv1.ForkSandboxRequest]) (*connect.Response[hostv1.ForkSandboxResponse], error) {
	m := req.Msg
	want := sandbox.ForkRequest{Idle: optionalDuration(m.GetIdleTimeout()), Envs: m.GetEnvs()}
	for _, f := range m.GetForks() {
		want.Forks = append(want.Forks, sandbox.Fork{Operation: f.GetOperationId(), ID: f.GetSandboxId()})
	}
	res, err := s.sandboxes.Fork(ctx, operation(m.GetOperation()), m.GetSandboxId(), want)
	if err != nil {
		return nil, fault.ToConnect(err)
	}
	out := &hostv1.ForkSandboxResponse{
		Source: toSandbox(res.Source), Frozen: durationpb.New(res.Frozen), Phases: toPhases(res.Phases),
	}
	for _, v := range res.Sandboxes {
		out.Sandboxes = append(out.Sandboxes, toSandbox(v))
	}
	return connect.NewResponse(out), nil
}

func (s *service) CreateTemplate(ctx context.Context, req *connect.Request[hostv1.CreateTemplateRequest], stream *connect.ServerStream[hostv1.CreateTemplateResponse]) error {
	send := sender(stream, func(p *hostv1.Progress) *hostv1.CreateTemplateResponse {
		return &hostv1.CreateTemplateResponse{Event: &hostv1.CreateTemplateResponse_Progress{Progress: p}}
	})
	m := req.Msg
	keep := m.GetKeepSnapshotId()
	if m.GetDiskOnly() {
		keep = ""
	}
	t, snap, err := s.sandboxes.CreateTemplate(ctx, operation(m.GetOperation()), sandbox.TemplateRequest{
		Name: m.GetName(), Sandbox: m.GetSandboxId(), Snapshot: m.GetSnapshotId(), Keep: keep,
	}, send.progress)
	if err != nil {
		return fault.ToConnect(err)
	}
	warm, err := s.images.Warms(t)
	if err != nil {
		return fault.ToConnect(err)
	}
	created := &hostv1.CreatedTemplate{Template: toTemplate(t, warm)}
	if snap != nil {
		created.Snapshot = toSnapshot(*snap)
	}
	return send.last(&hostv1.CreateTemplateResponse{Event: &hostv1.CreateTemplateResponse_Created{Created: created}})
}

func (s *service) DeleteTemplate(ctx context.Context, req *connect.Request[hostv1.DeleteTemplateRequest]) (*connect.Response[hostv1.DeleteTemplateResponse], error) {
	err := s.sandboxes.DeleteTemplate(ctx, req.Msg.GetName())
	return connect.NewResponse(&hostv1.DeleteTemplateResponse{}), fault.ToConnect(err)
}

func (s *service) ListLeaks(ctx context.Context, req *connect.Request[hostv1.ListLeaksRequest]) (*connect.Response[hostv1.ListLeaksResponse], error) {
	leaks, err := s.sandboxes.Leaks(ctx, req.Msg.GetFix())
	if err != nil {
		return nil, fault.ToConnect(err)
	}
	out := &hostv1.ListLeaksResponse{}
	for _, l := range leaks {
		out.Leaks = append(out.Leaks, &hostv1.Leak{
			Kind: l.Kind, Name: l.Name, Detail: l.Detail, Bytes: l.Bytes, Removed: l.Removed, Error: l.Error,
		})
	}
	return connect.NewResponse(out), nil
}

func toSnapshot(s sandbox.Snapshot) *hostv1.Snapshot {
	return &hostv1.Snapshot{
		Id: s.ID, SandboxId: s.SandboxID, Template: s.Template, Resources: toResources(s.Resources),
		Runtime: s.Runtime, Isolation: string(s.Isolation), CreatedAt: timestamppb.New(s.CreatedAt),
		SizeBytes: s.SizeBytes, OwnBytes: s.OwnBytes, Frozen: durationpb.New(s.Frozen), Phases: toPhases(s.Phases),
		DiskOnly: s.DiskOnly,
	}
}
