package process

import (
	"context"
	"maps"
	"math"
	"syscall"

	"connectrpc.com/connect"

	pb "github.com/roosthq/roost/api/gen/process"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/guest/account"
	"github.com/roosthq/roost/internal/guest/identity"
)

// Service serves process.Process.
type Service struct {
	manager  *Manager
	users    account.Database
	identity *identity.Identity
}

// NewService serves the processes of m.
func NewService(m *Manager, users account.Database, id *identity.Identity) *Service {
	return &Service{manager: m, users: users, identity: id}
}

// Start starts a process and streams its events.
func (s *Service) Start(ctx context.Context, req *connect.Request[pb.StartRequest], stream *connect.ServerStream[pb.StartResponse]) error {
	user, err := s.users.FromRequest(req.Header(), s.identity.DefaultUser())
	if err != nil {
		return err
	}
	spec, err := s.spec(ctx, req.Msg, user)
	if err != nil {
		return err
	}
	p, sub, err := s.manager.Start(ctx, spec)
	if err != nil {
		return err
	}
	f := follower{process: p, sub: sub, owner: true, idle: keepalive(req.Header()), send: func(e *pb.ProcessEvent) error {
		return stream.Send(&pb.StartResponse{Event: e})
	}}
	return f.follow(ctx)
}

// Connect streams the events of a process from now on.
func (s *Service) Connect(ctx context.Context, req *connect.Request[pb.ConnectRequest], stream *connect.ServerStream[pb.ConnectResponse]) error {
	p, err := s.find(req.Msg.GetProcess())
	if err != nil {
		return err
	}
	sub := p.Attach(req.Header().Get("Roost-Replay") == "true")
	f := follower{process: p, sub: sub, idle: keepalive(req.Header()), send: func(e *pb.ProcessEvent) error {
		return stream.Send(&pb.ConnectResponse{Event: e})
	}}
	return f.follow(ctx)
}

// List lists the running processes.
func (s *Service) List(context.Context, *connect.Request[pb.ListRequest]) (*connect.Response[pb.ListResponse], error) {
	out := &pb.ListResponse{}
	for _, p := range s.manager.Running() {
		out.Processes = append(out.Processes, &pb.ProcessInfo{
			Config: &pb.ProcessConfig{Cmd: p.spec.Cmd, Args: p.spec.Args, Envs: p.spec.Envs, Cwd: &p.cwd},
			Pid:    uint32(p.pid),
			Tag:    p.spec.Tag,
		})
	}
	return connect.NewResponse(out), nil
}

// Update changes a terminal's size.
func (s *Service) Update(_ context.Context, req *connect.Request[pb.UpdateRequest]) (*connect.Response[pb.UpdateResponse], error) {
	p, err := s.find(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if req.Msg.GetPty() != nil {
		size, err := terminalSize(req.Msg.GetPty())
		if err != nil {
			return nil, err
		}
		if err := p.Resize(*size); err != nil {
			return nil, err
		}
	}
	return connect.NewResponse(&pb.UpdateResponse{}), nil
}

// SendInput writes to a process.
func (s *Service) SendInput(ctx context.Context, req *connect.Request[pb.SendInputRequest]) (*connect.Response[pb.SendInputResponse], error) {
	p, err := s.find(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if err := write(ctx, p, req.Msg.GetInput()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.SendInputResponse{}), nil
}

// StreamInput writes a stream of messages to the process that the first one names.
func (s *Service) StreamInput(ctx context.Context, stream *connect.ClientStream[pb.StreamInputRequest]) (*connect.Response[pb.StreamInputResponse], error) {
	var p *Process
	for stream.Receive() {
		var err error
		switch e := stream.Msg().GetEvent().(type) {
		case *pb.StreamInputRequest_Start:
			p, err = s.find(e.Start.GetProcess())
		case *pb.StreamInputRequest_Data:
			if p == nil {
				return nil, fault.New(fault.Invalid, "stream input", "", "the first message must be start")
			}
			err = write(ctx, p, e.Data.GetInput())
		}
		if err != nil {
			return nil, err
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.StreamInputResponse{}), nil
}

// SendSignal signals a process; SIGKILL its whole tree.
func (s *Service) SendSignal(_ context.Context, req *connect.Request[pb.SendSignalRequest]) (*connect.Response[pb.SendSignalResponse], error) {
	p, err := s.find(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	sig := req.Msg.GetSignal()
	if _, known := pb.Signal_name[int32(sig)]; !known || sig == pb.Signal_SIGNAL_UNSPECIFIED {
		return nil, fault.New(fault.Invalid, "signal process", "'"+p.spec.Cmd+"'", "the signal must be TERM, KILL, INT, HUP or QUIT")
	}
	if err := p.Signal(syscall.Signal(sig)); err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.SendSignalResponse{}), nil
}

// CloseStdin ends the input of a process.
func (s *Service) CloseStdin(ctx context.Context, req *connect.Request[pb.CloseStdinRequest]) (*connect.Response[pb.CloseStdinResponse], error) {
	p, err := s.find(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if err := p.CloseInput(ctx); err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.CloseStdinResponse{}), nil
}

func (s *Service) spec(ctx context.Context, msg *pb.StartRequest, user account.User) (Spec, error) {
	config := msg.GetProcess()
	envs := s.identity.Envs()
	if envs == nil {
		envs = map[string]string{}
	}
	maps.Copy(envs, config.GetEnvs())
	spec := Spec{
		Cmd: config.GetCmd(), Args: config.GetArgs(), Envs: envs, Cwd: config.GetCwd(),
		Tag: msg.Tag, Stdin: msg.Stdin == nil || *msg.Stdin, User: user,
	}
	// Connect-Timeout-Ms, which connect-go made this deadline of, is the process's lifetime.
	spec.Deadline, _ = ctx.Deadline()
	var err error
	if msg.GetPty() != nil {
		spec.Terminal, err = terminalSize(msg.GetPty())
	}
	return spec, err
}

func (s *Service) find(selector *pb.ProcessSelector) (*Process, error) {
	switch by := selector.GetSelector().(type) {
	case *pb.ProcessSelector_Pid:
		return s.manager.Find(by.Pid)
	case *pb.ProcessSelector_Tag:
		return s.manager.FindTag(by.Tag)
	default:
		return nil, fault.New(fault.Invalid, "find process", "", "name it by pid or tag")
	}
}

// terminalSize defaults to the 80 by 24 of old.
func terminalSize(p *pb.PTY) (*Size, error) {
	cols, rows := p.GetSize().GetCols(), p.GetSize().GetRows()
	if p.GetSize() == nil {
		cols, rows = 80, 24
	}
	if cols == 0 || rows == 0 || cols > math.MaxUint16 || rows > math.MaxUint16 {
		return nil, fault.New(fault.Invalid, "set", "terminal size", "columns and rows must be between 1 and 65535")
	}
	return &Size{Cols: uint16(cols), Rows: uint16(rows)}, nil
}

func write(ctx context.Context, p *Process, in *pb.ProcessInput) error {
	switch i := in.GetInput().(type) {
	case *pb.ProcessInput_Stdin:
		return p.Write(ctx, i.Stdin, false)
	case *pb.ProcessInput_Pty:
		return p.Write(ctx, i.Pty, true)
	default:
		return fault.New(fault.Invalid, "write to process", "", "the input must be stdin or pty")
	}
}
