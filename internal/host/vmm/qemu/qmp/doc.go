// Package qmp speaks QEMU's machine protocol over a unix socket: one command at a time is
// written, answers are matched by id, events go to a handler.
//
// # Failure rules
//
// The peer is not trusted: a line longer than MaxLine, or one that is not JSON, ends the
// connection. A command has a deadline (its context's, at most CommandTimeout); when it passes,
// the command may still be running and a late answer is dropped. When the connection ends, every
// command fails with fault.Unavailable and Done is closed.
package qmp
