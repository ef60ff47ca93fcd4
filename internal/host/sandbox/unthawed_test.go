package sandbox

import (
	"errors"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
)

// silent is what is heard of a guest that is too busy to answer.
var silent = connect.NewError(connect.CodeUnavailable, errors.New("no answer"))

// slowly takes a sandbox into a state that it cannot leave, since its guest does not thaw, and
// says which.
type slowly func(h *host, name string) State

var slowlies = map[string]slowly{
	"snapshot": func(h *host, name string) State {
		_, _, err := h.m.CreateSnapshot(h.t.Context(), Operation{}, name, id("s"))
		require.ErrorContains(h.t, err, "does not answer")
		require.NotEmpty(h.t, fault.HintOf(err))
		require.Empty(h.t, h.stages())
		return Snapshotting
	},
	"pause": func(h *host, name string) State {
		_, err := h.m.Pause(h.t.Context(), Operation{}, name, PauseOptions{})
		require.ErrorContains(h.t, err, "does not answer")
		require.NotEmpty(h.t, fault.HintOf(err))
		return Pausing
	},
}

// onSlow runs a test on a sandbox whose guest did not answer when it should have been thawed.
func onSlow(t *testing.T, test func(t *testing.T, h *host, name string, state State)) {
	t.Helper()
	t.Parallel()
	for op, become := range slowlies {
		t.Run(op, func(t *testing.T) {
			onEach(t, func(t *testing.T, h *host) {
				a := id("a")
				h.create(a)
				h.Runtime.Note(h.uid(a), "kept")
				h.Runtime.Fail("capture", 1, errors.New("capture broken"))
				h.Runtime.Fail("guest.thaw", 1000, silent)
				state := become(h, a)
				require.Equal(t, state, h.state(a))
				require.Len(t, h.Runtime.Running(), 1)
				test(t, h, a, state)
			})
		})
	}
}

// A guest that is short of memory is not killed for being slow: it is thawed once it answers.
func TestASlowGuestIsNotEnded(t *testing.T) {
	onSlow(t, func(t *testing.T, h *host, a string, state State) {
		h.later.Store(int64(2 * time.Minute))
		require.Error(t, h.m.collect(t.Context()))
		require.Equal(t, state, h.state(a), "the collector tried, in vain")
		h.Runtime.On("guest.thaw", nil)
		require.NoError(t, h.m.collect(t.Context()))
		require.Equal(t, Running, h.state(a))
		h.remembers(a, "kept")
		require.Empty(t, h.files("sandboxes/*/captures/.tmp*"))
		require.EqualValues(t, 1, h.sandbox(a).journal().Generation)

		// The next time begins anew.
		h.later.Store(int64(20 * time.Minute))
		h.Runtime.Fail("capture", 1, errors.New("capture broken"))
		h.Runtime.Fail("guest.thaw", 1000, silent)
		require.Equal(t, state, slowlies[map[State]string{Snapshotting: "snapshot", Pausing: "pause"}[state]](h, a))
		h.Runtime.On("guest.thaw", nil)
		h.pause(a)
		h.resume(a)
		h.remembers(a, "kept")
	})
}

// Whoever wants something of it meanwhile is told; it can be destroyed, and the next agent goes on.
func TestASlowGuestOfTheNextAgent(t *testing.T) {
	onSlow(t, func(t *testing.T, h *host, a string, state State) {
		_, err := h.m.SetIdleTimeout(t.Context(), Operation{}, a, time.Hour)
		require.ErrorContains(t, err, "does not answer")
		h.later.Store(int64(20 * time.Minute))
		h.restart()
		require.Equal(t, state, h.state(a), "and has as long again")
		h.Runtime.On("guest.thaw", nil)
		_, err = h.m.SetIdleTimeout(t.Context(), Operation{}, a, time.Hour)
		require.NoError(t, err)
		require.Equal(t, Running, h.state(a))
		h.remembers(a, "kept")
		h.destroy(a)
		h.empty()
	})
}

// One that never answers again is no zombie for ever; its disk stays.
func TestAGuestThatNeverThaws(t *testing.T) {
	onSlow(t, func(t *testing.T, h *host, a string, _ State) {
		h.later.Store(int64(6 * time.Minute))
		require.Error(t, h.m.collect(t.Context()))
		require.Equal(t, Failed, h.state(a))
		require.Contains(t, h.sandbox(a).journal().Reason, "no answer")
		require.Empty(t, h.Runtime.Running())
		require.Empty(t, h.Slots())
		require.Len(t, h.files("sandboxes/*/disk/live-0"), 1)
		h.noLeaks()
	})
}

// One that ends meanwhile is failed at once, with the reason.
func TestASlowGuestThatEnds(t *testing.T) {
	onSlow(t, func(t *testing.T, h *host, a string, _ State) {
		h.Runtime.Kill(h.uid(a), "out of memory")
		soon(t, "it is failed", func() bool { return h.state(a) == Failed })
		require.Contains(t, h.sandbox(a).journal().Reason, "out of memory")
		soon(t, "and holds nothing", func() bool { return len(h.Slots()) == 0 })
		h.destroy(a)
		h.empty()
	})
}

// What a guest does not say does not make it idle.
func TestAGuestThatDoesNotAnswerIsNotIdle(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		req := request(a)
		req.IdleTimeout = time.Hour
		_, err := h.m.Create(t.Context(), Operation{}, req, nil)
		require.NoError(t, err)
		h.Runtime.Quiet(h.uid(a), 100*time.Hour)
		h.Runtime.Fail("guest.stats", 1, silent)
		h.later.Store(int64(2 * time.Hour))
		require.ErrorContains(t, h.m.pauseIdle(t.Context()), "no answer")
		require.Equal(t, Running, h.state(a))
		h.tick()
		require.Equal(t, Running, h.state(a), "it is not asked again at once")
		h.later.Store(int64(4 * time.Hour))
		h.tick()
		require.Equal(t, Paused, h.state(a))
	})
}
