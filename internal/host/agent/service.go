package agent

import (
	"context"

	"connectrpc.com/connect"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/api/gen/roost/host/v1/hostv1connect"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/image"
	"github.com/roosthq/roost/internal/host/sandbox"
)

// service translates HostService to the sandbox manager and back.
type service struct {
	hostv1connect.UnimplementedHostServiceHandler
	sandboxes *sandbox.Manager
	images    *image.Store
	host      HostInfo
}

func (s *service) CreateSandbox(ctx context.Context, req *connect.Request[hostv1.CreateSandboxRequest], stream *connect.ServerStream[hostv1.CreateSandboxResponse]) error {
	send := sender(stream, func(p *hostv1.Progress) *hostv1.CreateSandboxResponse {
		return &hostv1.CreateSandboxResponse{Event: &hostv1.CreateSandboxResponse_Progress{Progress: p}}
	})
	m := req.Msg
	view, err := s.sandboxes.Create(ctx, operation(m.GetOperation()), sandbox.CreateRequest{
		ID: m.GetSandboxId(), Template: m.GetTemplate(), Resources: fromResources(m.GetResources()),
		IdleTimeout: idleOrDefault(m.GetIdleTimeout()), Envs: m.GetEnvs(),
		Runtime: m.GetRuntime(), Cold: m.GetCold(), Snapshot: m.GetSnapshotId(),
	}, send.progress)
	if err != nil {
		return fault.ToConnect(err)
	}
	return send.last(&hostv1.CreateSandboxResponse{Event: &hostv1.CreateSandboxResponse_Sandbox{Sandbox: toSandbox(view)}})
}

func (s *service) PauseSandbox(ctx context.Context, req *connect.Request[hostv1.PauseSandboxRequest]) (*connect.Response[hostv1.PauseSandboxResponse], error) {
	res, err := s.sandboxes.Pause(ctx, operation(req.Msg.GetOperation()), req.Msg.GetSandboxId(), sandbox.PauseOptions{
		Reason: "paused on request", DiskOnly: req.Msg.GetDiskOnly(),
	})
	if err != nil {
		return nil, fault.ToConnect(err)
	}
	return connect.NewResponse(&hostv1.PauseSandboxResponse{Sandbox: toSandbox(res.View), BytesWritten: res.BytesWritten}), nil
}

func (s *service) ResumeSandbox(ctx context.Context, req *connect.Request[hostv1.ResumeSandboxRequest]) (*connect.Response[hostv1.ResumeSandboxResponse], error) {
	view, err := s.sandboxes.Resume(ctx, operation(req.Msg.GetOperation()), req.Msg.GetSandboxId(), sandbox.ResumeOptions{
		Idle: optionalDuration(req.Msg.GetIdleTimeout()), Cold: req.Msg.GetCold(),
	})
	if err != nil {
		return nil, fault.ToConnect(err)
	}
	return connect.NewResponse(&hostv1.ResumeSandboxResponse{Sandbox: toSandbox(view)}), nil
}

func (s *service) DestroySandbox(ctx context.Context, req *connect.Request[hostv1.DestroySandboxRequest]) (*connect.Response[hostv1.DestroySandboxResponse], error) {
	err := s.sandboxes.Destroy(ctx, operation(req.Msg.GetOperation()), req.Msg.GetSandboxId())
	return connect.NewResponse(&hostv1.DestroySandboxResponse{}), fault.ToConnect(err)
}

func (s *service) SetTimeout(ctx context.Context, req *connect.Request[hostv1.SetTimeoutRequest]) (*connect.Response[hostv1.SetTimeoutResponse], error) {
	if req.Msg.GetIdleTimeout() == nil {
		return nil, fault.ToConnect(fault.New(fault.Invalid, "set timeout of", "sandbox "+req.Msg.GetSandboxId(), "idle_timeout is missing"))
	}
	view, err := s.sandboxes.SetIdleTimeout(ctx, operation(req.Msg.GetOperation()), req.Msg.GetSandboxId(), req.Msg.GetIdleTimeout().AsDuration())
	return connect.NewResponse(&hostv1.SetTimeoutResponse{Sandbox: toSandbox(view)}), fault.ToConnect(err)
}

func (s *service) GetSandbox(_ context.Context, req *connect.Request[hostv1.GetSandboxRequest]) (*connect.Response[hostv1.GetSandboxResponse], error) {
	view, err := s.sandboxes.Get(req.Msg.GetSandboxId())
	return connect.NewResponse(&hostv1.GetSandboxResponse{Sandbox: toSandbox(view)}), fault.ToConnect(err)
}

func (s *service) ListSandboxes(context.Context, *connect.Request[hostv1.ListSandboxesRequest]) (*connect.Response[hostv1.ListSandboxesResponse], error) {
	out := &hostv1.ListSandboxesResponse{}
	for _, v := range s.sandboxes.List() {
		out.Sandboxes = append(out.Sandboxes, toSandbox(v))
	}
	return connect.NewResponse(out), nil
}

func (s *service) GetConsole(_ context.Context, req *connect.Request[hostv1.GetConsoleRequest]) (*connect.Response[hostv1.GetConsoleResponse], error) {
	log, err := s.sandboxes.Console(req.Msg.GetSandboxId())
	if err != nil {
		return nil, fault.ToConnect(err)
	}
	if tail := int(req.Msg.GetTailBytes()); tail > 0 && len(log) > tail {
		log = log[len(log)-tail:]
	}
	return connect.NewResponse(&hostv1.GetConsoleResponse{Data: log}), nil
}

func (s *service) ListTemplates(context.Context, *connect.Request[hostv1.ListTemplatesRequest]) (*connect.Response[hostv1.ListTemplatesResponse], error) {
	templates, err := s.images.List()
	if err != nil {
		return nil, fault.ToConnect(err)
	}
	out := &hostv1.ListTemplatesResponse{}
	for _, t := range templates {
		if !s.sandboxes.Owns(t) {
			continue // several installations may share a directory of images
		}
		warm, err := s.images.Warms(t)
		if err != nil {
			return nil, fault.ToConnect(err)
		}
		out.Templates = append(out.Templates, toTemplate(t, warm))
	}
	return connect.NewResponse(out), nil
}

func (s *service) GetHost(ctx context.Context, _ *connect.Request[hostv1.GetHostRequest]) (*connect.Response[hostv1.GetHostResponse], error) {
	info, err := s.host.Describe(ctx)
	if err != nil {
		return nil, fault.ToConnect(err)
	}
	disk, err := s.sandboxes.Disk()
	if err != nil {
		return nil, fault.ToConnect(err)
	}
	info.Disk = toDisk(disk)
	info.Checks = append(info.Checks, checkDisk(disk))
	return connect.NewResponse(info), nil
}
