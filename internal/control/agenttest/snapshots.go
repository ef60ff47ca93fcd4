package agenttest

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
)

// frozen is how long every source stands still.
const frozen = 25 * time.Millisecond

// Snapshot is a copy of what the agent has, nil for nothing.
func (a *Agent) Snapshot(id string) *hostv1.Snapshot {
	a.mu.Lock()
	defer a.mu.Unlock()
	return clone(a.snapshots[id])
}

// PutSnapshot gives the agent a snapshot; ForgetSnapshot takes it away without a trace.
func (a *Agent) PutSnapshot(s *hostv1.Snapshot) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.snapshots[s.Id] = s
}

// ForgetSnapshot takes a snapshot away.
func (a *Agent) ForgetSnapshot(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.snapshots, id)
}

func clone[T proto.Message](m T) T { return proto.Clone(m).(T) }

func notFound(text string) error { return connect.NewError(connect.CodeNotFound, errText(text)) }

func refused(text string) error {
	return connect.NewError(connect.CodeFailedPrecondition, errText(text))
}

// savable says that a sandbox can be captured.
func savable(sb *hostv1.Sandbox) error {
	switch sb.State {
	case hostv1.SandboxState_SANDBOX_STATE_RUNNING, hostv1.SandboxState_SANDBOX_STATE_PAUSED:
		return nil
	default:
		return refused("wrong state " + sb.State.String())
	}
}

func snapshotOf(sb *hostv1.Sandbox, id string) *hostv1.Snapshot {
	snap := &hostv1.Snapshot{Id: id, SandboxId: sb.Id, Template: sb.Template, Resources: clone(sb.Resources),
		Runtime: sb.Runtime, Isolation: sb.Isolation, CreatedAt: timestamppb.Now(), SizeBytes: 9 << 20, OwnBytes: 2 << 20,
		Frozen: durationpb.New(frozen), Phases: []*hostv1.Phase{{Name: "freeze", Duration: durationpb.New(time.Millisecond)}}}
	if sb.State == hostv1.SandboxState_SANDBOX_STATE_PAUSED {
		snap.Frozen = durationpb.New(0)
	}
	return snap
}

// CreateSnapshot keeps a snapshot; the same id again is answered as before.
func (a *Agent) CreateSnapshot(ctx context.Context, r *connect.Request[hostv1.CreateSnapshotRequest]) (*connect.Response[hostv1.CreateSnapshotResponse], error) {
	m := r.Msg
	sb, err := a.mutate(ctx, "CreateSnapshot", m.SandboxId, m.Operation, func(sb *hostv1.Sandbox) error {
		if err := savable(sb); err != nil {
			return err
		}
		if a.snapshots[m.SnapshotId] == nil {
			a.snapshots[m.SnapshotId] = snapshotOf(sb, m.SnapshotId)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.CreateSnapshotResponse{Snapshot: a.Snapshot(m.SnapshotId), Sandbox: sb}), nil
}

// DeleteSnapshot forgets a snapshot; an unknown id succeeds.
func (a *Agent) DeleteSnapshot(ctx context.Context, r *connect.Request[hostv1.DeleteSnapshotRequest]) (*connect.Response[hostv1.DeleteSnapshotResponse], error) {
	id := r.Msg.SnapshotId
	if err := a.hook(ctx, false, "DeleteSnapshot", id); err != nil {
		return nil, err
	}
	a.mu.Lock()
	if a.snapshots[id] != nil {
		delete(a.snapshots, id)
		a.effects["DeleteSnapshot"]++
	}
	a.mu.Unlock()
	return connect.NewResponse(&hostv1.DeleteSnapshotResponse{}), a.hook(ctx, true, "DeleteSnapshot", id)
}

// GetSnapshot reports one.
func (a *Agent) GetSnapshot(ctx context.Context, r *connect.Request[hostv1.GetSnapshotRequest]) (*connect.Response[hostv1.GetSnapshotResponse], error) {
	if err := a.hook(ctx, false, "GetSnapshot", r.Msg.SnapshotId); err != nil {
		return nil, err
	}
	if snap := a.Snapshot(r.Msg.SnapshotId); snap != nil {
		return connect.NewResponse(&hostv1.GetSnapshotResponse{Snapshot: snap}), nil
	}
	return nil, notFound("no such snapshot")
}

// ListSnapshots reports all.
func (a *Agent) ListSnapshots(ctx context.Context, _ *connect.Request[hostv1.ListSnapshotsRequest]) (*connect.Response[hostv1.ListSnapshotsResponse], error) {
	if err := a.hook(ctx, false, "ListSnapshots", ""); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	out := &hostv1.ListSnapshotsResponse{}
	for _, snap := range a.snapshots {
		out.Snapshots = append(out.Snapshots, clone(snap))
	}
	return connect.NewResponse(out), nil
}

// ForkSandbox makes all of the forks at once.
func (a *Agent) ForkSandbox(ctx context.Context, r *connect.Request[hostv1.ForkSandboxRequest]) (*connect.Response[hostv1.ForkSandboxResponse], error) {
	m := r.Msg
	out := &hostv1.ForkSandboxResponse{Frozen: durationpb.New(frozen),
		Phases: []*hostv1.Phase{{Name: "capture", Duration: durationpb.New(2 * time.Millisecond)}}}
	source, err := a.mutate(ctx, "ForkSandbox", m.SandboxId, m.Operation, func(sb *hostv1.Sandbox) error {
		if err := savable(sb); err != nil {
			return err
		}
		for _, f := range m.Forks {
			a.sandboxes[f.SandboxId] = a.forkOf(sb, f, m)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out.Source = source
	for _, f := range m.Forks {
		out.Sandboxes = append(out.Sandboxes, a.Sandbox(f.SandboxId))
	}
	return connect.NewResponse(out), nil
}

// forkOf needs a.mu.
func (a *Agent) forkOf(source *hostv1.Sandbox, f *hostv1.Fork, m *hostv1.ForkSandboxRequest) *hostv1.Sandbox {
	sb := clone(source)
	sb.Id, sb.Generation, sb.State, sb.Reason = f.SandboxId, 1, hostv1.SandboxState_SANDBOX_STATE_RUNNING, ""
	if m.IdleTimeout != nil {
		sb.IdleTimeout = m.IdleTimeout
	}
	a.envs[f.SandboxId] = m.Envs
	a.journal[f.OperationId] = clone(sb)
	return sb
}
