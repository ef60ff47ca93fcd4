// Package guestproxy reaches the guest agent of a running sandbox through the host agent's
// proxy: commands over the process RPC, files over the filesystem RPC and plain HTTP. The
// proxy adds the guest's token; this package never sees one.
//
// A command belongs to whoever started it with Run: when that caller leaves, its process
// tree is killed. Start gives a Process that outlives its reader; who stops reading says
// what shall happen to it.
//
// Errors keep the guest's kind. A guest that cannot be reached is "unavailable".
package guestproxy
