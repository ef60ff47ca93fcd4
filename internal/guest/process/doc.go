// Package process runs the user's processes and serves process.Process.
//
// # States
//
//	spawned → running → exited (output draining) → ended (kept for late Connects)
//
// Every process is the leader of a session and has a cgroup leaf of its own, so that SIGKILL
// reaches all descendants. Nobody's stream owns it: a client that goes away detaches, and the
// process runs on. Only the lifetime given at its start (Connect-Timeout-Ms) ends it.
//
// # Output
//
// The first subscriber exists before the process does, so no byte is lost. A subscriber that
// reads slowly fills its short queue, then the pipe, then blocks the process: memory stays
// bounded. Without subscribers the last 256 KiB are kept; a Connect with the header
// Roost-Replay: true gets them first. The end is told after the output: pumps run to end of
// file, or, when a background descendant holds the pipe, for two seconds after the exit and
// until what the process itself wrote has been read.
package process
