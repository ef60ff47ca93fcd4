// Package sandbox is the state machine of one machine's sandboxes. It composes a runtime, the
// network and the images; it knows nothing of virtual machines.
//
// # States
//
//	creating ─► running ⇄ pausing ─► paused ⇄ resuming ─► running
//	               └──► failed        destroying is legal from every state
//
// # Truth
//
// A sandbox is a directory with a journal. The journal says what is about to be done before
// it is done (slot, uid, disk index, capture number) and what came of it; after a crash the
// agent rebuilds itself from the journals alone. A slot and its uid are given back after the
// journal has ceased to name them, never before: whoever is named in a journal may be killed by
// the agent that reads it. Every settled change raises the generation; a reboot of the host,
// which may have lost a journal's last lines, raises it by more than those.
//
// # Failure rules
//
//   - Create and resume undo everything when they fail: a failed create leaves nothing, a
//     failed resume leaves the paused state as it was.
//   - Pause: until the capture is renamed into place every failure thaws the sandbox; after
//     it the pause only completes. The VMM is stopped after that commit, never before.
//   - A sandbox whose runtime ends by itself is failed, with the reason; its disk stays.
//   - Destroy cancels whatever is under way or waits, is idempotent, and works on a full disk.
//     While something of a sandbox still runs, its files, slot and uid stay.
//   - What cannot be finished or undone at once (a process does not die, the disk is full for the
//     journal) stays in the state it is in, and is finished by whoever comes next or the collector.
//   - A request to a guest ends with the run of its sandbox, at once. A sandbox with a request in
//     flight is not idle.
//   - Stop cancels operations, waits until they are undone or, past their commit, done, and lets
//     go of the sandboxes: they run on.
//   - Cleanup runs on a context that the caller cannot cancel.
//
// Operations on one sandbox run one at a time, in the order in which they get its gate.
package sandbox
