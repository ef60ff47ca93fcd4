package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
)

func TestLifeOfASandbox(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		v := h.create(a)
		require.EqualValues(t, 1, v.Generation)
		require.Equal(t, runtime.Resources{VCPUs: DefaultVCPUs, MemoryMB: DefaultMemoryMB, DiskSizeMB: DefaultDiskSizeMB}, v.Resources)
		require.Equal(t, 1, h.Runtime.Boots(), "the template's memory is made once")
		mem := h.Runtime.Memory(h.uid(a))
		require.Equal(t, a, mem.Hostname)
		require.Len(t, mem.MachineID, 32)
		h.answers(a)
		h.Runtime.Note(h.uid(a), "a thought")
		for n := range 3 {
			v = h.pause(a)
			require.EqualValues(t, 2+2*n, v.Generation)
			require.Empty(t, h.Slots())
			require.Empty(t, h.Runtime.Running())
			v = h.resume(a)
			require.EqualValues(t, 3+2*n, v.Generation)
			text, err := h.get(a, "/notes")
			require.NoError(t, err)
			require.Equal(t, "a thought", text)
		}
		h.create(id("b"))
		require.Equal(t, 1, h.Runtime.Boots())
		require.Len(t, h.m.List(), 2)
		h.destroy(a)
		h.destroy(id("b"))
		h.destroy(a) // destroyed already
		h.empty()
	})
}

func TestCreateRefusesBadInput(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		for name, c := range map[string]struct {
			change func(*CreateRequest)
			kind   fault.Kind
			say    string
		}{
			"id":       {func(r *CreateRequest) { r.ID = "../../etc" }, fault.Invalid, "sandbox_id"},
			"template": {func(r *CreateRequest) { r.Template = "nope" }, fault.NotFound, "nope"},
			"runtime":  {func(r *CreateRequest) { r.Runtime = "other" }, fault.Invalid, "runtime"},
			"vcpus":    {func(r *CreateRequest) { r.Resources.VCPUs = 33 }, fault.Invalid, "vcpus"},
			"negative": {func(r *CreateRequest) { r.Resources.VCPUs = -1 }, fault.Invalid, "vcpus"},
			"memory":   {func(r *CreateRequest) { r.Resources.MemoryMB = 129 }, fault.Invalid, "memory_mb"},
			"disk":     {func(r *CreateRequest) { r.Resources.DiskSizeMB = 1023 }, fault.Invalid, "needs at least 1024"},
			"idle":     {func(r *CreateRequest) { r.IdleTimeout = -1 }, fault.Invalid, "idle_timeout"},
		} {
			req := request(id("a"))
			c.change(&req)
			_, err := h.m.Create(t.Context(), Operation{}, req, nil)
			require.Equal(t, c.kind, fault.KindOf(err), name)
			require.ErrorContains(t, err, c.say, name)
		}
		h.empty()
		require.Zero(t, h.Runtime.Boots())
		a := id("a")
		h.create(a)
		minus := -time.Second
		_, err := h.m.SetIdleTimeout(t.Context(), Operation{}, a, minus)
		require.Equal(t, fault.Invalid, fault.KindOf(err))
		_, err = h.m.Resume(t.Context(), Operation{}, a, ResumeOptions{Idle: &minus})
		require.Equal(t, fault.Invalid, fault.KindOf(err))
	})
}

// A disk smaller than the template's memory was made with is booted, unless there is memory for
// each size, and no initramfs, which holds a token, is left.
func TestColdCreate(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		var steps []string
		req := request(id("a"))
		req.Resources.DiskSizeMB = 2048
		_, err := h.m.Create(t.Context(), Operation{}, req, func(step, _ string) { steps = append(steps, step) })
		require.NoError(t, err)
		want := "boot"
		if h.Runtime.Capabilities().FixedDisk {
			want = "warm"
		}
		require.Equal(t, []string{want}, steps)
		h.answers(id("a"))
		require.Empty(t, h.files("sandboxes/*/run/initrd"))
		h.pause(id("a"))
		h.resume(id("a"))
		h.Runtime.Fail("thaw", 1, errors.New("no"))
		req.ID = id("b")
		_, err = h.m.Create(t.Context(), Operation{}, req, nil)
		require.Error(t, err)
		h.destroy(id("a"))
		h.empty()
	})
}

func TestOperationsAreAnsweredOnce(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		first, err := h.m.Create(t.Context(), Operation{ID: "1"}, request(a), nil)
		require.NoError(t, err)
		again, err := h.m.Create(t.Context(), Operation{ID: "1"}, request(a), nil)
		require.NoError(t, err)
		require.Equal(t, first.Generation, again.Generation)
		_, err = h.m.Create(t.Context(), Operation{ID: "2"}, request(a), nil)
		require.Equal(t, fault.AlreadyExists, fault.KindOf(err))
		_, err = h.m.Create(t.Context(), Operation{}, request(a), nil)
		require.Equal(t, fault.AlreadyExists, fault.KindOf(err), "no id is no operation that was done")
		for range 2 {
			res, err := h.m.Pause(t.Context(), Operation{ID: "3", Generation: 1}, a, PauseOptions{Reason: "test"})
			require.NoError(t, err)
			require.EqualValues(t, 2, res.Generation)
		}
		for range 2 {
			v, err := h.m.Resume(t.Context(), Operation{ID: "4", Generation: 2}, a, ResumeOptions{})
			require.NoError(t, err)
			require.EqualValues(t, 3, v.Generation)
		}
		// An older generation is refused, in the proto's words, and a Destroy of one before it
		// interrupts anything.
		for name, op := range map[string]func(Operation) error{
			"pause": func(op Operation) error {
				_, err := h.m.Pause(t.Context(), op, a, PauseOptions{Reason: ""})
				return err
			},
			"timeout": func(op Operation) error { _, err := h.m.SetIdleTimeout(t.Context(), op, a, 0); return err },
			"destroy": func(op Operation) error { return h.m.Destroy(t.Context(), op, a) },
		} {
			err := op(Operation{ID: "old " + name, Generation: 2})
			require.Equal(t, fault.FailedPrecondition, fault.KindOf(err), name)
			require.ErrorContains(t, err, "changed since", name)
			require.NotEmpty(t, fault.HintOf(err), name)
		}
		h.restart()
		v, err := h.m.Resume(t.Context(), Operation{ID: "4", Generation: 2}, a, ResumeOptions{})
		require.NoError(t, err, "remembered over a restart")
		require.EqualValues(t, 3, v.Generation)
	})
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"restore", "record", "thaw", "guest.restore", "guest.thaw"} {
		t.Run(step, func(t *testing.T) {
			onEach(t, func(t *testing.T, h *host) {
				require.NoError(t, h.m.Warm(t.Context(), "base", runtime.Resources{VCPUs: 1, MemoryMB: 512, DiskSizeMB: 5120}))
				h.Runtime.Fail(step, 1, &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC})
				_, err := h.m.Create(t.Context(), Operation{ID: "1"}, request(id("a")), nil)
				require.Error(t, err)
				if step != "guest.restore" && step != "guest.thaw" { // over the wire it is only text
					require.Equal(t, fault.ResourceExhausted, fault.KindOf(err), err)
					require.Contains(t, fault.HintOf(err), "free space")
				}
				h.empty()
				h.create(id("a"))
			})
		})
	}
}

func TestFailedWarmBootLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"boot", "freeze", "capture", "guest.grow", "guest.freeze"} {
		t.Run(step, func(t *testing.T) {
			onEach(t, func(t *testing.T, h *host) {
				if step == "guest.grow" && h.Runtime.Capabilities().FixedDisk {
					h.Runtime.Fail(step, 1, errors.New("it is not asked"))
					h.create(id("a"))
					return
				}
				h.Runtime.Fail(step, 1, errors.New("broken on purpose"))
				_, err := h.m.Create(t.Context(), Operation{}, request(id("a")), nil)
				require.ErrorContains(t, err, "broken on purpose")
				h.empty()
				h.create(id("a"))
			})
		})
	}
}

// Whoever asks for an id whose create fails meanwhile makes it, and is not told that it is taken.
func TestCreateAfterAFailedOne(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		step, arrived, leave := arrival()
		h.Runtime.On("restore", func(ctx context.Context) error {
			select {
			case <-arrived:
				return nil
			default:
				return errors.Join(step(ctx), errors.New("broken on purpose"))
			}
		})
		errs := make(chan error, 2)
		ask := func() {
			_, err := h.m.Create(t.Context(), Operation{ID: "same"}, request(id("a")), nil)
			errs <- err
		}
		go ask()
		wait(t, arrived)
		go ask()
		close(leave)
		one, two := <-errs, <-errs
		require.True(t, (one == nil) != (two == nil), "%v / %v", one, two)
		h.answers(id("a"))
	})
}

func TestPauseThatFailsLeavesTheSandboxRunning(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.Note(h.uid(a), "kept")
		for _, step := range []string{"guest.freeze", "freeze", "capture"} {
			h.Runtime.Fail(step, 1, &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC})
			_, err := h.m.Pause(t.Context(), Operation{ID: step}, a, PauseOptions{Reason: "test"})
			require.Error(t, err, step)
			if step != "guest.freeze" {
				require.Equal(t, fault.ResourceExhausted, fault.KindOf(err), step)
				require.Contains(t, fault.HintOf(err), "still runs", step)
			}
			require.Equal(t, Running, h.state(a), step)
			require.EqualValues(t, 1, h.sandbox(a).journal().Generation)
			require.Empty(t, h.files("sandboxes/*/captures/*"), step)
			require.Empty(t, h.files("sandboxes/*/captures/.tmp*"), step)
			h.answers(a)
		}
		h.pause(a)
		h.resume(a)
		text, err := h.get(a, "/notes")
		require.NoError(t, err)
		require.Equal(t, "kept", text)
	})
}

// A pause whose VM cannot be thawed ends as failed, with the reason and the disk, and nothing
// else of it.
func TestPauseThatCannotBeUndone(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.Fail("capture", 1, errors.New("capture broken"))
		h.Runtime.Fail("guest.thaw", thawTries, errors.New("thaw broken"))
		_, err := h.m.Pause(t.Context(), Operation{}, a, PauseOptions{Reason: "test"})
		require.ErrorContains(t, err, "capture broken")
		v, err := h.m.Get(a)
		require.NoError(t, err)
		require.Equal(t, Failed, v.State)
		require.Contains(t, v.Reason, "capture broken")
		require.Contains(t, v.Reason, "thaw broken")
		require.EqualValues(t, 2, v.Generation)
		require.Empty(t, h.Slots())
		require.Empty(t, h.Runtime.Running())
		require.Len(t, h.files("sandboxes/*/disk/live-0"), 1)
		_, err = h.m.Pause(t.Context(), Operation{}, a, PauseOptions{Reason: "test"})
		require.Contains(t, fault.HintOf(err), "roost rm "+a)
		log, err := h.m.Console(a)
		require.NoError(t, err)
		require.NotEmpty(t, log)
		h.noLeaks()
		if h.Runtime.Capabilities().DiskApart {
			require.Contains(t, h.resumeCold(a).Reason, "booted from its disk")
			h.answers(a)
		}
		h.destroy(a)
		h.empty()
	})
}

// After the commit a pause only completes: at the next call, when something is in its way.
func TestCommittedPauseCompletes(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.Note(h.uid(a), "kept")
		h.Runtime.Fail("stop", 1, errors.New("it does not die"))
		_, err := h.m.Pause(t.Context(), Operation{}, a, PauseOptions{Reason: "test"})
		require.ErrorContains(t, err, "it does not die")
		require.Equal(t, Pausing, h.state(a))
		require.Len(t, h.Slots(), 1, "what may still run keeps its slot and uid")
		require.Equal(t, h.UIDs.UID(h.sandbox(a).journal().Slot), h.uid(a))
		v := h.resume(a) // finishes the pause first
		require.EqualValues(t, 3, v.Generation)
		text, err := h.get(a, "/notes")
		require.NoError(t, err)
		require.Equal(t, "kept", text)

		// The same when the journal cannot be written: the slot is not given back before that.
		writable := h.unwritable(a)
		_, err = h.m.Pause(t.Context(), Operation{}, a, PauseOptions{Reason: "test"})
		require.Error(t, err)
		require.Equal(t, Running, h.state(a), "the intent could not be written")
		h.answers(a)
		writable()
		h.Runtime.On("stop", func(context.Context) error { writable = h.unwritable(a); return nil })
		_, err = h.m.Pause(t.Context(), Operation{}, a, PauseOptions{Reason: "test"})
		require.Error(t, err)
		require.Equal(t, Pausing, h.state(a))
		require.Len(t, h.Slots(), 1)
		h.Runtime.On("stop", nil)
		writable()
		require.NoError(t, h.m.finishAll(t.Context()))
		require.Equal(t, Paused, h.state(a))
		require.Empty(t, h.Slots())
	})
}

func TestFailedResumeLeavesThePausedState(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.Note(h.uid(a), "kept")
		h.pause(a)
		before := h.files("sandboxes/*/*/*")
		for _, step := range []string{"compact", "restore", "record", "thaw", "guest.restore", "guest.thaw"} {
			// Always: merging in the background may meet it too.
			h.Runtime.On(step, func(context.Context) error { return errors.New("broken on purpose") })
			_, err := h.m.Resume(t.Context(), Operation{ID: step}, a, ResumeOptions{})
			h.Runtime.On(step, nil)
			require.ErrorContains(t, err, "broken on purpose", step)
			require.Equal(t, Paused, h.state(a), step)
			require.EqualValues(t, 2, h.sandbox(a).journal().Generation, step)
			require.Empty(t, h.Slots(), step)
			require.Empty(t, h.Runtime.Running(), step)
			require.Equal(t, before, h.files("sandboxes/*/*/*"), step)
		}
		h.Runtime.Fail("restore", 1, syscall.ENOSPC)
		_, err := h.m.Resume(t.Context(), Operation{}, a, ResumeOptions{})
		require.Equal(t, fault.ResourceExhausted, fault.KindOf(err))
		require.Contains(t, fault.HintOf(err), "stays paused")
		// One that cannot even be undone keeps slot and uid until it is.
		h.Runtime.Fail("guest.restore", 1, errors.New("broken on purpose"))
		h.Runtime.Fail("stop", 1, errors.New("it does not die"))
		_, err = h.m.Resume(t.Context(), Operation{}, a, ResumeOptions{})
		require.ErrorContains(t, err, "it does not die")
		require.Equal(t, Resuming, h.state(a))
		require.Len(t, h.Slots(), 1)
		idle := time.Hour
		v, err := h.m.Resume(t.Context(), Operation{}, a, ResumeOptions{Idle: &idle})
		require.NoError(t, err)
		require.Equal(t, idle, v.IdleTimeout)
		require.Len(t, h.Slots(), 1)
		text, err := h.get(a, "/notes")
		require.NoError(t, err)
		require.Equal(t, "kept", text)
	})
}

// Layers are merged before they are too many, and what they were is removed.
func TestManyPauses(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		for range 12 {
			h.pause(a)
			h.resume(a)
		}
		require.Less(t, len(h.files("sandboxes/*/disk/*")), 10)
		whole := h.Runtime.Capabilities().FixedDisk
		require.Equal(t, whole, len(h.files("sandboxes/*/disk/merged-*")) == 0)
		h.pause(a)
		captures := h.files("sandboxes/*/captures/*")
		if whole {
			require.Len(t, captures, 1, "a capture stands alone")
			require.Empty(t, h.files("sandboxes/*/disk/*"), "the disk is in it")
			return
		}
		require.FileExists(t, filepath.Join(h.Data.Sandbox(a).Capture(13), "manifest.json"))
		require.Len(t, captures, 13, "older memory layers stay where they are")
		require.NoFileExists(t, filepath.Join(h.Data.Sandbox(a).Capture(12), "manifest.json"))
	})
}
