// Package runtimetest is the contract of package runtime as tests: every kind of runtime runs
// it, with real sandboxes, and nothing in it asks which kind it is: where kinds differ, their
// Capabilities say so.
//
//	func TestContract(t *testing.T) {
//		runtimetest.Run(t, runtimetest.Harness{New: func(t testing.TB) runtime.Runtime { return newRuntime(t) }})
//	}
//
// The suite makes everything else: one small file tree (busybox, two users) as an ext4 image
// and as an EROFS image, Debian's cloud kernel where the guest needs one (kept in
// <repo>/.cache/runtimetest and …/vmmtest), the guest agent, and for every start a directory,
// a uid and a network namespace of its own, in which it talks to the guest. It boots one
// template, and nearly all cases restore from that.
//
// At the end of each case all of its sandboxes are stopped and discarded, and nothing may be
// left of them: no process of the uid, no user of the namespace, no live disk.
//
// Captures are damaged at random places: ROOST_FLIPS says how many (a soak sets more than the
// few that there are otherwise), ROOST_FLIPS_SEED repeats a run.
//
// No case waits for a time: each waits for an event, with a limit that a slow machine keeps.
// That user processes stand still is seen by what they have written, not by waiting.
package runtimetest
