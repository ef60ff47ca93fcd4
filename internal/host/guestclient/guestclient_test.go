package guestclient

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	guestv1 "github.com/roosthq/roost/api/gen/roost/guest/v1"
	"github.com/roosthq/roost/api/gen/roost/guest/v1/guestv1connect"
	"github.com/roosthq/roost/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// guest is a roost-guest whose answers a test decides.
type guest struct {
	guestv1connect.UnimplementedControlHandler
	token   atomic.Pointer[string]
	restore func(*guestv1.RestoreRequest, *guestv1.RestoreResponse) error
	health  atomic.Int32
	dials   atomic.Int32
}

func (g *guest) authorize(h http.Header) error {
	if h.Get(ControlHeader) != *g.token.Load() {
		return fault.ToConnect(fault.New(fault.Unauthenticated, "", "", "wrong token"))
	}
	return nil
}

func (g *guest) Restore(_ context.Context, req *connect.Request[guestv1.RestoreRequest]) (*connect.Response[guestv1.RestoreResponse], error) {
	m := req.Msg
	if err := g.authorize(req.Header()); err != nil && m.GetControlToken() != *g.token.Load() {
		return nil, err // not a repetition either
	}
	out := &guestv1.RestoreResponse{
		ClockNs: time.Now().UnixNano(), RandomReseeded: true, TokenRenewed: true, Hostname: m.GetHostname(),
		MachineId: m.GetMachineId(), Generation: m.GetGeneration(), RootBytes: 5 << 30, BootId: "boot",
	}
	if g.restore != nil {
		if err := g.restore(m, out); err != nil {
			return nil, fault.ToConnect(err)
		}
	}
	token := m.GetControlToken()
	g.token.Store(&token)
	return connect.NewResponse(out), nil
}

func (g *guest) Thaw(_ context.Context, req *connect.Request[guestv1.ThawRequest]) (*connect.Response[guestv1.ThawResponse], error) {
	return connect.NewResponse(&guestv1.ThawResponse{}), g.authorize(req.Header())
}

func (g *guest) Freeze(_ context.Context, req *connect.Request[guestv1.FreezeRequest]) (*connect.Response[guestv1.FreezeResponse], error) {
	return nil, fault.ToConnect(fault.New(fault.DeadlineExceeded, "sync", "/", "the disk is slow").WithHint("wait"))
}

func (g *guest) Stats(_ context.Context, req *connect.Request[guestv1.StatsRequest]) (*connect.Response[guestv1.StatsResponse], error) {
	return connect.NewResponse(&guestv1.StatsResponse{IdleMs: 1500}), g.authorize(req.Header())
}

// serve makes a guest and a client that knows its token.
func serve(t *testing.T) (*guest, *Client) {
	t.Helper()
	g := &guest{}
	token := "first"
	g.token.Store(&token)
	g.health.Store(http.StatusNoContent)
	mux := http.NewServeMux()
	mux.Handle(guestv1connect.NewControlHandler(g))
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(g.health.Load())) })
	mux.HandleFunc("/hang", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	c := New(func(ctx context.Context, port int) (net.Conn, error) {
		require.Equal(t, Port, port)
		g.dials.Add(1)
		var d net.Dialer
		return d.DialContext(ctx, "tcp", s.Listener.Addr().String())
	}, token)
	t.Cleanup(c.Close)
	return g, c
}

func identity() Identity {
	return Identity{SandboxID: "x", Generation: 4, Hostname: "host", MachineID: "m", AccessToken: "a", ControlToken: "second", Grow: true}
}

func TestHandshake(t *testing.T) {
	t.Parallel()
	g, c := serve(t)
	g.restore = func(req *guestv1.RestoreRequest, _ *guestv1.RestoreResponse) error {
		require.Len(t, req.GetEntropy(), entropyBytes)
		require.NotEqual(t, make([]byte, entropyBytes), req.GetEntropy())
		require.InDelta(t, time.Now().UnixNano(), req.GetWallClockNs(), 5e9)
		require.True(t, req.GetGrow())
		return nil
	}
	facts, err := c.Handshake(t.Context(), identity())
	require.NoError(t, err)
	require.Zero(t, facts.ClockSkew)
	require.EqualValues(t, 5<<30, facts.RootBytes)
	require.NoError(t, c.Thaw(t.Context(), 4), "the new token is in use")
	quiet, err := c.IdleFor(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1500*time.Millisecond, quiet)
}

// A guest that was told the time too slowly is told it again, until its clock can be believed.
func TestHandshakeThatIsSlow(t *testing.T) {
	t.Parallel()
	g, c := serve(t)
	var told []int64
	g.restore = func(req *guestv1.RestoreRequest, out *guestv1.RestoreResponse) error {
		told = append(told, req.GetWallClockNs())
		out.ClockNs = req.GetWallClockNs() // set to what it was told, on arrival
		if len(told) < 3 {
			time.Sleep(MaxClockSkew + 50*time.Millisecond)
		}
		return nil
	}
	_, err := c.Handshake(t.Context(), identity())
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(told), 3)
	require.Greater(t, told[2], told[1])
	require.Greater(t, told[1], told[0])
	ctx, cancel := context.WithTimeout(t.Context(), 2*MaxClockSkew)
	defer cancel()
	g.restore = func(req *guestv1.RestoreRequest, out *guestv1.RestoreResponse) error {
		out.ClockNs = req.GetWallClockNs()
		time.Sleep(MaxClockSkew + 50*time.Millisecond)
		return nil
	}
	_, err = c.Handshake(ctx, identity())
	require.Equal(t, fault.DeadlineExceeded, fault.KindOf(err), "it is never served with a wrong clock")
}

// A guest is believed nothing that it does not state, and its errors keep kind and hint.
func TestHandshakeRefusals(t *testing.T) {
	t.Parallel()
	g, c := serve(t)
	g.restore = func(*guestv1.RestoreRequest, *guestv1.RestoreResponse) error {
		return fault.New(fault.FailedPrecondition, "restore", "x", "a later generation runs").WithHint("read it")
	}
	_, err := c.Handshake(t.Context(), identity())
	require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
	require.Equal(t, "read it", fault.HintOf(err))
	require.EqualError(t, err, "hand identity to guest: restore x: a later generation runs")
	g.restore = func(_ *guestv1.RestoreRequest, out *guestv1.RestoreResponse) error {
		out.RandomReseeded = false
		return nil
	}
	_, err = c.Handshake(t.Context(), identity())
	require.ErrorContains(t, err, "random source reseeded is false, not true")
	err = c.Freeze(t.Context(), time.Second)
	require.Equal(t, fault.DeadlineExceeded, fault.KindOf(err))
	require.Equal(t, "wait", fault.HintOf(err))
	require.Equal(t, fault.Unauthenticated, fault.KindOf(c.Thaw(t.Context(), 4)), "the refused handshake's token is not used")
}

func TestCheckFacts(t *testing.T) {
	t.Parallel()
	sent := time.Now()
	received := sent.Add(100 * time.Millisecond)
	id := identity()
	for name, c := range map[string]struct {
		change func(*guestv1.RestoreResponse)
		say    string
		skew   time.Duration
	}{
		"true":              {func(*guestv1.RestoreResponse) {}, "", 0},
		"at the first":      {func(r *guestv1.RestoreResponse) { r.ClockNs = sent.UnixNano() }, "", 0},
		"at the last":       {func(r *guestv1.RestoreResponse) { r.ClockNs = received.UnixNano() }, "", 0},
		"a little slow":     {func(r *guestv1.RestoreResponse) { r.ClockNs = sent.Add(-MaxClockSkew).UnixNano() }, "", -MaxClockSkew},
		"a little fast":     {func(r *guestv1.RestoreResponse) { r.ClockNs = received.Add(MaxClockSkew).UnixNano() }, "", MaxClockSkew},
		"slow":              {func(r *guestv1.RestoreResponse) { r.ClockNs = sent.Add(-time.Hour).UnixNano() }, "clock skew is -1h0m0s", -time.Hour},
		"fast":              {func(r *guestv1.RestoreResponse) { r.ClockNs = received.Add(time.Hour).UnixNano() }, "clock skew is 1h0m0s", time.Hour},
		"no clock":          {func(r *guestv1.RestoreResponse) { r.ClockNs = 0 }, "clock skew", time.Unix(0, 0).Sub(sent)},
		"not reseeded":      {func(r *guestv1.RestoreResponse) { r.RandomReseeded = false }, "random source", 0},
		"token not renewed": {func(r *guestv1.RestoreResponse) { r.TokenRenewed = false }, "token renewed", 0},
		"hostname":          {func(r *guestv1.RestoreResponse) { r.Hostname = "other" }, "hostname is other, not host", 0},
		"machine id":        {func(r *guestv1.RestoreResponse) { r.MachineId = "" }, "machine id is , not m", 0},
		"generation":        {func(r *guestv1.RestoreResponse) { r.Generation = 3 }, "generation is 3, not 4", 0},
	} {
		got := &guestv1.RestoreResponse{
			ClockNs: sent.Add(50 * time.Millisecond).UnixNano(), RandomReseeded: true, TokenRenewed: true,
			Hostname: id.Hostname, MachineId: id.MachineID, Generation: id.Generation,
		}
		c.change(got)
		facts, err := checkFacts(id, got, sent, received)
		if c.say == "" {
			require.NoError(t, err, name)
		} else {
			require.ErrorContains(t, err, c.say, name)
			require.Equal(t, fault.Internal, fault.KindOf(err), name)
		}
		require.InDelta(t, c.skew, facts.ClockSkew, 1e6, name)
	}
}

func TestWaitReady(t *testing.T) {
	t.Parallel()
	g, c := serve(t)
	require.NoError(t, c.WaitReady(t.Context()))
	g.health.Store(http.StatusServiceUnavailable)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	err := c.WaitReady(ctx)
	require.Equal(t, fault.DeadlineExceeded, fault.KindOf(err))
	require.Contains(t, fault.HintOf(err), "roost logs")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	require.Equal(t, fault.Canceled, fault.KindOf(c.WaitReady(cancelled)), "who gave up is not told of a slow guest")
	go func() {
		time.Sleep(20 * time.Millisecond)
		g.health.Store(http.StatusNoContent)
	}()
	require.NoError(t, c.WaitReady(t.Context()))
}

// Close ends what waits for a guest that will never answer.
func TestClose(t *testing.T) {
	t.Parallel()
	g, c := serve(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, baseURL+"/hang", nil)
	require.NoError(t, err)
	resp, err := c.Transport().RoundTrip(req) //nolint:bodyclose // the answer never ends; closing the client ends it
	require.NoError(t, err)
	defer resp.Body.Close()
	c.CloseIdle() // does not touch it
	read := make(chan error)
	go func() {
		_, err := io.ReadAll(resp.Body)
		read <- err
	}()
	c.Close()
	c.Close()
	require.Error(t, <-read)
	c.conns.mu.Lock()
	require.Empty(t, c.conns.open)
	c.conns.mu.Unlock()
	before := g.dials.Load()
	err = c.Thaw(t.Context(), 1)
	require.ErrorContains(t, err, "does not run any more")
	require.Equal(t, before+1, g.dials.Load(), "a dial that was under way is closed, too")
}

// Close ends a dial that a guest which is gone never answers.
func TestCloseEndsDials(t *testing.T) {
	t.Parallel()
	dialling := make(chan struct{})
	c := New(func(ctx context.Context, _ int) (net.Conn, error) {
		close(dialling)
		<-ctx.Done()
		return nil, ctx.Err()
	}, "token")
	failed := make(chan error)
	go func() { failed <- c.Thaw(context.WithoutCancel(t.Context()), 1) }()
	<-dialling
	c.Close()
	err := <-failed
	require.Equal(t, fault.Unavailable, fault.KindOf(err))
	require.ErrorContains(t, err, "does not run any more")
}
