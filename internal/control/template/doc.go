// Package template has what sandboxes start from: rows of one table with one name space. A
// base is a root disk of its own, a snapshot was captured from a sandbox.
//
// # States
//
//	creating → ready ⇄ lost (the host has it no more)
//	any → deleting → the row goes
//
// # Who makes them
//
// Bases that the host builds from its recipes are the host's: their rows follow its list
// (Sync) and nobody can delete them. Everything else is asked for here: the row comes first
// (Reserve: creating, claimed), then the host is called by internal/control/sandbox, then
// the row is settled (Settle) or, when the call failed, decided by what the host has
// (Resolve). So a name is taken before anything is made, and nothing that was made is
// without a row.
//
// A base that was made with memory has a second thing at the host, a hidden snapshot, whose
// id is SnapshotID. It lives and dies with its row; without it the base still boots.
//
// # Failures
//
// A row changes by compare-and-set, and a claimed one belongs to its operation until the
// deadline. A delete marks the row first and repeats until the host has let go of all: a
// row that is still deleting is erased again by the reconciler. What was made of a template
// never needs it: the host keeps the bytes as long as somebody stands on them.
//
// A host that finishes a call after its row was erased leaves a stray: this process knows it
// for an hour and drops it. Other strays are reported, and dropped when somebody asks.
package template
