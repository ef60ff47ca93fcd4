// Package process starts and watches VMM processes that outlive the agent.
//
// A Process is held by a pidfd, so a recycled pid is never signalled, waited for or read. It
// is either a child of this agent or was started by an earlier one; both end the same way:
// Done is closed and Status says what is known. A child is reaped then.
//
// # Failure rules
//
// Start either gives a running process or leaves none. Kill is idempotent. Release lets go of
// a process without ending it; Done of a released process is never closed.
package process
