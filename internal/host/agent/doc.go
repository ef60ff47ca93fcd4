// Package agent serves one machine: the HostService RPC over the sandbox manager, and a
// reverse proxy to each sandbox's guest at /sandboxes/{id}/guest/. It translates and keeps no
// state of its own. The access token is put on proxied requests here, so that nobody outside
// the agent ever holds it.
package agent
