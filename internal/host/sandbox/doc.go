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
// agent rebuilds itself from the journals alone. Every settled change raises the generation.
//
// # Failure rules
//
//   - Create and resume undo everything when they fail: a failed create leaves nothing, a
//     failed resume leaves the paused state as it was.
//   - Pause: until the capture is renamed into place every failure thaws the sandbox; after
//     it the pause only completes. The VMM is stopped after that commit, never before.
//   - A sandbox whose runtime ends by itself is failed, with the reason; its disk stays.
//   - Destroy cancels whatever is under way, is idempotent, and each of its steps runs even
//     when one before it failed.
//   - Cleanup runs on a context that the caller cannot cancel.
//
// Operations on one sandbox run one at a time, in the order in which they get its gate.
package sandbox
