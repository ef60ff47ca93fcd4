// Package agenttest is a host agent for the control plane's tests: the RPC contract kept in
// memory (journal of operation ids, generations, changes by itself), served over a real
// unix socket, with faults on demand. Behind its proxy stands a guest that runs real
// processes and keeps real files (guest.go). The real agent is met in the end-to-end tests.
package agenttest

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/api/gen/roost/host/v1/hostv1connect"
)

// Base is the base URL to use with Transport.
const Base = "http://agent"

// Hook runs before or after the effect of a call ("PauseSandbox"); its error is what the
// caller gets, so one after the effect is a lost reply.
type Hook func(ctx context.Context, method, id string) error

// Agent is the fake.
type Agent struct {
	hostv1connect.UnimplementedHostServiceHandler
	Client    hostv1connect.HostServiceClient
	Transport *http.Transport
	Guest     *Guest

	mu        sync.Mutex
	before    Hook
	after     Hook
	calls     map[string]int
	effects   map[string]int
	sandboxes map[string]*hostv1.Sandbox
	journal   map[string]*hostv1.Sandbox
	envs      map[string]map[string]string
	creates   map[string]*hostv1.CreateSandboxRequest
	snapshots map[string]*hostv1.Snapshot
	templates map[string]*hostv1.Template
	leaks     []*hostv1.Leak
	server    *http.Server
	socket    string
}

// New serves an agent until the test ends.
func New(t testing.TB) *Agent {
	t.Helper()
	a := &Agent{
		Guest: newGuest(t), calls: map[string]int{}, effects: map[string]int{},
		sandboxes: map[string]*hostv1.Sandbox{}, journal: map[string]*hostv1.Sandbox{},
		envs: map[string]map[string]string{}, creates: map[string]*hostv1.CreateSandboxRequest{},
		snapshots: map[string]*hostv1.Snapshot{}, templates: builtTemplates(), socket: filepath.Join(t.TempDir(), "a.sock"),
	}
	a.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", a.socket)
	}}
	a.Client = hostv1connect.NewHostServiceClient(&http.Client{Transport: a.Transport}, Base)
	a.Listen(t)
	t.Cleanup(func() { a.Unlisten(); a.Guest.killAll() })
	return a
}

// Listen serves on the socket, again after Unlisten.
func (a *Agent) Listen(t testing.TB) {
	t.Helper()
	l, err := net.Listen("unix", a.socket)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle(hostv1connect.NewHostServiceHandler(a))
	mux.HandleFunc("/sandboxes/{id}/guest/", func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		sb := a.sandboxes[r.PathValue("id")]
		running := sb != nil && sb.State == hostv1.SandboxState_SANDBOX_STATE_RUNNING
		a.mu.Unlock()
		if !running {
			http.Error(w, `{"code":"failed_precondition","message":"sandbox does not run"}`, http.StatusConflict)
			return
		}
		http.StripPrefix("/sandboxes/"+r.PathValue("id")+"/guest", a.Guest).ServeHTTP(w, r)
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	a.mu.Lock()
	a.server = srv
	a.mu.Unlock()
	go func() { _ = srv.Serve(l) }()
}

// Unlisten takes the agent away: calls are refused, running ones cut.
func (a *Agent) Unlisten() {
	a.mu.Lock()
	srv := a.server
	a.mu.Unlock()
	_ = srv.Close()
	a.Transport.CloseIdleConnections()
}

// Before sets the hook that runs before an effect; nil for none.
func (a *Agent) Before(h Hook) { a.mu.Lock(); defer a.mu.Unlock(); a.before = h }

// After sets the hook that runs after an effect; nil for none.
func (a *Agent) After(h Hook) { a.mu.Lock(); defer a.mu.Unlock(); a.after = h }

// Calls counts a method's calls, Effects those that changed something.
func (a *Agent) Calls(method string) int { a.mu.Lock(); defer a.mu.Unlock(); return a.calls[method] }
func (a *Agent) Effects(method string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.effects[method]
}

// Sandbox is a copy of what the agent has, nil for nothing.
func (a *Agent) Sandbox(id string) *hostv1.Sandbox {
	a.mu.Lock()
	defer a.mu.Unlock()
	if sb := a.sandboxes[id]; sb != nil {
		return proto.Clone(sb).(*hostv1.Sandbox)
	}
	return nil
}

// Envs of a sandbox's create.
func (a *Agent) Envs(id string) map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.envs[id]
}

// Request is what a sandbox was created with.
func (a *Agent) Request(id string) *hostv1.CreateSandboxRequest {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.creates[id]
}

// Change lets the agent change a sandbox by itself: the generation rises.
func (a *Agent) Change(id string, f func(*hostv1.Sandbox)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f(a.sandboxes[id])
	a.sandboxes[id].Generation++
}

// Put gives the agent a sandbox; Forget takes it away without a trace.
func (a *Agent) Put(sb *hostv1.Sandbox) { a.mu.Lock(); defer a.mu.Unlock(); a.sandboxes[sb.Id] = sb }
func (a *Agent) Forget(id string)       { a.mu.Lock(); defer a.mu.Unlock(); delete(a.sandboxes, id) }

// hook runs one of the hooks, unlocked.
func (a *Agent) hook(ctx context.Context, after bool, method, id string) error {
	a.mu.Lock()
	h := a.before
	if after {
		h = a.after
	} else {
		a.calls[method]++
	}
	a.mu.Unlock()
	if h == nil {
		return nil
	}
	return h(ctx, method, id)
}

// mutate is the contract of every change: a repeated id is answered as before, an older
// generation refused.
func (a *Agent) mutate(ctx context.Context, method, id string, op *hostv1.Operation, f func(*hostv1.Sandbox) error) (*hostv1.Sandbox, error) {
	if err := a.hook(ctx, false, method, id); err != nil {
		return nil, err
	}
	out, err := a.effect(method, id, op, f)
	if err != nil {
		return nil, err
	}
	return out, a.hook(ctx, true, method, id)
}

func (a *Agent) effect(method, id string, op *hostv1.Operation, f func(*hostv1.Sandbox) error) (*hostv1.Sandbox, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if done := a.journal[op.GetOperationId()]; done != nil {
		return done, nil
	}
	sb := a.sandboxes[id]
	if sb == nil {
		return nil, connect.NewError(connect.CodeNotFound, errText("no such sandbox"))
	}
	if op.GetGeneration() < sb.Generation {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errText("older generation"))
	}
	if err := f(sb); err != nil {
		return nil, err
	}
	sb.Generation++
	a.effects[method]++
	out := proto.Clone(sb).(*hostv1.Sandbox)
	a.journal[op.GetOperationId()] = out
	return out, nil
}

type errText string

func (e errText) Error() string { return string(e) }

func move(from, to hostv1.SandboxState) func(*hostv1.Sandbox) error {
	return func(sb *hostv1.Sandbox) error {
		if sb.State != from {
			return connect.NewError(connect.CodeFailedPrecondition, errText("wrong state "+sb.State.String()))
		}
		sb.State, sb.Reason = to, ""
		return nil
	}
}

// GetHost describes a machine of 2 cores and 4 GiB.
func (a *Agent) GetHost(ctx context.Context, _ *connect.Request[hostv1.GetHostRequest]) (*connect.Response[hostv1.GetHostResponse], error) {
	if err := a.hook(ctx, false, "GetHost", ""); err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.GetHostResponse{Hostname: "box", Version: "test", CpuCores: 2,
		MemoryBytes: 4 << 30, DiskBytes: 100 << 30, DiskFreeBytes: 50 << 30, Runtime: "microvm", Isolation: "emulated",
		Runtimes: []*hostv1.Runtime{
			{Name: "microvm", Isolation: "emulated", Available: true, Reason: "no KVM"},
			{Name: "gvisor", Isolation: "sentry", Reason: "runsc is not there", Hint: "make runsc"},
		},
		Checks: []*hostv1.Check{{Name: "kvm", Status: "warn", Detail: "no /dev/kvm", Hint: "enable it"}}}), nil
}

// CreateSandbox shows one step and then the sandbox.
func (a *Agent) CreateSandbox(ctx context.Context, r *connect.Request[hostv1.CreateSandboxRequest], s *connect.ServerStream[hostv1.CreateSandboxResponse]) error {
	m := r.Msg
	if err := s.Send(&hostv1.CreateSandboxResponse{Event: &hostv1.CreateSandboxResponse_Progress{
		Progress: &hostv1.Progress{Step: "boot", Detail: "first start of this size"}}}); err != nil {
		return err
	}
	if err := a.hook(ctx, false, "CreateSandbox", m.SandboxId); err != nil {
		return err
	}
	sb, err := a.create(m)
	if err != nil {
		return err
	}
	if err := a.hook(ctx, true, "CreateSandbox", m.SandboxId); err != nil {
		return err
	}
	return s.Send(&hostv1.CreateSandboxResponse{Event: &hostv1.CreateSandboxResponse_Sandbox{Sandbox: sb}})
}

func (a *Agent) create(m *hostv1.CreateSandboxRequest) (*hostv1.Sandbox, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if done := a.journal[m.GetOperation().GetOperationId()]; done != nil {
		return done, nil
	}
	if m.SnapshotId != "" {
		switch snap := a.snapshots[m.SnapshotId]; {
		case snap == nil:
			return nil, notFound("no such snapshot")
		case m.Resources.DiskSizeMb > snap.Resources.DiskSizeMb:
			return nil, connect.NewError(connect.CodeInvalidArgument, errText("this runtime cannot grow a disk"))
		}
	}
	a.creates[m.SandboxId] = m
	sb := &hostv1.Sandbox{Id: m.SandboxId, State: hostv1.SandboxState_SANDBOX_STATE_RUNNING, Generation: 1,
		Template: m.Template, Resources: m.Resources, Isolation: "emulated", Runtime: "microvm",
		ActiveAt: timestamppb.Now(), IdleTimeout: m.IdleTimeout, DiskBytes: 4096, MemoryBytes: 8192,
		Phases: []*hostv1.Phase{{Name: "restore", Duration: durationpb.New(1500 * time.Microsecond)}}}
	a.sandboxes[m.SandboxId], a.envs[m.SandboxId] = sb, m.Envs
	a.effects["CreateSandbox"]++
	out := proto.Clone(sb).(*hostv1.Sandbox)
	a.journal[m.GetOperation().GetOperationId()] = out
	return out, nil
}

// PauseSandbox moves running to paused.
func (a *Agent) PauseSandbox(ctx context.Context, r *connect.Request[hostv1.PauseSandboxRequest]) (*connect.Response[hostv1.PauseSandboxResponse], error) {
	sb, err := a.mutate(ctx, "PauseSandbox", r.Msg.SandboxId, r.Msg.Operation, func(sb *hostv1.Sandbox) error {
		if err := move(hostv1.SandboxState_SANDBOX_STATE_RUNNING, hostv1.SandboxState_SANDBOX_STATE_PAUSED)(sb); err != nil {
			return err
		}
		if r.Msg.DiskOnly {
			sb.Reason = "paused without memory"
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.PauseSandboxResponse{Sandbox: sb}), nil
}

// ResumeSandbox moves paused to running; cold also failed and lost.
func (a *Agent) ResumeSandbox(ctx context.Context, r *connect.Request[hostv1.ResumeSandboxRequest]) (*connect.Response[hostv1.ResumeSandboxResponse], error) {
	sb, err := a.mutate(ctx, "ResumeSandbox", r.Msg.SandboxId, r.Msg.Operation, func(sb *hostv1.Sandbox) error {
		if !r.Msg.Cold {
			return move(hostv1.SandboxState_SANDBOX_STATE_PAUSED, hostv1.SandboxState_SANDBOX_STATE_RUNNING)(sb)
		}
		sb.State, sb.Reason = hostv1.SandboxState_SANDBOX_STATE_RUNNING, "booted from its disk"
		return nil
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.ResumeSandboxResponse{Sandbox: sb}), nil
}

// SetTimeout stores the timeout.
func (a *Agent) SetTimeout(ctx context.Context, r *connect.Request[hostv1.SetTimeoutRequest]) (*connect.Response[hostv1.SetTimeoutResponse], error) {
	sb, err := a.mutate(ctx, "SetTimeout", r.Msg.SandboxId, r.Msg.Operation, func(sb *hostv1.Sandbox) error {
		sb.IdleTimeout = r.Msg.IdleTimeout
		return nil
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.SetTimeoutResponse{Sandbox: sb}), nil
}

// DestroySandbox forgets the sandbox; an unknown id succeeds.
func (a *Agent) DestroySandbox(ctx context.Context, r *connect.Request[hostv1.DestroySandboxRequest]) (*connect.Response[hostv1.DestroySandboxResponse], error) {
	id := r.Msg.SandboxId
	if err := a.hook(ctx, false, "DestroySandbox", id); err != nil {
		return nil, err
	}
	a.mu.Lock()
	sb := a.sandboxes[id]
	stale := sb != nil && r.Msg.Operation.GetGeneration() < sb.Generation
	if sb != nil && !stale {
		delete(a.sandboxes, id)
		a.effects["DestroySandbox"]++
	}
	a.mu.Unlock()
	if stale {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errText("older generation"))
	}
	return connect.NewResponse(&hostv1.DestroySandboxResponse{}), a.hook(ctx, true, "DestroySandbox", id)
}

// GetSandbox reports one.
func (a *Agent) GetSandbox(ctx context.Context, r *connect.Request[hostv1.GetSandboxRequest]) (*connect.Response[hostv1.GetSandboxResponse], error) {
	if err := a.hook(ctx, false, "GetSandbox", r.Msg.SandboxId); err != nil {
		return nil, err
	}
	sb := a.Sandbox(r.Msg.SandboxId)
	if sb == nil {
		return nil, connect.NewError(connect.CodeNotFound, errText("no such sandbox"))
	}
	return connect.NewResponse(&hostv1.GetSandboxResponse{Sandbox: sb}), nil
}

// ListSandboxes reports all.
func (a *Agent) ListSandboxes(ctx context.Context, _ *connect.Request[hostv1.ListSandboxesRequest]) (*connect.Response[hostv1.ListSandboxesResponse], error) {
	if err := a.hook(ctx, false, "ListSandboxes", ""); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	out := &hostv1.ListSandboxesResponse{}
	for _, sb := range a.sandboxes {
		out.Sandboxes = append(out.Sandboxes, proto.Clone(sb).(*hostv1.Sandbox))
	}
	return connect.NewResponse(out), nil
}

// GetConsole has one line.
func (a *Agent) GetConsole(ctx context.Context, r *connect.Request[hostv1.GetConsoleRequest]) (*connect.Response[hostv1.GetConsoleResponse], error) {
	if err := a.hook(ctx, false, "GetConsole", r.Msg.SandboxId); err != nil {
		return nil, err
	}
	text := []byte("Linux version 6.1\n")
	if n := int(r.Msg.TailBytes); n > 0 && n < len(text) {
		text = text[len(text)-n:]
	}
	return connect.NewResponse(&hostv1.GetConsoleResponse{Data: text}), nil
}
