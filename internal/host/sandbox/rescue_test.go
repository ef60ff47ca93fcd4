package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
)

var cold = ResumeOptions{Cold: true}

func (h *host) pauseDisk(name string) View {
	h.t.Helper()
	res, err := h.m.Pause(h.t.Context(), Operation{}, name, PauseOptions{DiskOnly: true})
	require.NoError(h.t, err)
	require.Equal(h.t, Paused, res.State)
	return res.View
}

func (h *host) resumeCold(name string) View {
	h.t.Helper()
	v, err := h.m.Resume(h.t.Context(), Operation{}, name, cold)
	require.NoError(h.t, err)
	require.Equal(h.t, Running, v.State)
	return v
}

// fails makes a sandbox fail as a crash of its VM does.
func (h *host) fails(name string) {
	h.t.Helper()
	h.Runtime.Kill(h.uid(name), "killed by signal 9")
	soon(h.t, "it is failed, and holds nothing", func() bool {
		j := h.sandbox(name).journal()
		return j.State == Failed && j.Slot == noSlot
	})
}

func (h *host) notes(name string) string {
	h.t.Helper()
	text, err := h.get(name, "/notes")
	require.NoError(h.t, err)
	return text
}

// saved is what a sandbox's capture number n consists of, as the fake runtime records it.
func (h *host) saved(name string, n int) (rec struct {
	Disk, Memory []string
	DiskOnly     bool `json:"disk_only"`
}) {
	h.t.Helper()
	c, man, err := readCapture(h.Data.Sandbox(name).Capture(n))
	require.NoError(h.t, err)
	require.NoError(h.t, json.Unmarshal(c.Record, &rec))
	require.Equal(h.t, man.DiskOnly, rec.DiskOnly)
	return rec
}

func TestPauseOfTheDiskAlone(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		boots := h.Runtime.Boots()
		h.Runtime.Note(h.uid(a), "in memory")
		h.pauseDisk(a)
		rec := h.saved(a, 1)
		require.True(t, rec.DiskOnly)
		require.Empty(t, rec.Memory)
		v := h.resume(a)
		require.Contains(t, v.Reason, "booted from its disk")
		require.Equal(t, boots+1, h.Runtime.Boots())
		h.answers(a)
		require.Empty(t, h.notes(a), "memory began anew")
		require.Equal(t, a, h.Runtime.Memory(h.uid(a)).Hostname)
		require.Empty(t, h.files("sandboxes/*/run/initrd"))
		// A full pause after it stands on no memory of before.
		h.Runtime.Note(h.uid(a), "new")
		h.pause(a)
		rec = h.saved(a, 2)
		require.False(t, rec.DiskOnly)
		require.Equal(t, []string{"memory.layer"}, rec.Memory)
		v = h.resume(a)
		require.Empty(t, v.Reason)
		require.Equal(t, "new", h.notes(a))
		h.destroy(a)
		h.empty()
	})
}

// Where memory and disk are apart a paused sandbox may be booted; elsewhere that is refused.
func TestColdResumeOfAPausedOne(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.Note(h.uid(a), "kept")
		h.pause(a)
		if !h.Runtime.Capabilities().DiskApart {
			_, err := h.m.Resume(t.Context(), Operation{}, a, cold)
			require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
			require.ErrorContains(t, err, "memory and disk of a sandbox in one")
			require.Equal(t, "resume it with its memory: roost resume "+a, fault.HintOf(err))
			require.Equal(t, Paused, h.state(a))
			h.resume(a)
			require.Equal(t, "kept", h.notes(a))
			return
		}
		v := h.resumeCold(a)
		require.Contains(t, v.Reason, "booted from its disk as it was saved at ")
		require.Empty(t, h.notes(a))
		h.restart()
		h.pause(a) // by an agent that has not booted it itself
		require.Equal(t, []string{"memory.layer"}, h.saved(a, 2).Memory, "the first save's memory is no part of it")
		require.Len(t, h.saved(a, 2).Disk, 3, "its disk is")
		h.resume(a)
	})
}

// A sandbox that died starts again from its disk or, where that means nothing alone, its last save.
func TestColdResumeOfAFailedOne(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		apart := h.Runtime.Capabilities().DiskApart
		h.fails(a)
		_, err := h.m.Resume(t.Context(), Operation{}, a, ResumeOptions{})
		require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
		require.Contains(t, fault.HintOf(err), "roost resume --cold "+a)
		if !apart {
			_, err := h.m.Resume(t.Context(), Operation{}, a, cold)
			require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
			require.ErrorContains(t, err, "killed by signal 9")
			require.Contains(t, fault.HintOf(err), "roost rm "+a)
			require.Equal(t, Failed, h.state(a))
			h.destroy(a)
			h.create(a)
		} else {
			v := h.resumeCold(a)
			require.Contains(t, v.Reason, "booted from its disk")
			require.EqualValues(t, 4, v.Generation, "failed, saved, booted")
			require.True(t, h.saved(a, 1).DiskOnly)
		}
		h.Runtime.Note(h.uid(a), "saved")
		h.pause(a)
		h.resume(a)
		h.Runtime.Note(h.uid(a), "not saved")
		h.fails(a)
		disk := h.files("sandboxes/*/disk/live*")
		require.NotEmpty(t, disk)
		v := h.resumeCold(a)
		if apart {
			require.Contains(t, v.Reason, "booted from its disk")
			require.Subset(t, h.saved(a, 3).Disk, disk)
			require.Empty(t, h.notes(a))
		} else {
			require.Contains(t, v.Reason, "resumed from its save of ")
			require.Contains(t, v.Reason, "what came later is lost")
			require.Equal(t, "saved", h.notes(a))
		}
		h.answers(a)
		h.pause(a)
		require.Empty(t, h.resume(a).Reason)
		h.destroy(a)
		h.empty()
	})
}

// Whatever fails of a rescue: the sandbox is dead as before, or paused with its disk saved, and the
// next try works.
func TestAFailedRescueCanBeTriedAgain(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"salvage", "boot", "restore", "record", "thaw", "guest.restore", "guest.thaw", "compact"} {
		t.Run(step, func(t *testing.T) {
			onEach(t, func(t *testing.T, h *host) {
				a := id("a")
				h.create(a)
				h.Runtime.Note(h.uid(a), "saved")
				h.pause(a)
				h.resume(a)
				h.fails(a)
				apart := h.Runtime.Capabilities().DiskApart
				h.Runtime.On(step, func(context.Context) error { return errors.New("broken on purpose") })
				v, err := h.m.Resume(t.Context(), Operation{ID: "1"}, a, cold)
				h.Runtime.On(step, nil)
				if passed := apart && step == "restore" || !apart && (step == "boot" || step == "salvage"); passed {
					require.NoError(t, err, "it does not need that")
					require.Equal(t, Running, v.State)
					return
				}
				require.ErrorContains(t, err, "broken on purpose")
				want := Failed
				if apart && step != "salvage" {
					want = Paused
				}
				v, err = h.m.Get(a)
				require.NoError(t, err)
				require.Equal(t, want, v.State)
				require.Contains(t, v.Reason, "killed by signal 9")
				require.Empty(t, h.Slots())
				require.Empty(t, h.Runtime.Running())
				require.Empty(t, h.files("sandboxes/*/captures/.tmp*"))
				h.restart()
				require.Equal(t, want, h.state(a))
				v, err = h.m.Resume(t.Context(), Operation{ID: "1"}, a, cold)
				require.NoError(t, err)
				said := map[bool]string{true: "as it was saved at ", false: "from its save of "}[apart]
				require.Contains(t, v.Reason, said)
				h.answers(a)
				h.destroy(a)
				h.empty()
			})
		})
	}
}

// A rescue whose journal cannot be written has done nothing, or is completed by who comes next.
func TestARescueWithoutSpaceForTheJournal(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := id("a")
	h.create(a)
	h.fails(a)
	writable := h.unwritable(a)
	_, err := h.m.Resume(t.Context(), Operation{}, a, cold)
	require.Error(t, err)
	require.Equal(t, Failed, h.state(a))
	require.Empty(t, h.files("sandboxes/*/captures/*"))
	writable()
	h.Runtime.On("salvage", func(context.Context) error { writable = h.unwritable(a); return nil })
	_, err = h.m.Resume(t.Context(), Operation{}, a, cold)
	require.Error(t, err)
	require.Equal(t, Failed, h.state(a))
	require.Len(t, h.files("sandboxes/*/captures/1"), 1, "it is published")
	writable()
	require.NoError(t, h.m.collect(t.Context()))
	require.Equal(t, Paused, h.state(a))
	h.Runtime.On("salvage", nil)
	require.Contains(t, h.resume(a).Reason, "booted from its disk")
}

// Damage of the dead disk itself leads back to the last save.
func TestADiskBeyondRescue(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := id("a")
	h.create(a)
	h.pause(a)
	h.resume(a)
	h.fails(a)
	h.Runtime.Fail("salvage", 1, fault.New(fault.DataLoss, "verify", "layer", "its checksum is wrong"))
	v := h.resumeCold(a)
	require.Contains(t, v.Reason, "what came later is lost")
	require.Contains(t, v.Reason, "booted from its disk as it was saved at")
}

// A rescue that an agent died in is ended by the next one.
func TestHalfRescued(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*testing.T, *host, *journal)
		want   State
	}{
		"marked":   {func(_ *testing.T, _ *host, j *journal) { j.Pending = j.Capture + 1 }, Failed},
		"written":  {func(t *testing.T, h *host, j *journal) { h.stageOf(j, false) }, Failed},
		"salvaged": {func(t *testing.T, h *host, j *journal) { h.stageOf(j, true) }, Paused},
		"going back": {func(_ *testing.T, _ *host, j *journal) {
			j.State, j.Was, j.DiskIndex = Resuming, Failed, j.DiskIndex+1
		}, Failed},
		"lost, going back": {func(_ *testing.T, _ *host, j *journal) {
			j.State, j.Was, j.DiskIndex = Resuming, Lost, j.DiskIndex+1
		}, Lost},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			a := id("a")
			h.create(a)
			h.pause(a)
			h.resume(a)
			h.fails(a)
			h.stop()
			h.edit(a, func(j *journal) { c.change(t, h, j) })
			h.Connect()
			h.start()
			require.Equal(t, c.want, h.state(a))
			require.Zero(t, h.sandbox(a).journal().Pending)
			require.Empty(t, h.files("sandboxes/*/captures/.tmp*"))
			require.Contains(t, h.sandbox(a).journal().Reason, "killed by signal 9")
			h.resumeCold(a)
			h.answers(a)
			h.pause(a)
			h.destroy(a)
			h.empty()
		})
	}
}

// stageOf makes what a salvage has written so far.
func (h *host) stageOf(j *journal, published bool) {
	h.t.Helper()
	j.Pending = j.Capture + 1
	dir := h.Data.Sandbox(j.ID)
	stage := dir.CaptureStage(j.Pending)
	require.NoError(h.t, os.Mkdir(stage, 0o700))
	record, err := h.Runtime.Salvage(h.t.Context(), h.sandbox(j.ID).spec(h.m), j.Last, stage)
	require.NoError(h.t, err)
	man := manifestOf(*j, record)
	man.DiskOnly = true
	require.NoError(h.t, writeManifest(stage, man))
	if published {
		require.NoError(h.t, os.Rename(stage, dir.Capture(j.Pending)))
	}
}

// What ran when the host went down comes back too.
func TestColdResumeOfALostOne(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.Note(h.uid(a), "saved")
		h.pause(a)
		h.resume(a)
		h.stop()
		h.Runtime.Kill(h.uid(a), "reboot")
		h.edit(a, func(j *journal) { j.BootID = "another" })
		h.Connect()
		require.NoError(t, h.Network.Collect(t.Context(), nil))
		h.start()
		require.Equal(t, Lost, h.state(a))
		_, err := h.m.Guest(a, "reach")
		require.Contains(t, fault.HintOf(err), "roost resume --cold "+a)
		_, err = h.m.Pause(t.Context(), Operation{}, a, PauseOptions{})
		require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
		v := h.resumeCold(a)
		require.Contains(t, v.Reason, "save")
		h.answers(a)
		h.destroy(a)
		h.empty()
	})
}

// Memory that cannot be restored is no reason to lose the disk, and the error says so.
func TestMemoryThatCannotBeRestored(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.pause(a)
		for _, kind := range []fault.Kind{fault.DataLoss, fault.FailedPrecondition, fault.Internal} {
			h.Runtime.Fail("restore", 1, fault.New(kind, "restore", "capture", "no").WithHint("first this"))
			_, err := h.m.Resume(t.Context(), Operation{}, a, ResumeOptions{})
			require.Equal(t, kind, fault.KindOf(err))
			hint := "first this"
			if kind != fault.Internal && h.Runtime.Capabilities().DiskApart {
				hint += "; or boot it from its disk, without its memory: roost resume --cold " + a
			}
			require.Equal(t, hint, fault.HintOf(err))
			require.Equal(t, Paused, h.state(a))
		}
		// A damaged manifest says nothing of a disk either.
		path := filepath.Join(h.Data.Sandbox(a).Capture(1), "manifest.json")
		raw, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, raw[1:], 0o600))
		for _, opts := range []ResumeOptions{{}, cold} {
			_, err = h.m.Resume(t.Context(), Operation{}, a, opts)
			require.Equal(t, fault.DataLoss, fault.KindOf(err))
			require.Empty(t, fault.HintOf(err))
		}
		require.Equal(t, Paused, h.state(a))
		require.NoError(t, os.WriteFile(path, raw, 0o600))
		h.resume(a)
	})
}
