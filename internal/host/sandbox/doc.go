// Package sandbox is the state machine of one machine's sandboxes. It composes a runtime, the
// network and the images; it knows nothing of virtual machines.
//
// # States
//
//	creating ─► running ⇄ pausing ─► paused ⇄ resuming ─► running
//	running ⇄ snapshotting            for as long as it stands still
//	running ─► failed                 it ended by itself
//	running ─► lost                   the host went down
//	failed, lost ─► (paused ─►) resuming   a cold resume
//	destroying is legal from every state
//
// # Snapshots and forks
//
// A snapshot is a capture in a directory of its own, with a hard link to every file that it
// stands on; a sandbox that is made of one, or forked, gets links of its own to all of them as its
// capture 1, and starts from that. So nothing that anybody stands on can be removed, and the file
// system counts. A fork's stage is the same, never published.
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
//   - A snapshot's source is thawed before anything else happens, whatever became of the capture.
//     Forks are made all or none.
//   - A sandbox whose runtime ends by itself, or is stopped by a signal for seconds, is failed, with
//     the reason; its disk stays. A cold resume makes that disk a capture first (rescue), and is
//     paused from then on; where the disk means nothing without its memory, is damaged or does not
//     start, it goes back to the last capture, and says so. That stays until the disk has started.
//   - A damaged capture is refused before its guest runs. A damaged journal whose last capture is
//     whole makes the sandbox paused (mend).
//   - Deep captures are merged in the background, by whoever gives way at once; the old files go
//     after the new manifest is there.
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
