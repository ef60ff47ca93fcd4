package sandbox

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/sandbox/sandboxtest"
	"github.com/roosthq/roost/internal/undo"
)

// dead makes a failed sandbox that was saved once, with "saved" in memory.
func dead(t *testing.T) (*host, string) {
	t.Helper()
	h, a := newHost(t), id("a")
	h.create(a)
	h.Runtime.Note(h.uid(a), "saved")
	h.pause(a)
	h.resume(a)
	h.fails(a)
	return h, a
}

var errBroken = errors.New("the file system on it is no more")

// noBoot makes the salvaged disk one that does not boot: the n next boots fail.
func (h *host) noBoot(n int) { h.Runtime.Fail("boot", n, errBroken) }

// The last save is there until the disk that was salvaged after it has started, and it is what a
// disk that does not start leads back to.
func TestASalvagedDiskThatDoesNotBoot(t *testing.T) {
	t.Parallel()
	h, a := dead(t)
	h.noBoot(1)
	v := h.resumeCold(a)
	require.Contains(t, v.Reason, "did not start")
	require.Contains(t, v.Reason, errBroken.Error())
	require.Contains(t, v.Reason, "booted from its disk as it was saved at ")
	require.Contains(t, v.Reason, "what came later is lost")
	h.answers(a)
	j := h.sandbox(a).journal()
	require.Equal(t, []int{1, 2}, []int{j.Capture, j.Fallback})
	for _, file := range h.saved(a, 2).Disk {
		require.FileExists(t, file, "somebody may want to look at it")
	}
	h.restart()
	h.answers(a)
	h.pause(a)
	j = h.sandbox(a).journal()
	require.Equal(t, []int{3, 0}, []int{j.Capture, j.Fallback}, "no number is taken twice")
	require.Len(t, h.files("sandboxes/*/captures/*"), 1)
	require.Subset(t, h.saved(a, 3).Disk, h.files("sandboxes/*/disk/*"))
	require.Empty(t, h.resume(a).Reason)
	h.destroy(a)
	h.empty()
}

// One that fell back and died again is rescued again.
func TestARescueAfterAFallBack(t *testing.T) {
	t.Parallel()
	h, a := dead(t)
	h.noBoot(1)
	h.resumeCold(a)
	h.fails(a)
	h.Runtime.Fail("salvage", 1, fault.New(fault.DataLoss, "salvage", "disk", "no"))
	require.Contains(t, h.resumeCold(a).Reason, "what came later is lost")
	require.Equal(t, []int{1, 2}, []int{h.sandbox(a).journal().Capture, h.sandbox(a).journal().Fallback})
	h.fails(a)
	h.resumeCold(a)
	j := h.sandbox(a).journal()
	require.Equal(t, []int{3, 0}, []int{j.Capture, j.Fallback})
	h.pause(a)
	require.Len(t, h.files("sandboxes/*/captures/*"), 1)
	h.resume(a)
}

// Where the way back does not start either, all is as before, also when an agent dies on it.
func TestAWayBackThatFails(t *testing.T) {
	t.Parallel()
	h, a := dead(t)
	h.noBoot(2)
	_, err := h.m.Resume(t.Context(), Operation{}, a, cold)
	require.ErrorIs(t, err, errBroken)
	require.ErrorContains(t, err, "go back to its last save")
	unproven := func() {
		t.Helper()
		j := h.sandbox(a).journal()
		require.Equal(t, Paused, j.State)
		require.Equal(t, []int{2, 1}, []int{j.Capture, j.Fallback})
		require.Contains(t, j.Reason, "its disk was saved after it was failed")
		for n := 1; n <= 2; n++ {
			for _, file := range h.saved(a, n).Disk {
				require.FileExists(t, file)
			}
		}
		leaks, err := h.m.Leaks(t.Context(), true)
		require.NoError(t, err)
		require.Empty(t, leaks)
	}
	unproven()
	h.restart()
	unproven()
	h.stop()
	h.edit(a, func(j *journal) { j.State = Resuming; j.exchange() })
	h.Connect()
	h.start()
	unproven()
	require.NotContains(t, h.resume(a).Reason, "lost", "its disk boots after all")
	require.Zero(t, h.sandbox(a).journal().Fallback)
	h.pause(a)
	require.Len(t, h.files("sandboxes/*/captures/*"), 1)
}

// What says nothing about the disk does not lead back.
func TestNoWayBackForWantOfRoom(t *testing.T) {
	t.Parallel()
	for name, cause := range map[string]error{
		"slots": fault.New(fault.ResourceExhausted, "take", "slot", "all are taken"),
		"space": &os.PathError{Op: "write", Path: "live", Err: syscall.ENOSPC},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, a := dead(t)
			boots := 0
			h.Runtime.On("boot", func(context.Context) error { boots++; return cause })
			_, err := h.m.Resume(t.Context(), Operation{}, a, cold)
			require.ErrorIs(t, err, cause)
			require.Equal(t, 1, boots)
			j := h.sandbox(a).journal()
			require.Equal(t, []any{Paused, 2, 1}, []any{j.State, j.Capture, j.Fallback})
			h.Runtime.On("boot", nil)
			require.NotContains(t, h.resume(a).Reason, "lost")
		})
	}
	t.Run("who gives up", func(t *testing.T) {
		t.Parallel()
		h, a := dead(t)
		ctx, cancel := context.WithCancel(t.Context())
		boots := 0
		h.Runtime.On("boot", func(ctx context.Context) error { boots++; cancel(); <-ctx.Done(); return ctx.Err() })
		_, err := h.m.Resume(ctx, Operation{}, a, cold)
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, 1, boots)
		require.Equal(t, 1, h.sandbox(a).journal().Fallback)
		h.destroy(a)
		h.empty()
	})
}

// A disk that merging cannot read leads back, too; and merging on the way removes nothing.
func TestADeepWayBack(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := id("a")
	deep(t, h, a)
	h.Runtime.On("compact", nil)
	h.resume(a) // merged
	h.fails(a)
	h.Runtime.Fail("compact", 1, fault.New(fault.DataLoss, "verify", "layer", "its checksum is wrong"))
	v := h.resumeCold(a)
	require.Contains(t, v.Reason, "its checksum is wrong")
	require.Contains(t, v.Reason, "what came later is lost")
	for _, file := range h.saved(a, 8).Disk {
		require.FileExists(t, file)
	}
}

// A deep save that a dead sandbox goes back to is merged, and its dead disk stays all the same.
func TestMergingKeepsADeadDisk(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := id("a")
	deep(t, h, a)
	h.stop() // before anything is merged
	h.edit(a, func(j *journal) {
		j.State, j.Reason, j.Last = Failed, "killed by signal 9", []byte(`{}`)
		j.DiskIndex++
	})
	disk := h.Data.Sandbox(a).Disk() + "/live-dead"
	require.NoError(t, os.WriteFile(disk, nil, 0o600))
	h.Connect()
	h.start()
	h.Runtime.On("compact", nil)
	h.Runtime.Fail("salvage", 2, fault.New(fault.DataLoss, "salvage", "disk", "no"))
	h.noBoot(1)
	_, err := h.m.Resume(t.Context(), Operation{}, a, cold)
	require.ErrorIs(t, err, errBroken)
	require.Equal(t, Failed, h.state(a))
	require.True(t, merged(h.saved(a, 7).Disk))
	require.FileExists(t, disk)
	h.resumeCold(a)
	require.FileExists(t, disk)
	h.pause(a)
	require.NoFileExists(t, disk)
}

// A mended sandbox's last instance may have left a disk that no capture names. It stays until the
// next pause, whatever comes before.
func TestAMendedSandboxKeepsItsNewerDisk(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.pause(a)
		h.resume(a)
		h.stop()
		h.Runtime.Kill(h.uid(a), "it is nobody's")
		h.breakJournal(a)
		before := h.allFiles(a)
		newer := h.files("sandboxes/*/disk/live*")
		require.NotEmpty(t, newer)
		h.Connect()
		h.start()
		kept := func() {
			t.Helper()
			require.Equal(t, Paused, h.state(a))
			require.Subset(t, h.allFiles(a), before)
		}
		kept()
		h.restart()
		kept()
		leaks, err := h.m.Leaks(t.Context(), true)
		require.NoError(t, err)
		require.Empty(t, leaks)
		kept()
		h.Runtime.Fail("restore", 1, errBroken)
		_, err = h.m.Resume(t.Context(), Operation{}, a, ResumeOptions{})
		require.ErrorIs(t, err, errBroken)
		h.restart()
		kept()
		h.resume(a)
		require.Subset(t, h.allFiles(a), before)
		h.pause(a)
		require.NotSubset(t, h.files("sandboxes/*/disk/*"), newer[len(newer)-1:])
		require.False(t, h.sandbox(a).journal().Mended)
		h.resume(a)
	})
}

// A journal that is lost between a rescue and its first start has a way back all the same.
func TestAMendedRescueHasAWayBack(t *testing.T) {
	t.Parallel()
	h, a := dead(t)
	h.noBoot(2)
	_, err := h.m.Resume(t.Context(), Operation{}, a, cold)
	require.Error(t, err)
	h.stop()
	h.breakJournal(a)
	h.Connect()
	h.start()
	j := h.sandbox(a).journal()
	require.Equal(t, []any{Paused, 2, 1}, []any{j.State, j.Capture, j.Fallback})
	h.noBoot(1)
	require.Contains(t, h.resume(a).Reason, "what came later is lost")
}

// A throw-away copy of a deep snapshot is merged beside it: what is published stays what it is.
func TestAThrowAwayLeavesItsSnapshotAlone(t *testing.T) {
	t.Parallel()
	h := newHost(t, sandboxtest.VM)
	a, snap := id("a"), id("s")
	const most = 16
	h.create(a)
	for range most - 1 {
		h.pause(a)
		h.resume(a)
	}
	h.Runtime.On("compact", func(context.Context) error { return errors.New("not now") })
	h.pause(a)
	require.Len(t, h.saved(a, most).Memory, most)
	_, _, err := h.m.CreateSnapshot(t.Context(), Operation{}, a, snap)
	require.NoError(t, err)
	h.Runtime.On("compact", nil)
	before := h.files("sandboxes/.snapshots/*/*")
	o, err := h.m.openSnapshot(snap)
	require.NoError(t, err)
	source, err := h.m.cfg.Images.TemplateByDigest(o.man.Template.Digest)
	require.NoError(t, err)
	var undos undo.Stack
	_, err = h.m.startThrowAway(t.Context(), h.Runtime, o, source, &undos)
	require.NoError(t, err)
	require.Len(t, h.files("sandboxes/.trash/boot-*/capture/merged.layer"), 1, "it was deep")
	require.Equal(t, before, h.files("sandboxes/.snapshots/*/*"))
	require.NoError(t, undos.Rollback(t.Context()))
	require.Empty(t, h.files("sandboxes/.trash/*"))
	require.Equal(t, before, h.files("sandboxes/.snapshots/*/*"))
}
