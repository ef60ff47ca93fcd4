package api

import (
	"context"
	"net/http"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/control/sandbox"
	"github.com/roosthq/roost/internal/fault"
)

// CreateSandbox makes a sandbox, with progress when the client takes lines.
func (a *API) CreateSandbox(ctx context.Context, r v1.CreateSandboxRequestObject) (v1.CreateSandboxResponseObject, error) {
	spec, err := specOf(r.Body)
	if err != nil {
		return nil, err
	}
	create := func(progress func(step, detail string)) (v1.Sandbox, error) {
		row, err := a.sandboxes.Create(ctx, sandbox.Request{Spec: spec, Owner: apiKey(ctx).ID,
			Key: or(r.Params.IdempotencyKey, ""), Progress: progress})
		if err != nil {
			return v1.Sandbox{}, err
		}
		return sandboxOf(row), nil
	}
	if wantsLines(ctx) {
		l, err := follow(ctx, a, createEvent, create)
		if err != nil {
			return nil, err
		}
		return sandboxLines{l}, nil
	}
	sb, err := create(nil)
	if err != nil {
		return nil, err
	}
	return v1.CreateSandbox201JSONResponse(sb), nil
}

func createEvent(p *v1.Progress, sb *v1.Sandbox, err *v1.Error) any {
	return v1.CreateEvent{Progress: p, Sandbox: sb, Error: err}
}

type sandboxLines struct{ *lines[v1.Sandbox] }

func (l sandboxLines) VisitCreateSandboxResponse(w http.ResponseWriter) error { return l.write(w) }

// specOf leaves what a client left out to the service, where nothing given and zero are one.
func specOf(b *v1.CreateSandbox) (sandbox.Spec, error) {
	for name, size := range map[string]*int{"vcpus": b.Vcpus, "memory_mb": b.MemoryMb, "disk_size_mb": b.DiskSizeMb} {
		if size != nil && *size == 0 {
			return sandbox.Spec{}, fault.New(fault.Invalid, "", "", name+" is 0: leave it out for the default")
		}
	}
	return sandbox.Spec{
		Template: or(b.Template, ""), VCPUs: or(b.Vcpus, 0), MemoryMB: or(b.MemoryMb, 0), DiskSizeMB: or(b.DiskSizeMb, 0),
		IdleTimeoutS: b.IdleTimeoutS, Runtime: or(b.Runtime, ""), Cold: or(b.Cold, false),
		Env: or(b.Env, nil), Metadata: or(b.Metadata, nil),
	}, nil
}
