// Package process starts and watches processes that outlive the agent: VMMs and sentries.
//
// A Process is held by a pidfd, so a recycled pid is never signalled, waited for or read. It
// is either a child of this agent or somebody else's (an earlier agent's, a command's that has ended); both
// end the same way: Done is closed and Status says what is known. A child is reaped then; of another the
// status is read from the zombie, which some inits leave for seconds.
//
// # Failure rules
//
// Start either gives a running process or leaves none. Kill is idempotent. Release lets go of
// a process without ending it; Done of a released process is never closed.
package process
