package api

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/control/guestproxy"
	"github.com/roosthq/roost/internal/fault"
)

const (
	maxMessage   = 1<<20 + 1
	startWithin  = 30 * time.Second
	pingEvery    = 30 * time.Second
	inputsAhead  = 64
	streamExecIn = "exec in"
)

// StreamExec takes over the connection. What is wrong before that is a plain HTTP error.
func (a *API) StreamExec(ctx context.Context, r v1.StreamExecRequestObject) (v1.StreamExecResponseObject, error) {
	if _, err := a.sandboxes.Ready(ctx, r.Id, streamExecIn); err != nil {
		return nil, err
	}
	return upgrade{a, requestOf(ctx), r.Id}, nil
}

type upgrade struct {
	api *API
	r   *http.Request
	id  string
}

// VisitStreamExecResponse serves one session.
func (u upgrade) VisitStreamExecResponse(w http.ResponseWriter) error {
	if err := u.api.open(); err != nil {
		return err
	}
	defer u.api.sessions.Done()
	conn, err := websocket.Accept(w, u.r, nil)
	if err != nil {
		return nil // Accept has answered
	}
	defer conn.CloseNow()
	conn.SetReadLimit(maxMessage)
	ctx, cancel := context.WithCancelCause(u.r.Context())
	defer cancel(nil)
	s := &session{api: u.api, id: u.id, conn: conn, ctx: ctx, cancel: cancel,
		input: make(chan []byte, inputsAhead)}
	stop := context.AfterFunc(u.api.closing, s.stop)
	defer stop()
	s.serve()
	return nil
}

// How a session may end before its process.
var (
	errStopping = fault.New(fault.Unavailable, "", "", "the control plane is stopping").
			WithHint("connect to the process again in a moment")
	errDetached = fault.New(fault.Canceled, "", "", "the client detached")
	errExpelled = fault.New(fault.Invalid, "", "", "the client did not keep to the protocol")
	errBroken   = fault.New(fault.Canceled, "", "", "the client's connection broke")
)

// session is one WebSocket and one process. Closing the socket in form (status 1000)
// detaches: the process goes on. A socket that breaks is a terminal that goes away: a
// process that this session started gets SIGHUP. Both leave an attached one alone.
type session struct {
	api    *API
	id     string
	conn   *websocket.Conn
	ctx    context.Context
	cancel context.CancelCauseFunc
	proc   *guestproxy.Process
	owned  bool // this session started proc
	// input is nil for the end of input.
	input chan []byte
	// stopping says that the connection's end is the control plane's doing.
	stopping atomic.Bool
}

// stop says goodbye in form; cancelling first would cut the connection.
func (s *session) stop() {
	s.stopping.Store(true)
	_ = s.conn.Close(websocket.StatusGoingAway, "the control plane is stopping")
	s.cancel(errStopping)
}

func (s *session) serve() {
	first, err := s.readStart()
	if err != nil {
		s.refuse(err)
		return
	}
	if s.proc, err = s.begin(first); err != nil {
		s.refuse(s.api.explain(s.ctx, s.id, streamExecIn, err))
		return
	}
	defer s.proc.Close()
	stop := context.AfterFunc(s.ctx, s.proc.Close)
	defer stop()
	s.owned = first.Connect == nil
	s.send(serverMessage{Started: &started{int(s.proc.PID)}})

	done := make(chan struct{}, 3)
	for _, f := range []func(){s.readClient, s.feed, s.ping} {
		go func() { defer func() { done <- struct{}{} }(); f() }()
	}
	if !s.output() {
		s.leave()
	}
	s.cancel(nil)
	_ = s.conn.CloseNow()
	for range cap(done) {
		<-done
	}
}

// begin starts or attaches.
func (s *session) begin(m *startMessage) (*guestproxy.Process, error) {
	guest := s.api.guests.Guest(s.id, or(m.User, ""))
	if m.Connect != nil {
		return guest.Attach(s.ctx, *m.Connect)
	}
	cmd, err := commandOf(m.ExecStart)
	if err != nil {
		return nil, err
	}
	return guest.Start(s.ctx, cmd)
}

// output carries the process's output to the client until one of them ends, and says
// whether that was the process.
func (s *session) output() (ended bool) {
	for {
		ev, err := s.proc.Next()
		switch {
		case s.ctx.Err() != nil:
			return false
		case err != nil:
			s.refuse(s.api.explain(s.ctx, s.id, streamExecIn, err))
			return true
		case ev.Exit != nil:
			s.send(serverMessage{Exit: &v1.ExecExit{ExitCode: ev.Exit.Code,
				Signal: optional(ev.Exit.Signal), Error: optional(ev.Exit.Error)}})
			_ = s.conn.Close(websocket.StatusNormalClosure, "")
			return true
		}
		msg := make([]byte, 1+len(ev.Data))
		msg[0] = byte(ev.Stream)
		copy(msg[1:], ev.Data)
		s.write(websocket.MessageBinary, msg)
	}
}

// leave tells the process that its terminal went away, unless the client detached in form
// or the control plane stops.
func (s *session) leave() {
	cause := context.Cause(s.ctx)
	for _, quiet := range []error{errDetached, errStopping, errExpelled} {
		if errors.Is(cause, quiet) {
			return
		}
	}
	s.hangUp()
}

// hangUp is a terminal that goes away, for a process that this session started.
func (s *session) hangUp() {
	if !s.owned {
		return
	}
	if err := s.proc.HangUp(s.ctx); err != nil {
		s.api.log.Warn("process not told that its client went away", "sandbox_id", s.id, "error", err)
	}
}

// ping keeps proxies from closing a quiet session and finds broken connections while the
// reader waits for room. A client that is slow to answer is not broken.
func (s *session) ping() {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		if err := s.conn.Ping(s.ctx); err != nil {
			s.cancel(errBroken)
			return
		}
	}
}
