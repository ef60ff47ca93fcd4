package sandbox

import (
	"io"
	"net/http"

	"github.com/roosthq/roost/internal/host/guestclient"
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
	j := s.journal()
	_, _, client := s.parts()
	if err := need(id, j.State, Running, op); err != nil {
		return nil, err
	}
	return m.open(s, client, j.AccessToken), nil
}

func (m *Manager) open(s *Sandbox, client *guestclient.Client, token string) *Guest {
	s.inFlight.Add(1)
	s.touch(m.cfg.Clock())
	return &Guest{Transport: client.Transport(), AccessToken: token, s: s, m: m}
}

// Release ends the request.
func (g *Guest) Release() {
	g.s.touch(g.m.cfg.Clock())
	g.s.inFlight.Add(-1)
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
