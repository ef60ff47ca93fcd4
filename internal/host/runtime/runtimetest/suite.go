package runtimetest

import (
	"os"
	"sync"
	"testing"

	"github.com/roosthq/roost/internal/host/runtime"
)

// Harness is what the suite needs to know of a runtime.
type Harness struct {
	// New makes a Runtime over what its kind keeps on this host (builds, say), as an agent does
	// when it starts: another call is another agent, which can adopt what the first one started.
	New func(t testing.TB) runtime.Runtime
	// Unchecked says that damage inside a file of a capture (by its path in the capture's
	// directory) is not noticed by Restore. A file that is cut or missing always is. Nil: all
	// are checked.
	Unchecked func(file string) bool
}

// parallelCases bounds how many cases hold sandboxes at once; a machine with two cores
// translates no more than that at a useful speed.
const parallelCases = 3

// suite is the contract against one kind of runtime.
type suite struct {
	Harness
	fixtures fixtures
	slots    chan struct{}
	top      *testing.T
	rt       runtime.Runtime

	once sync.Once
	tpl  saved
}

// Run holds a runtime to the contract.
func Run(t *testing.T, h Harness) {
	if os.Geteuid() != 0 {
		t.Fatal("the runtime contract needs root: namespaces, uids and mounts")
	}
	s := &suite{Harness: h, top: t, slots: make(chan struct{}, parallelCases), rt: h.New(t)}
	s.fixtures = makeFixtures(t, s.rt.Capabilities())
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s.slots <- struct{}{}
			t.Cleanup(func() { <-s.slots })
			c.run(s, t)
		})
	}
}

// cases, the longest last: waiting parallel tests are started from the end.
var cases = []struct {
	name string
	run  func(*suite, *testing.T)
}{
	{"Killed", (*suite).testKilled},
	{"Stopped", (*suite).testStopped},
	{"AdoptGone", (*suite).testAdoptGone},
	{"GuestEnds", (*suite).testGuestEnds},
	{"DiskSize", (*suite).testDiskSize},
	{"OtherBuild", (*suite).testOtherBuild},
	{"States", (*suite).testStates},
	{"Adopt", (*suite).testAdopt},
	{"FailedCapture", (*suite).testFailedCapture},
	{"Discard", (*suite).testDiscard},
	{"FreezeHolds", (*suite).testFreezeHolds},
	{"Usage", (*suite).testUsage},
	{"PauseResume", (*suite).testPauseResume},
	{"Damaged", (*suite).testDamaged},
	{"Link", (*suite).testLink},
	{"DiskFull", (*suite).testDiskFull},
	{"AdoptCaptured", (*suite).testAdoptCaptured},
	{"Stop", (*suite).testStop},
	{"Cancelled", (*suite).testCancelled},
	{"Flips", (*suite).testFlips},
	{"ColdStart", (*suite).testColdStart},
	{"Salvage", (*suite).testSalvage},
	{"Chain", (*suite).testChain},
	{"Snapshot", (*suite).testSnapshot},
	{"SnapshotOften", (*suite).testSnapshotOften},
	{"Fork", (*suite).testFork},
	{"Boot", (*suite).testBoot},
	{"Memory", (*suite).testMemory},
	{"DiskOnly", (*suite).testDiskOnly},
	{"Console", (*suite).testConsole},
	{"DamagedLarge", (*suite).testDamagedLarge},
	{"PauseOften", (*suite).testPauseOften},
	{"LinkOften", (*suite).testLinkOften},
}
