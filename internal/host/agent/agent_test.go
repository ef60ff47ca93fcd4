package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roosthq/roost/api/gen/process"
	"github.com/roosthq/roost/api/gen/process/processconnect"
	guestv1 "github.com/roosthq/roost/api/gen/roost/guest/v1"
	"github.com/roosthq/roost/api/gen/roost/guest/v1/guestv1connect"
	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/api/gen/roost/host/v1/hostv1connect"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/doctor"
	"github.com/roosthq/roost/internal/host/guestclient"
	"github.com/roosthq/roost/internal/host/sandbox"
	"github.com/roosthq/roost/internal/host/sandbox/sandboxtest"
	"github.com/roosthq/roost/internal/lifecycle"
)

// agent is a served agent over a host under test, and a client of it.
type agent struct {
	*sandboxtest.Host
	t         *testing.T
	sandboxes *sandbox.Manager
	server    *Server
	http      *http.Client
	rpc       hostv1connect.HostServiceClient
}

const base = "http://agent"

func serve(t *testing.T) *agent {
	t.Helper()
	a := &agent{Host: sandboxtest.New(t), t: t}
	a.sandboxes = sandbox.New(sandbox.Config{
		Data: a.Data, Runtimes: a.All(), Network: a.Network, Images: a.Images, UIDs: a.UIDs,
		GuestPath: os.Args[0], GuestDigest: "guest", Logger: a.Log,
		SpaceOf: func(string) (sandbox.Space, error) { return sandbox.Space{Total: 1 << 30, Free: 1 << 30}, nil },
	})
	a.server = NewServer(Config{
		Socket: a.Data.AgentSocket(), Sandboxes: a.sandboxes, Images: a.Images, Logger: a.Log,
		Host: HostInfo{Version: "v", Data: string(a.Data), Runtimes: []Runtime{
			{Name: "best", Isolation: "hardware", Reason: "no", Hint: "yes"},
			{Name: "fake", Isolation: "emulated", Available: true, Reason: "it is here"},
		}, Checks: []doctor.Check{
			func(context.Context) doctor.Finding {
				return doctor.Finding{Name: "n", Status: doctor.Warn, Detail: "d", Hint: "h"}
			},
		}},
	})
	require.NoError(t, lifecycle.StartAll(t.Context(), a.sandboxes, a.server))
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", a.Data.AgentSocket())
	}}
	a.http = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	a.rpc = hostv1connect.NewHostServiceClient(a.http, base)
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		lifecycle.StopAll(a.sandboxes, a.server)
	})
	return a
}

func id(letter string) string { return strings.Repeat(letter, 20) }

func (a *agent) create(name string, change func(*hostv1.CreateSandboxRequest)) (*hostv1.Sandbox, []string, error) {
	a.t.Helper()
	req := &hostv1.CreateSandboxRequest{Operation: &hostv1.Operation{OperationId: "create " + name}, SandboxId: name, Template: sandboxtest.Template}
	if change != nil {
		change(req)
	}
	stream, err := a.rpc.CreateSandbox(a.t.Context(), connect.NewRequest(req))
	require.NoError(a.t, err)
	defer stream.Close()
	var steps []string
	var out *hostv1.Sandbox
	for stream.Receive() {
		if p := stream.Msg().GetProgress(); p != nil {
			steps = append(steps, p.GetStep())
		}
		if s := stream.Msg().GetSandbox(); s != nil {
			out = s
		}
	}
	return out, steps, fault.FromConnect(stream.Err())
}

func (a *agent) made(name string) *hostv1.Sandbox {
	a.t.Helper()
	s, _, err := a.create(name, nil)
	require.NoError(a.t, err)
	return s
}

func (a *agent) pause(name string) (*hostv1.PauseSandboxResponse, error) {
	resp, err := a.rpc.PauseSandbox(a.t.Context(), connect.NewRequest(&hostv1.PauseSandboxRequest{SandboxId: name}))
	if err != nil {
		return nil, fault.FromConnect(err)
	}
	return resp.Msg, nil
}

// send makes a plain request to a sandbox's guest.
func (a *agent) send(method, name, path string, header http.Header) (status int, got http.Header, body string) {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), method, base+"/sandboxes/"+name+"/guest"+path, nil)
	require.NoError(a.t, err)
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := a.http.Do(req)
	require.NoError(a.t, err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	require.NoError(a.t, err)
	return resp.StatusCode, resp.Header, string(raw)
}

func TestLifeOverRPC(t *testing.T) {
	t.Parallel()
	a := serve(t)
	s, steps, err := a.create(id("a"), func(r *hostv1.CreateSandboxRequest) { r.Envs = map[string]string{"A": "b"} })
	require.NoError(t, err)
	require.Equal(t, []string{"warm"}, steps)
	require.Equal(t, hostv1.SandboxState_SANDBOX_STATE_RUNNING, s.GetState())
	require.EqualValues(t, 1, s.GetGeneration())
	require.Equal(t, "emulated", s.GetIsolation())
	require.Equal(t, map[string]string{"A": "b"}, s.GetEnvs())
	require.Equal(t, sandbox.DefaultIdleTimeout, s.GetIdleTimeout().AsDuration(), "none given is the default")
	require.NotEmpty(t, s.GetPhases())
	paused, err := a.pause(id("a"))
	require.NoError(t, err)
	require.Equal(t, hostv1.SandboxState_SANDBOX_STATE_PAUSED, paused.GetSandbox().GetState())
	require.Positive(t, paused.GetBytesWritten())
	resumed, err := a.rpc.ResumeSandbox(t.Context(), connect.NewRequest(&hostv1.ResumeSandboxRequest{SandboxId: id("a"), IdleTimeout: durationpb.New(0)}))
	require.NoError(t, err)
	require.Zero(t, resumed.Msg.GetSandbox().GetIdleTimeout().AsDuration(), "0 is never")
	list, err := a.rpc.ListSandboxes(t.Context(), connect.NewRequest(&hostv1.ListSandboxesRequest{}))
	require.NoError(t, err)
	require.Len(t, list.Msg.GetSandboxes(), 1)
	console, err := a.rpc.GetConsole(t.Context(), connect.NewRequest(&hostv1.GetConsoleRequest{SandboxId: id("a"), TailBytes: 4}))
	require.NoError(t, err)
	require.Equal(t, "sole", string(console.Msg.GetData()))
	templates, err := a.rpc.ListTemplates(t.Context(), connect.NewRequest(&hostv1.ListTemplatesRequest{}))
	require.NoError(t, err)
	require.Len(t, templates.Msg.GetTemplates(), 1)
	require.Len(t, templates.Msg.GetTemplates()[0].GetWarm(), 1)
	for range 2 {
		_, err = a.rpc.DestroySandbox(t.Context(), connect.NewRequest(&hostv1.DestroySandboxRequest{SandboxId: id("a")}))
		require.NoError(t, err, "an unknown id is destroyed already")
	}
	_, err = a.rpc.GetSandbox(t.Context(), connect.NewRequest(&hostv1.GetSandboxRequest{SandboxId: id("a")}))
	require.Equal(t, connect.CodeNotFound, connect.CodeOf(err))
}

// TestWhatIsSavedOverRPC: pauses of the disk alone, cold resumes, snapshots, forks and leaks.
func TestWhatIsSavedOverRPC(t *testing.T) {
	t.Parallel()
	a := serve(t)
	ctx := t.Context()
	name := a.made(id("a")).GetId()
	snap, err := a.rpc.CreateSnapshot(ctx, connect.NewRequest(&hostv1.CreateSnapshotRequest{SandboxId: name, SnapshotId: id("s")}))
	require.NoError(t, err)
	require.Equal(t, name, snap.Msg.GetSnapshot().GetSandboxId())
	require.Equal(t, hostv1.SandboxState_SANDBOX_STATE_RUNNING, snap.Msg.GetSandbox().GetState())
	forks, err := a.rpc.ForkSandbox(ctx, connect.NewRequest(&hostv1.ForkSandboxRequest{
		SandboxId: name, Forks: []*hostv1.Fork{{SandboxId: id("f"), OperationId: "f"}},
	}))
	require.NoError(t, err)
	require.Len(t, forks.Msg.GetSandboxes(), 1)
	_, err = a.rpc.DestroySandbox(ctx, connect.NewRequest(&hostv1.DestroySandboxRequest{SandboxId: id("f")}))
	require.NoError(t, err)
	paused, err := a.rpc.PauseSandbox(ctx, connect.NewRequest(&hostv1.PauseSandboxRequest{SandboxId: name, DiskOnly: true}))
	require.NoError(t, err)
	require.Equal(t, hostv1.SandboxState_SANDBOX_STATE_PAUSED, paused.Msg.GetSandbox().GetState())
	resumed, err := a.rpc.ResumeSandbox(ctx, connect.NewRequest(&hostv1.ResumeSandboxRequest{SandboxId: name}))
	require.NoError(t, err)
	require.Contains(t, resumed.Msg.GetSandbox().GetReason(), "booted from its disk")
	a.Runtime.Kill(a.uid(resumed.Msg.GetSandbox()), "out of memory")
	_, err = a.rpc.ResumeSandbox(ctx, connect.NewRequest(&hostv1.ResumeSandboxRequest{SandboxId: name}))
	for err == nil { // its death is not noticed yet
		_, err = a.rpc.ResumeSandbox(ctx, connect.NewRequest(&hostv1.ResumeSandboxRequest{SandboxId: name}))
	}
	require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err))
	require.Contains(t, fault.HintOf(fault.FromConnect(err)), "roost resume --cold "+name)
	cold, err := a.rpc.ResumeSandbox(ctx, connect.NewRequest(&hostv1.ResumeSandboxRequest{SandboxId: name, Cold: true}))
	require.NoError(t, err)
	require.Contains(t, cold.Msg.GetSandbox().GetReason(), "booted from its disk")

	stage := a.Data.SnapshotStage(id("x"))
	require.NoError(t, os.Mkdir(stage, 0o700))
	for _, fix := range []bool{false, true} {
		leaks, err := a.rpc.ListLeaks(ctx, connect.NewRequest(&hostv1.ListLeaksRequest{Fix: fix}))
		require.NoError(t, err)
		require.Len(t, leaks.Msg.GetLeaks(), 1)
		require.Equal(t, "stage", leaks.Msg.GetLeaks()[0].GetKind())
		require.Equal(t, fix, leaks.Msg.GetLeaks()[0].GetRemoved())
	}
	require.NoDirExists(t, stage)
	_, err = a.rpc.DeleteSnapshot(ctx, connect.NewRequest(&hostv1.DeleteSnapshotRequest{SnapshotId: id("s")}))
	require.NoError(t, err)
	_, err = a.rpc.GetSnapshot(ctx, connect.NewRequest(&hostv1.GetSnapshotRequest{SnapshotId: id("s")}))
	require.Equal(t, connect.CodeNotFound, connect.CodeOf(err))
}

func TestErrorsKeepKindAndHint(t *testing.T) {
	t.Parallel()
	a := serve(t)
	_, _, err := a.create("../x", nil)
	require.Equal(t, fault.Invalid, fault.KindOf(err))
	_, _, err = a.create(id("a"), func(r *hostv1.CreateSandboxRequest) { r.Template = "nope" })
	require.Equal(t, fault.NotFound, fault.KindOf(err))
	require.Contains(t, fault.HintOf(err), "roost template ls")
	a.made(id("a"))
	_, _, err = a.create(id("a"), func(r *hostv1.CreateSandboxRequest) { r.Operation.OperationId = "other" })
	require.Equal(t, fault.AlreadyExists, fault.KindOf(err))
	a.Runtime.Fail("capture", 1, &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC})
	_, err = a.pause(id("a"))
	require.Equal(t, fault.ResourceExhausted, fault.KindOf(err))
	require.Contains(t, fault.HintOf(err), "still runs")
	_, err = a.rpc.SetTimeout(t.Context(), connect.NewRequest(&hostv1.SetTimeoutRequest{SandboxId: id("a")}))
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "none given is not 0")
	_, err = a.rpc.SetTimeout(t.Context(), connect.NewRequest(&hostv1.SetTimeoutRequest{SandboxId: id("a"), IdleTimeout: durationpb.New(-1)}))
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))
	set, err := a.rpc.SetTimeout(t.Context(), connect.NewRequest(&hostv1.SetTimeoutRequest{SandboxId: id("a"), IdleTimeout: durationpb.New(time.Hour)}))
	require.NoError(t, err)
	require.Equal(t, time.Hour, set.Msg.GetSandbox().GetIdleTimeout().AsDuration())
	_, err = a.rpc.SetTimeout(t.Context(), connect.NewRequest(&hostv1.SetTimeoutRequest{
		SandboxId: id("a"), IdleTimeout: durationpb.New(0), Operation: &hostv1.Operation{OperationId: "x", Generation: 1}}))
	require.NoError(t, err)
}

func TestGetHost(t *testing.T) {
	t.Parallel()
	a := serve(t)
	resp, err := a.rpc.GetHost(t.Context(), connect.NewRequest(&hostv1.GetHostRequest{}))
	require.NoError(t, err)
	require.Positive(t, resp.Msg.GetCpuCores())
	require.Positive(t, resp.Msg.GetMemoryBytes())
	require.Positive(t, resp.Msg.GetDiskBytes())
	require.Equal(t, "fake", resp.Msg.GetRuntime(), "the best of those that work")
	require.Equal(t, "emulated", resp.Msg.GetIsolation())
	runtimes := resp.Msg.GetRuntimes()
	require.Len(t, runtimes, 2)
	require.False(t, runtimes[0].GetAvailable())
	require.Equal(t, []string{"best", "hardware", "no", "yes"},
		[]string{runtimes[0].GetName(), runtimes[0].GetIsolation(), runtimes[0].GetReason(), runtimes[0].GetHint()})
	require.True(t, runtimes[1].GetAvailable())
	require.Len(t, resp.Msg.GetChecks(), 2)
	require.Equal(t, "ok", resp.Msg.GetDisk().GetState())
	require.EqualValues(t, 1<<30, resp.Msg.GetDisk().GetFreeBytes())
	require.EqualValues(t, 95, resp.Msg.GetDisk().GetFullPercent())
	require.Equal(t, "warn", resp.Msg.GetChecks()[0].GetStatus())
}

func TestEveryStateHasItsNumber(t *testing.T) {
	t.Parallel()
	require.Len(t, states, len(hostv1.SandboxState_name)-1)
	seen := map[hostv1.SandboxState]bool{}
	for state, number := range states {
		require.NotZero(t, number, state)
		require.False(t, seen[number], state)
		seen[number] = true
	}
}

// The proxy puts the access token on, and lets nobody's control token through.
func TestProxyCredentials(t *testing.T) {
	t.Parallel()
	a := serve(t)
	s := a.made(id("a"))
	_, _, body := a.send(http.MethodGet, s.GetId(), "/whoami", http.Header{
		guestclient.AccessHeader: {"forged"}, guestclient.ControlHeader: {"forged"},
	})
	access, control, _ := strings.Cut(body, "|")
	require.Len(t, access, 64)
	require.Empty(t, control)
}

func TestProxyRefusals(t *testing.T) {
	t.Parallel()
	a := serve(t)
	a.made(id("a"))
	_, err := a.pause(id("a"))
	require.NoError(t, err)
	for name, c := range map[string]struct {
		sandbox, path string
		kind          fault.Kind
		status        int
	}{
		"paused":  {id("a"), "/notes", fault.FailedPrecondition, http.StatusConflict},
		"unknown": {id("b"), "/notes", fault.NotFound, http.StatusNotFound},
		"control": {id("a"), "/roost.guest.v1.Control/Freeze", fault.PermissionDenied, http.StatusForbidden},
		"dots":    {id("a"), "/%2e/roost.guest.v1.Control/Freeze", fault.PermissionDenied, http.StatusForbidden},
		"up":      {id("a"), "/x/%2e%2e/roost.guest.v1.Control/Freeze", fault.PermissionDenied, http.StatusForbidden},
	} {
		status, header, body := a.send(http.MethodGet, c.sandbox, c.path, nil)
		if name != "control" && !strings.Contains(c.path, "Control") { // an RPC's path is answered as one below
			require.Equal(t, c.status, status, name)
			require.Equal(t, c.kind.String(), header.Get("Roost-Code"), name)
			require.NotEmpty(t, header.Get("Roost-Hint"), name)
			var plain struct {
				Code    int    `json:"code"`
				Message string `json:"message"`
			}
			require.NoError(t, json.Unmarshal([]byte(body), &plain), name)
			require.Equal(t, c.status, plain.Code, name)
			require.NotEmpty(t, plain.Message, name)
		} else {
			require.Equal(t, c.status, status, name)
		}
	}
	// The same in Connect's form, for streams too.
	guest := base + "/sandboxes/" + id("a") + "/guest"
	_, err = processconnect.NewProcessClient(a.http, guest).List(t.Context(), connect.NewRequest(&process.ListRequest{}))
	require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err))
	require.Contains(t, fault.HintOf(fault.FromConnect(err)), "roost resume "+id("a"))
	stream, err := processconnect.NewProcessClient(a.http, guest).Start(t.Context(), connect.NewRequest(&process.StartRequest{}))
	if err == nil {
		require.False(t, stream.Receive())
		err = errors.Join(stream.Err(), stream.Close())
	}
	require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
	require.Contains(t, fault.HintOf(err), "roost resume "+id("a"))
	_, err = guestv1connect.NewControlClient(a.http, guest).Freeze(t.Context(), connect.NewRequest(&guestv1.FreezeRequest{}))
	require.Equal(t, connect.CodePermissionDenied, connect.CodeOf(err))
}

// A request that breaks says why, and does not keep its sandbox awake for ever.
func TestProxyOfABrokenRequest(t *testing.T) {
	t.Parallel()
	a := serve(t)
	s := a.made(id("a"))
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/sandboxes/"+s.GetId()+"/guest/hang", nil)
		require.NoError(t, err)
		resp, err := a.http.Do(req)
		require.NoError(t, err)
		cancel()
		_ = resp.Body.Close()
	}
	// Before the guest has answered at all: the client goes away.
	a.Runtime.Cut(a.uid(s), true)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/sandboxes/"+s.GetId()+"/guest/notes", nil)
	require.NoError(t, err)
	_, err = a.http.Do(req) //nolint:bodyclose // there is none
	require.Error(t, err)
	a.Runtime.Cut(a.uid(s), false)
	_, err = a.rpc.SetTimeout(t.Context(), connect.NewRequest(&hostv1.SetTimeoutRequest{SandboxId: s.GetId(), IdleTimeout: durationpb.New(10 * time.Millisecond)}))
	require.NoError(t, err)
	a.Runtime.Quiet(a.uid(s), time.Hour)
	require.Eventually(t, func() bool {
		got, err := a.rpc.GetSandbox(t.Context(), connect.NewRequest(&hostv1.GetSandboxRequest{SandboxId: s.GetId()}))
		return err == nil && got.Msg.GetSandbox().GetState() == hostv1.SandboxState_SANDBOX_STATE_PAUSED
	}, 10*time.Second, 20*time.Millisecond, "it is idle")
}

// A request whose sandbox is paused before the guest has answered is told so.
func TestProxyOfARequestThatAPauseCuts(t *testing.T) {
	t.Parallel()
	a := serve(t)
	s := a.made(id("a"))
	a.Runtime.Cut(a.uid(s), true)
	type answer struct {
		status int
		hint   string
	}
	got := make(chan answer)
	go func() {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/sandboxes/"+s.GetId()+"/guest/notes", nil)
		resp, err := a.http.Do(req)
		if err != nil {
			got <- answer{}
			return
		}
		_ = resp.Body.Close()
		got <- answer{resp.StatusCode, resp.Header.Get("Roost-Hint")}
	}()
	time.Sleep(50 * time.Millisecond) // the request is on its way
	_, err := a.rpc.DestroySandbox(t.Context(), connect.NewRequest(&hostv1.DestroySandboxRequest{SandboxId: s.GetId()}))
	require.NoError(t, err)
	select {
	case r := <-got:
		require.Contains(t, []int{http.StatusConflict, http.StatusNotFound}, r.status)
		require.NotEmpty(t, r.hint)
	case <-time.After(10 * time.Second):
		t.Fatal("the request hangs")
	}
}

func (a *agent) uid(s *hostv1.Sandbox) int {
	a.t.Helper()
	running := a.Runtime.Running()
	require.Len(a.t, running, 1, s.GetId())
	return running[0]
}

func TestServerTwiceAndAfterAKill(t *testing.T) {
	t.Parallel()
	a := serve(t)
	require.NoError(t, a.server.Start(t.Context()), "safe twice")
	st, err := os.Stat(a.Data.AgentSocket())
	require.NoError(t, err)
	require.EqualValues(t, 0o600, st.Mode().Perm())
	a.server.Stop()
	a.server.Stop()
	require.ErrorIs(t, a.server.Start(t.Context()), lifecycle.ErrStopped)
	require.NoFileExists(t, a.Data.AgentSocket())
	require.NoError(t, os.WriteFile(a.Data.AgentSocket(), nil, 0o600)) // what a killed agent leaves
	next := NewServer(Config{Socket: a.Data.AgentSocket(), Sandboxes: a.sandboxes, Images: a.Images, Logger: a.Log})
	require.NoError(t, next.Start(t.Context()))
	_, err = a.rpc.ListSandboxes(t.Context(), connect.NewRequest(&hostv1.ListSandboxesRequest{}))
	require.NoError(t, err)
	next.Stop()
	broken := NewServer(Config{Socket: "/nonexistent/agent.sock", Sandboxes: a.sandboxes, Images: a.Images, Logger: a.Log})
	require.Error(t, broken.Start(t.Context()))
	require.Error(t, broken.Start(t.Context()), "it does not say that it runs")
}

// So is an RPC, in its own protocol: what it is told is the reason, not that something broke.
func TestProxyOfAnRPCThatADeathCuts(t *testing.T) {
	t.Parallel()
	a := serve(t)
	s := a.made(id("a"))
	uid := a.uid(s)
	a.Runtime.Cut(uid, true)
	got := make(chan error)
	go func() {
		client := processconnect.NewProcessClient(a.http, base+"/sandboxes/"+s.GetId()+"/guest")
		_, err := client.List(t.Context(), connect.NewRequest(&process.ListRequest{}))
		got <- err
	}()
	time.Sleep(50 * time.Millisecond) // the request is on its way; later it is told the same
	a.Runtime.Kill(uid, "out of memory")
	select {
	case err := <-got:
		require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err), err)
		require.Contains(t, fault.HintOf(fault.FromConnect(err)), "roost info "+s.GetId())
	case <-time.After(10 * time.Second):
		t.Fatal("the request hangs")
	}
	now, err := a.rpc.GetSandbox(t.Context(), connect.NewRequest(&hostv1.GetSandboxRequest{SandboxId: s.GetId()}))
	require.NoError(t, err)
	require.Equal(t, hostv1.SandboxState_SANDBOX_STATE_FAILED, now.Msg.GetSandbox().GetState())
	require.Equal(t, "out of memory", now.Msg.GetSandbox().GetReason())
}
