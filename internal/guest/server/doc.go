// Package server puts the guest's services on one port, HTTP/1.1 and h2c.
//
// GET /health needs no token. roost.guest.v1.Control and /roost/export need X-Control-Token; everything else
// X-Access-Token, and before the first Restore there is none, so all of it is refused. A new
// life (see package restore) drops every connection of the life before: their other ends are
// gone, and a process must not wait for a reader that does not exist.
package server
