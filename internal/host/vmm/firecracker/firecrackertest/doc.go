// Package firecrackertest is a strict stand-in for Firecracker and its jailer, for hosts without KVM:
// a program that makes a jail, drops its privileges and serves the API as api.json describes it. It
// refuses unknown fields, a wrong order and a wrong state as the real one does, keeps memory and
// counts the pages that its guest writes, and merges them on a save.
//
//	func TestMain(m *testing.M) {
//		firecrackertest.Play() // does not return when the test binary was started by one of its names
//		os.Exit(m.Run())
//	}
//	o.Binary, o.Jailer = firecrackertest.Install(t)
//
// Its guest does what a test says: see Guest. What it cannot know (whether a kernel runs, what a
// real snapshot holds) is for the real one, which the same driver's contract runs in the lane.
package firecrackertest
