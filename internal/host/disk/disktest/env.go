package disktest

import (
	"context"
	"io"
	"testing"

	"github.com/roosthq/roost/internal/host/disk"
)

// Env is what the suite needs to know of a driver.
type Env struct {
	Driver disk.Driver
	// Open makes a VM that uses the attachment. The VM is gone at the latest when t ends.
	Open func(t testing.TB, att disk.Attachment) VM
}

// VM is the user of a live disk, as far as the disk can tell. Methods are safe for concurrent
// use; a write is acknowledged when WriteAt returns, and durable after Flush.
type VM interface {
	io.ReaderAt
	io.WriterAt
	Size() int64
	Flush() error
	// Zero makes a range read as zeros, as a guest's write-zeroes request does.
	Zero(offset, n int64) error
	// Discard tells that a range's content is of no use any more.
	Discard(offset, n int64) error
	// Switch is a disk.Switch for the disk that the VM uses.
	Switch(ctx context.Context, next disk.Attachment) error
	// Close flushes and lets go of the disk.
	Close() error
	// Kill ends the VM at once, without a flush.
	Kill()
}

// Run holds the driver to the contract.
func Run(t *testing.T, env Env) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.run(newRig(t, env))
		})
	}
}

var cases = []struct {
	name string
	run  func(*rig)
}{
	{"CreateReadsBaseAndZerosBeyond", createReadsBaseAndZerosBeyond},
	{"DefaultSizeTakesNoRoom", defaultSizeTakesNoRoom},
	{"CreateRefusesBadSizes", createRefusesBadSizes},
	{"OpenMakesOneFile", openMakesOneFile},
	{"OpenReplacesLeftoverNotStack", openReplacesLeftoverNotStack},
	{"WritesLeaveBaseAndLayersAlone", writesLeaveBaseAndLayersAlone},
	{"DepthIsBounded", depthIsBounded},
	{"CanceledDoesNothing", canceledDoesNothing},
	{"SealAndReopen", sealAndReopen},
	{"SealOfPausedVM", sealOfPausedVM},
	{"DiskInUseIsRefused", diskInUseIsRefused},
	{"SealUnderWrite", sealUnderWrite},
	{"FailedSwitchLeavesTheDisk", failedSwitchLeavesTheDisk},
	{"ForkOf16", forkOf16},
	{"ZerosStayZeros", zerosStayZeros},
	{"MergeAt8", mergeAt8},
	{"MergeOfMiddleLayers", mergeOfMiddleLayers},
	{"Grow", grow},
	{"FlattenIsEqualAndSparse", flattenIsEqualAndSparse},
	{"RemoveIsIdempotent", removeIsIdempotent},
	{"UsageIsReal", usageIsReal},
	{"VerifyFindsDamage", verifyFindsDamage},
	{"DamageIsNotCopied", damageIsNotCopied},
	{"CrashKeepsFlushedWrites", crashKeepsFlushedWrites},
	{"RandomOperations", randomOperations},
}
