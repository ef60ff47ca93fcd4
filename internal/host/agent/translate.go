package agent

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/host/image"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/sandbox"
)

func operation(op *hostv1.Operation) sandbox.Operation {
	return sandbox.Operation{ID: op.GetOperationId(), Generation: op.GetGeneration()}
}

func optionalDuration(d *durationpb.Duration) *time.Duration {
	if d == nil {
		return nil
	}
	v := d.AsDuration()
	return &v
}

// idleOrDefault: none given is the default; a given 0 is never.
func idleOrDefault(d *durationpb.Duration) time.Duration {
	if d == nil {
		return sandbox.DefaultIdleTimeout
	}
	return d.AsDuration()
}

func fromResources(r *hostv1.Resources) runtime.Resources {
	return runtime.Resources{
		VCPUs: int(r.GetVcpus()), MemoryMB: int(r.GetMemoryMb()), DiskSizeMB: int(r.GetDiskSizeMb()),
	}
}

func toResources(r runtime.Resources) *hostv1.Resources {
	return &hostv1.Resources{
		Vcpus: uint32(r.VCPUs), MemoryMb: uint32(r.MemoryMB), DiskSizeMb: uint32(r.DiskSizeMB), //nolint:gosec // checked at create
	}
}

var states = map[sandbox.State]hostv1.SandboxState{
	sandbox.Creating:     hostv1.SandboxState_SANDBOX_STATE_CREATING,
	sandbox.Running:      hostv1.SandboxState_SANDBOX_STATE_RUNNING,
	sandbox.Pausing:      hostv1.SandboxState_SANDBOX_STATE_PAUSING,
	sandbox.Paused:       hostv1.SandboxState_SANDBOX_STATE_PAUSED,
	sandbox.Resuming:     hostv1.SandboxState_SANDBOX_STATE_RESUMING,
	sandbox.Failed:       hostv1.SandboxState_SANDBOX_STATE_FAILED,
	sandbox.Destroying:   hostv1.SandboxState_SANDBOX_STATE_DESTROYING,
	sandbox.Lost:         hostv1.SandboxState_SANDBOX_STATE_LOST,
	sandbox.Snapshotting: hostv1.SandboxState_SANDBOX_STATE_SNAPSHOTTING,
}

func toSandbox(v sandbox.View) *hostv1.Sandbox {
	out := &hostv1.Sandbox{
		Id: v.ID, State: states[v.State], Generation: v.Generation, Template: v.Template,
		Resources: toResources(v.Resources), Isolation: string(v.Isolation), Runtime: v.Runtime,
		Reason: v.Reason, CreatedAt: timestamppb.New(v.CreatedAt), ActiveAt: timestamppb.New(v.ActiveAt),
		IdleTimeout: durationpb.New(v.IdleTimeout),
		DiskBytes:   v.Usage.DiskBytes, MemoryBytes: v.Usage.MemoryBytes, Envs: v.Envs,
	}
	out.Phases = toPhases(v.Phases)
	return out
}

func toPhases(phases []runtime.Phase) []*hostv1.Phase {
	var out []*hostv1.Phase
	for _, p := range phases {
		out = append(out, &hostv1.Phase{Name: p.Name, Duration: durationpb.New(p.Duration)})
	}
	return out
}

func toTemplate(t image.Template, warm []image.Warm) *hostv1.Template {
	out := &hostv1.Template{
		Name: t.Name, Digest: t.Digest, SizeBytes: t.SizeBytes, CreatedAt: timestamppb.New(t.CreatedAt),
		DiskBytes: t.DiskBytes, BuiltByHost: t.Made == nil,
	}
	listed := map[runtime.Resources]bool{}
	for _, w := range warm {
		out.SizeBytes += w.SizeBytes
		size := runtime.Resources{VCPUs: w.VCPUs, MemoryMB: w.MemoryMB, DiskSizeMB: int(w.DiskBytes >> 20)}
		// One size may be there more than once, made with another QEMU or guest agent.
		if !listed[size] {
			listed[size] = true
			out.Warm = append(out.Warm, toResources(size))
		}
	}
	return out
}
