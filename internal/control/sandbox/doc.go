// Package sandbox has the rules of a sandbox as the control plane sees it: a row, and the
// calls that change what the row describes on its host.
//
// # States
//
//	creating → running ⇄ (pausing → paused → resuming)
//	failed (it ended by itself) and lost (it ran when the host went down) → resuming, cold
//	any → deleting → deleted (the row is kept a day, with its reason)
//
// A snapshot, a fork and a template that is made of a sandbox leave its state: it runs on,
// or stays paused, and the claim on its row is the mark that keeps others off meanwhile.
//
// transitions.go has the one table of who may go where.
//
// # Claims
//
// A change first claims the row by compare-and-set: the state it passes through, an
// operation id and a deadline. Then the host is called with that id and the row's
// generation, then the row is settled with what the host answered, or reverted. Host calls,
// settling and reverting run on contexts that the client's disconnect cannot cancel, all
// bounded by the claim's deadline or undo.Timeout. A create without an idempotency key is
// the exception: nobody could learn its id, so a client that leaves takes it back. So is a
// fork; a snapshot or template stands when its client has left, for it has a name.
//
// A second request for the same change waits for the first one's claim and shares its
// outcome. Delete takes over any claim; the operation that lost the row gets "aborted".
//
// # What comes of a sandbox
//
// The rows of what is made are there before the host is called: the template's, creating and
// claimed (internal/control/template), or those of all forks, in one transaction. A fork is
// all or none: when it fails every row becomes deleted with the reason, and whatever the
// host has of them is destroyed. A snapshot or template whose call failed is looked for at
// the host, and its row becomes ready or goes. After a crash the reconciler does the same.
//
// # Failures
//
// A call whose reply was lost is repeated with the same operation id, which the host
// answers as it did the first time. When that fails too, the host is asked for the
// sandbox's state, and the row follows it. A host that does not answer at all leaves the
// row in its state before the change, and the reconciler corrects it (Heal) when the host
// is back. A host that knows a newer generation (it paused an idle sandbox by itself) is
// asked for it, and the change is decided anew. A failed delete stays in deleting with its
// reason, and the reconciler repeats it: a wish to delete is never taken back.
package sandbox
