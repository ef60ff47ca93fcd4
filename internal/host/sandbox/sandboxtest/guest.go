package sandboxtest

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	guestv1 "github.com/roosthq/roost/api/gen/roost/guest/v1"
	"github.com/roosthq/roost/api/gen/roost/guest/v1/guestv1connect"
	"github.com/roosthq/roost/internal/host/guestclient"
)

// Memory is what a guest knows: it is lost with a VM, kept in a capture.
type Memory struct {
	Control, Access string
	Generation      uint64
	Hostname        string
	MachineID       string
	// Frozen: user processes do not run.
	Frozen bool
	// Notes are what a test's user process remembers.
	Notes string
}

// guest answers like roost-guest, and on /notes, /hang and /slow for tests.
type guest struct {
	guestv1connect.UnimplementedControlHandler
	rt *Runtime

	mu     sync.Mutex
	mem    Memory
	idle   time.Duration
	server *http.Server
}

func (g *guest) serve(l net.Listener) {
	mux := http.NewServeMux()
	mux.Handle(guestv1connect.NewControlHandler(g))
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET /notes", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(g.memory().Notes)) })
	mux.HandleFunc("/whoami", func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(r.Header.Get(guestclient.AccessHeader) + "|" + r.Header.Get(guestclient.ControlHeader)))
	})
	mux.HandleFunc("/hang", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	g.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = g.server.Serve(l) }()
}

func (g *guest) memory() Memory {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mem
}

func (g *guest) authorize(h http.Header) error {
	if h.Get(guestclient.ControlHeader) != g.mem.Control {
		return connect.NewError(connect.CodeUnauthenticated, errText("the control token is wrong"))
	}
	return nil
}

type errText string

func (e errText) Error() string { return string(e) }

// Restore begins a life; the fault "guest.restore" changes what it answers.
func (g *guest) Restore(_ context.Context, req *connect.Request[guestv1.RestoreRequest]) (*connect.Response[guestv1.RestoreResponse], error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.authorize(req.Header()); err != nil && req.Msg.GetControlToken() != g.mem.Control {
		return nil, err // not a repetition either
	}
	if err := g.rt.hit("guest.restore"); err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	m := req.Msg
	if m.GetGrow() && g.rt.kind.Caps.FixedDisk {
		return nil, errFixed
	}
	g.mem.Control, g.mem.Access, g.mem.Generation = m.GetControlToken(), m.GetAccessToken(), m.GetGeneration()
	g.mem.Hostname, g.mem.MachineID, g.mem.Frozen = m.GetHostname(), m.GetMachineId(), true
	return connect.NewResponse(&guestv1.RestoreResponse{
		ClockNs: time.Now().UnixNano(), RandomReseeded: true, TokenRenewed: true,
		Hostname: g.mem.Hostname, MachineId: g.mem.MachineID, Generation: g.mem.Generation,
	}), nil
}

// Freeze stops user processes.
func (g *guest) Freeze(_ context.Context, req *connect.Request[guestv1.FreezeRequest]) (*connect.Response[guestv1.FreezeResponse], error) {
	return control(g, req.Header(), "guest.freeze", &guestv1.FreezeResponse{}, func() { g.mem.Frozen = true })
}

// Thaw lets user processes run.
func (g *guest) Thaw(_ context.Context, req *connect.Request[guestv1.ThawRequest]) (*connect.Response[guestv1.ThawResponse], error) {
	return control(g, req.Header(), "guest.thaw", &guestv1.ThawResponse{}, func() { g.mem.Frozen = false })
}

var errFixed = connect.NewError(connect.CodeInternal, errText("this disk cannot grow"))

// Grow does nothing: there is no file system.
func (g *guest) Grow(_ context.Context, req *connect.Request[guestv1.GrowRequest]) (*connect.Response[guestv1.GrowResponse], error) {
	if g.rt.kind.Caps.FixedDisk {
		return nil, errFixed
	}
	return control(g, req.Header(), "guest.grow", &guestv1.GrowResponse{}, func() {})
}

// Stats says how long the guest was idle: what Quiet said.
func (g *guest) Stats(_ context.Context, req *connect.Request[guestv1.StatsRequest]) (*connect.Response[guestv1.StatsResponse], error) {
	out := &guestv1.StatsResponse{}
	return control(g, req.Header(), "guest.stats", out, func() { out.IdleMs = g.idle.Milliseconds() })
}

// refusal is a fault as the guest answers it: internal, or of the code that it says.
func refusal(err error) error {
	if c := new(connect.Error); errors.As(err, &c) {
		return c
	}
	return connect.NewError(connect.CodeInternal, err)
}

func control[T any](g *guest, h http.Header, fault string, out *T, do func()) (*connect.Response[T], error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.authorize(h); err != nil {
		return nil, err
	}
	if err := g.rt.hit(fault); err != nil {
		return nil, refusal(err)
	}
	do()
	return connect.NewResponse(out), nil
}
