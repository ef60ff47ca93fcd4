package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
)

// pass looks at the disk now.
func (h *host) pass() {
	h.t.Helper()
	_, err := h.m.fillOnce(h.t.Context())
	require.NoError(h.t, err)
}

// write makes a sandbox's disk grow by so many MiB.
func (h *host) write(name string, mb int) {
	h.t.Helper()
	f, err := os.OpenFile(filepath.Join(h.Data.Sandbox(name).Disk(), "written"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(h.t, err)
	_, err = f.Write(make([]byte, mb<<20))
	require.NoError(h.t, errors.Join(err, f.Close()))
}

// fill fills the disk while a sandbox writes, until that is frozen.
func (h *host) fill(writer string) {
	h.t.Helper()
	h.taken.Store(spaceMB - 30)
	soon(h.t, "the writer is frozen", func() bool {
		h.pass()
		if h.sandbox(writer).still.Load() {
			return true
		}
		h.write(writer, 2)
		return false
	})
}

// drain gives room, and waits until nothing is frozen.
func (h *host) drain() {
	h.t.Helper()
	h.taken.Store(0)
	soon(h.t, "all go on", func() bool {
		h.pass()
		d, err := h.m.Disk()
		require.NoError(h.t, err)
		return len(d.Frozen) == 0
	})
}

// The writer stands still and says why, the idle one answers; what needs space is refused; all goes
// on when there is room.
func TestAFullDiskFreezesWhoWrites(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		idle, writer := id("i"), id("w")
		h.create(idle)
		h.create(writer)
		h.Runtime.Note(h.uid(writer), "kept")
		h.fill(writer)
		v, err := h.m.Get(writer)
		require.NoError(t, err)
		require.Equal(t, Running, v.State)
		require.Regexp(t, `^frozen: the host's disk is 97 % full and it was writing \d+ [kM]B/s; it goes on by itself below 90 %`, v.Reason)
		require.True(t, h.Runtime.Memory(h.uid(writer)).Frozen)
		_, err = h.get(writer, "/notes")
		require.ErrorContains(t, err, "frozen: the host's disk")
		require.True(t, fault.Is(err, fault.FailedPrecondition))
		require.NotEmpty(t, fault.HintOf(err))
		h.answers(idle)
		require.Empty(t, h.view(idle).Reason)
		h.refuses(writer, idle)
		d, err := h.m.Disk()
		require.NoError(t, err)
		require.Equal(t, FillFull, d.State)
		require.Equal(t, []string{writer}, d.Frozen)

		h.taken.Store(spaceMB - 70) // 93 %: not yet
		h.pass()
		require.True(t, h.sandbox(writer).still.Load())
		h.drain()
		h.remembers(writer, "kept")
		h.answers(writer)
		require.Empty(t, h.view(writer).Reason)
		require.EqualValues(t, 1, h.view(writer).Generation)
	})
}

func (h *host) view(name string) View {
	h.t.Helper()
	v, err := h.m.Get(name)
	require.NoError(h.t, err)
	return v
}

// refuses: what would make something new is refused, and what has been done is answered as before.
func (h *host) refuses(writer, idle string) {
	h.t.Helper()
	ctx := h.t.Context()
	_, err := h.m.Create(ctx, Operation{ID: "new"}, request(id("n")), nil)
	h.exhausted(err)
	_, err = h.m.Create(ctx, Operation{ID: "create-" + idle}, request(idle), nil)
	require.NoError(h.t, err)
	for _, name := range []string{writer, idle} {
		_, _, err = h.m.CreateSnapshot(ctx, Operation{}, name, id("s"))
		h.exhausted(err)
		_, err = h.m.Fork(ctx, Operation{}, name, ForkRequest{Forks: []Fork{{ID: id("f")}}})
		h.exhausted(err)
		_, _, err = h.m.CreateTemplate(ctx, Operation{}, TemplateRequest{Name: "made", Sandbox: name}, func(string, string) {})
		h.exhausted(err)
	}
	require.Len(h.t, h.m.List(), 2)
	require.Empty(h.t, h.stages())
}

func (h *host) exhausted(err error) {
	h.t.Helper()
	require.ErrorContains(h.t, err, "the host's disk is 97 % full")
	require.Equal(h.t, fault.ResourceExhausted, fault.KindOf(err))
	require.Contains(h.t, fault.HintOf(err), "roost rm")
}

// A frozen sandbox can be paused, resumed, removed; the reserve is for that.
func TestAFrozenSandboxIsPaused(t *testing.T) {
	for _, diskOnly := range []bool{false, true} {
		t.Run(fmt.Sprint("disk only ", diskOnly), func(t *testing.T) {
			onEach(t, func(t *testing.T, h *host) {
				a := id("a")
				h.create(a)
				h.Runtime.Note(h.uid(a), "kept")
				soon(t, "the reserve is made", func() bool { h.pass(); return h.m.reserved() >= 1<<20 })
				h.fill(a)
				h.Runtime.On("capture", func(context.Context) error {
					require.Zero(t, h.m.reserved(), "it is given back before")
					return nil
				})
				_, err := h.m.Pause(t.Context(), Operation{}, a, PauseOptions{Reason: "test", DiskOnly: diskOnly})
				require.NoError(t, err)
				require.Equal(t, "test", h.view(a).Reason)
				require.Nil(t, h.sandbox(a).journal().Held)
				h.pass()
				require.Zero(t, h.m.reserved(), "there is no room for it")
				if !diskOnly {
					h.resume(a)
					h.remembers(a, "kept")
				}
				h.drain()
				soon(t, "the reserve is made again", func() bool { h.pass(); return h.m.reserved() >= 1<<20 })
				h.destroy(a)
				h.empty()
			})
		})
	}
}

// A pause that does not fit leaves it frozen, and it goes on later.
func TestAPauseThatDoesNotFit(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.Note(h.uid(a), "kept")
		h.fill(a)
		h.Runtime.Fail("capture", 1, &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC})
		_, err := h.m.Pause(t.Context(), Operation{}, a, PauseOptions{})
		require.Equal(t, fault.ResourceExhausted, fault.KindOf(err))
		require.Contains(t, fault.HintOf(err), "stays frozen")
		require.Contains(t, h.view(a).Reason, "frozen: ")
		require.Equal(t, Running, h.state(a))
		h.drain()
		h.remembers(a, "kept")
		h.answers(a)
	})
}

// Idle and killed ones end as others do.
func TestAFrozenSandboxIsIdleOrKilled(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a, b := id("a"), id("b")
		for _, name := range []string{a, b} {
			req := request(name)
			req.IdleTimeout = time.Hour
			_, err := h.m.Create(t.Context(), Operation{}, req, nil)
			require.NoError(t, err)
		}
		h.fill(a)
		h.fill(b)
		h.Runtime.Kill(h.uid(b), "gone")
		soon(t, "failed", func() bool { return h.state(b) == Failed })
		require.Equal(t, "gone", h.view(b).Reason)
		h.later.Store(int64(2 * time.Hour))
		require.NoError(t, h.m.pauseIdle(t.Context()))
		require.Equal(t, Paused, h.state(a))
	})
}

// The next agent holds it on, or lets it go; a guest that did not answer is held by its machine.
func TestTheNextAgentKnowsWhoIsFrozen(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.Note(h.uid(a), "kept")
		h.fill(a)
		h.restart()
		soon(t, "it is frozen again", func() bool { h.pass(); return h.sandbox(a).still.Load() })
		_, err := h.get(a, "/notes")
		require.ErrorContains(t, err, "frozen: ")
		h.stop()
		h.taken.Store(0)
		h.Connect()
		h.start()
		h.drain()
		h.remembers(a, "kept")
		h.answers(a)
	})
}

func TestAGuestThatDoesNotAnswerIsFrozenToo(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.Note(h.uid(a), "kept")
		apart := h.Runtime.Capabilities().FreezesGuest
		if apart {
			h.Runtime.Fail("guest.freeze", 1000, silent)
		} else {
			h.Runtime.Fail("guest.freeze", 2, silent) // nothing else can hold it: it is asked again
		}
		h.fill(a)
		h.Runtime.On("guest.freeze", nil)
		require.Equal(t, !apart, h.sandbox(a).journal().Held.Quiesced)
		h.pause(a) // for which its processes are held now
		h.resume(a)
		h.remembers(a, "kept")
	})
}

// A guest that does not thaw is asked again, as after a snapshot.
func TestAFrozenSandboxWhoseGuestIsSlow(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.Note(h.uid(a), "kept")
		h.fill(a)
		h.Runtime.Fail("guest.thaw", 4, silent)
		h.drain()
		h.remembers(a, "kept")
		h.answers(a)
	})
}

func TestDiskStates(t *testing.T) {
	t.Parallel()
	l := DefaultDiskLimits
	was := FillOK
	for _, step := range []struct {
		percent float64
		want    Fill
	}{{79, FillOK}, {80, FillFilling}, {79, FillFilling}, {77, FillOK}, {94.9, FillFilling}, {95, FillFull}, {90, FillFull},
		{89.9, FillFilling}, {96, FillFull}, {50, FillOK}} {
		was = l.after(was, step.percent)
		require.Equal(t, step.want, was, "%v %%", step.percent)
	}
	require.EqualValues(t, 1<<30, l.reserveFor(1<<40))
	require.EqualValues(t, 64<<20, l.reserveFor(2<<30))
	require.EqualValues(t, 50<<20, l.reserveFor(1000<<20))
	require.Equal(t, lookSeldom, lookAgain(Disk{State: FillOK, Limits: l}, time.Millisecond))
	require.Equal(t, lookWarned, lookAgain(Disk{State: FillFilling, UsedPercent: 81, Limits: l}, time.Millisecond))
	require.Equal(t, lookClose, lookAgain(Disk{State: FillFilling, UsedPercent: 91, Limits: l}, time.Millisecond))
	require.Equal(t, time.Second, lookAgain(Disk{Space: Space{Total: 8e9}, UsedPercent: 40, Limits: l}, 0), "a small disk")
	require.Equal(t, lookSeldom, lookAgain(Disk{Space: Space{Total: 1e12}, UsedPercent: 40, Limits: l}, 0))
	require.Equal(t, 400*time.Millisecond, lookAgain(Disk{State: FillFull, UsedPercent: 91, Limits: l}, 20*time.Millisecond))
}

// As many as make up most of it, fastest first; none that did not write.
func TestTheFastestAreFrozenFirst(t *testing.T) {
	t.Parallel()
	s := func(n int64) writer { return writer{grown: n << 20} }
	require.Equal(t, []writer{s(100)}, fastest([]writer{s(2), s(100), s(0)}, 1<<20))
	require.Equal(t, []writer{s(60), s(50)}, fastest([]writer{s(50), s(60), s(5)}, 1<<20))
	require.Empty(t, fastest([]writer{s(0), {grown: 4096}}, 1<<20))
	require.Len(t, fastest([]writer{{grown: 4096}}, leastGrowth(99.5)), 1)
	g := growth{}
	box := &Sandbox{}
	at := time.Now()
	require.Zero(t, g.add(box, at, 100).grown)
	require.EqualValues(t, 50, g.add(box, at.Add(500*time.Millisecond), 150).grown)
	w := g.add(box, at.Add(2*time.Second), 150)
	require.Zero(t, w.grown, "the window has moved")
	require.Zero(t, g.add(box, at.Add(3*time.Second), 10).grown, "it shrank")
	require.Equal(t, quiesceLeast, quiesceFor(Disk{Space: Space{Free: 1 << 20}}, 1e9))
	require.Equal(t, quiesceMost, quiesceFor(Disk{Space: Space{Free: 1 << 40}}, 1e6))
}

// That it stood still before it was paused says nothing of it once it was resumed.
func TestAResumedWriterIsFrozenAnew(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.fill(a)
		h.pause(a)
		h.resume(a)
		var frozen atomic.Int32
		h.Runtime.On("freeze", func(context.Context) error {
			if frozen.Add(1) == 1 {
				return silent
			}
			return nil
		})
		soon(t, "it is tried until it has worked", func() bool {
			h.pass()
			h.write(a, 2)
			return frozen.Load() > 1
		})
	})
}

// How long a guest may take to go on is reckoned from the last time that it was frozen.
func TestASlowGuestThatIsFrozenAgain(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.Note(h.uid(a), "kept")
		h.fill(a)
		h.Runtime.Fail("guest.thaw", 1000, silent)
		h.taken.Store(0)
		soon(t, "it does not answer", func() bool { h.pass(); return !h.sandbox(a).journal().Unthawed.IsZero() })
		h.fill(a)
		h.later.Store(int64(2 * thawPatience))
		h.Runtime.Fail("guest.thaw", thawTries, silent)
		h.drain()
		h.remembers(a, "kept")
		h.answers(a)
	})
}

// On a disk that takes no journal a dead one's reason is that of its death.
func TestAFrozenSandboxDiesUnwritten(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.fill(a)
		defer h.unwritable(a)()
		h.Runtime.Kill(h.uid(a), "gone")
		soon(t, "failed", func() bool { return h.state(a) == Failed })
		require.Equal(t, "gone", h.view(a).Reason)
		d, err := h.m.Disk()
		require.NoError(t, err)
		require.Empty(t, d.Frozen)
	})
}

// Where the disk had no room for the note that it is frozen, the next agent lets it go all the same.
func TestAFreezeThatIsNotWrittenDown(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.Note(h.uid(a), "kept")
		writable := h.unwritable(a)
		h.fill(a)
		h.stop()
		writable()
		h.taken.Store(0)
		h.Connect()
		h.start()
		h.remembers(a, "kept")
		h.answers(a)
	})
}

// A journal without room gets a little of the reserve: the rest stays for the pause.
func TestAJournalGetsLittleOfTheReserve(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.taken.Store(spaceMB) // nothing is put back
	path := h.Data.Reserve()
	require.NoError(t, allocate(path, 3*noteRoom))
	before := h.m.reserved()
	require.NoError(t, h.m.lendReserve())
	require.Equal(t, before-noteRoom, h.m.reserved())
	for range 5 {
		require.NoError(t, h.m.lendReserve())
	}
	require.Zero(t, h.m.reserved(), "there is no more than there is")
}
