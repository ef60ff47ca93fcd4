package sandbox

import (
	"errors"
	"io"
	"net/http"

	"github.com/roosthq/roost/internal/fault"
)

// Guest is a way into a running sandbox for one request. Release it when the request is over;
// until then the sandbox is not idle.
type Guest struct {
	Transport   http.RoundTripper
	AccessToken string
	s           *Sandbox
	m           *Manager
}

// Guest opens the way to a sandbox's guest; a sandbox that does not run is
// fault.FailedPrecondition, with what to do.
func (m *Manager) Guest(id, op string) (*Guest, error) {
	s, err := m.lookup(id)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.reachable(op); err != nil {
		return nil, err
	}
	// Under the lock: an idle pause sees the request, or the request sees the pause.
	s.inFlight++
	s.touch(m.cfg.Clock())
	return &Guest{Transport: s.guest.Transport(), AccessToken: s.j.AccessToken, s: s, m: m}, nil
}

// Reachable says why a sandbox's guest cannot be reached, if it cannot.
func (m *Manager) Reachable(id, op string) error {
	s, err := m.lookup(id)
	if err != nil {
		return err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.reachable(op)
}

func (s *Sandbox) reachable(op string) error {
	state := s.j.State
	if state == Snapshotting { // it stands still for a moment; a request can wait as long
		state = Running
	}
	if err := errors.Join(s.gone(), need(s.j.ID, state, Running, op)); err != nil {
		return err
	}
	if err := heldBack(s.j, fault.FailedPrecondition, op); err != nil {
		return err
	}
	if s.guest == nil {
		return fault.New(fault.Unavailable, op, "sandbox "+s.j.ID, "the host agent does not hold it").
			WithHint("try again in a moment")
	}
	return nil
}

// Release ends the request.
func (g *Guest) Release() {
	g.s.touch(g.m.cfg.Clock())
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	g.s.inFlight--
}

// Watch returns body with every read counted as activity.
func (g *Guest) Watch(body io.ReadCloser) io.ReadCloser {
	return &watchedBody{ReadCloser: body, g: g}
}

type watchedBody struct {
	io.ReadCloser
	g *Guest
}

func (w *watchedBody) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	if n > 0 {
		w.g.s.touch(w.g.m.cfg.Clock())
	}
	return n, err
}
