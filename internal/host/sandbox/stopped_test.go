package sandbox

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
)

const stoppedByASignal = "its process was stopped by a signal"

// A sandbox whose process is stopped does not go on, and is failed for it.
func TestAStoppedProcessIsNoticed(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a, b := id("a"), id("b")
		h.create(a)
		h.create(b)
		h.Runtime.Halt(h.uid(a), stoppedByASignal)
		soon(t, "the sandbox is failed", func() bool { return h.state(a) == Failed })
		v, err := h.m.Get(a)
		require.NoError(t, err)
		require.Equal(t, stoppedByASignal, v.Reason)
		require.EqualValues(t, 2, v.Generation)
		soon(t, "what it held is given back", func() bool { return len(h.Slots()) == 1 && len(h.Runtime.Running()) == 1 })
		log, err := h.m.Console(a)
		require.NoError(t, err)
		require.NotEmpty(t, log)
		h.answers(b)
		h.destroy(a)
		h.destroy(b)
		h.empty()
	})
}

// Whoever waits for an answer of it meanwhile is told why there is none.
func TestAProcessStoppedDuringAPause(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.On("capture", func(ctx context.Context) error {
			h.Runtime.Halt(h.uid(a), stoppedByASignal)
			<-ctx.Done()
			return ctx.Err()
		})
		_, err := h.m.Pause(t.Context(), Operation{}, a, PauseOptions{})
		require.Equal(t, fault.Internal, fault.KindOf(err))
		require.ErrorContains(t, err, stoppedByASignal)
		soon(t, "it is failed", func() bool { return h.state(a) == Failed })
		require.Contains(t, h.sandbox(a).journal().Reason, stoppedByASignal)
		soon(t, "and holds nothing", func() bool { return len(h.Slots()) == 0 && len(h.Runtime.Running()) == 0 })
	})
}

// traced is an instance whose process is seen stopped at every other look, as one is that is
// traced; after some looks it ends.
type traced struct {
	runtime.Instance
	looks  int
	exited chan struct{}
}

func (i *traced) Exited() <-chan struct{} { return i.exited }

func (i *traced) Stopped() string {
	i.looks++
	if i.looks == 6 {
		close(i.exited)
	}
	return map[bool]string{true: "its process is held by a debugger"}[i.looks%2 == 1]
}

func TestATracedProcessIsNotStopped(t *testing.T) {
	t.Parallel()
	in := &traced{exited: make(chan struct{})}
	m := &Manager{}
	require.Empty(t, m.untilDead(in))
	require.Equal(t, 6, in.looks)
}
