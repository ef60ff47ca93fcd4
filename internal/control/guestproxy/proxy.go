package guestproxy

import (
	"encoding/base64"
	"net/http"
	"strings"

	"connectrpc.com/connect"

	"github.com/roosthq/roost/api/gen/filesystem/filesystemconnect"
	"github.com/roosthq/roost/api/gen/process/processconnect"
	"github.com/roosthq/roost/internal/fault"
)

// Proxy is the way to every guest of one host.
type Proxy struct {
	base   string
	client *http.Client
}

// New makes a Proxy for an agent at base, e.g. "http://agent" with a transport that dials
// the agent's socket.
func New(base string, transport http.RoundTripper) *Proxy {
	return &Proxy{base: strings.TrimSuffix(base, "/"), client: &http.Client{
		Transport: transport,
		// A guest's redirect must not lead the control plane elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Guest is the guest agent of one sandbox, spoken to as one user ("" = the template's).
type Guest struct {
	id, base, user string
	client         *http.Client
	process        processconnect.ProcessClient
	files          filesystemconnect.FilesystemClient
}

// Guest makes a Guest. The id must be a valid one: it becomes part of a URL.
func (p *Proxy) Guest(id, user string) *Guest {
	base := p.base + "/sandboxes/" + id + "/guest"
	return &Guest{
		id: id, base: base, user: user, client: p.client,
		process: processconnect.NewProcessClient(p.client, base),
		files:   filesystemconnect.NewFilesystemClient(p.client, base),
	}
}

// as sets the user on a request.
func (g *Guest) as(h http.Header) {
	if g.user != "" {
		h.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(g.user+":")))
	}
}

// request makes an RPC request as the guest's user.
func request[T any](g *Guest, msg *T) *connect.Request[T] {
	r := connect.NewRequest(msg)
	g.as(r.Header())
	return r
}

// CheckUser refuses a user name that could not be one, or would break the header.
func CheckUser(user string) error {
	if len(user) > 64 || strings.ContainsFunc(user, func(r rune) bool { return r <= ' ' || r == ':' || r > '~' }) {
		return fault.New(fault.Invalid, "", "", "user must be at most 64 printable characters without colon or space")
	}
	return nil
}
