package sandbox

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
)

var defaultSize = runtime.Resources{VCPUs: DefaultVCPUs, MemoryMB: DefaultMemoryMB, DiskSizeMB: DefaultDiskSizeMB}

// hang opens a request that the guest never ends.
func (h *host) hang(name string) (ended chan error, release func()) {
	h.t.Helper()
	g, err := h.m.Guest(name, "reach")
	require.NoError(h.t, err)
	req, err := http.NewRequestWithContext(h.t.Context(), http.MethodGet, "http://guest/hang", nil)
	require.NoError(h.t, err)
	resp, err := g.Transport.RoundTrip(req) //nolint:bodyclose // closed below, behind Watch
	require.NoError(h.t, err)
	body := g.Watch(resp.Body)
	ended = make(chan error, 1)
	go func() {
		_, err := body.Read(make([]byte, 1))
		_ = body.Close()
		ended <- err
	}()
	return ended, g.Release
}

// Whatever ends a sandbox ends the requests to it at once: a guest that is gone says nothing.
func TestRequestsEndWithTheSandbox(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*host){
		"pause":   func(h *host) { h.pause(id("a")) },
		"destroy": func(h *host) { h.destroy(id("a")) },
		"death":   func(h *host) { h.Runtime.Kill(h.uid(id("a")), "killed by signal 9") },
		"agent":   func(h *host) { h.stop() },
	} {
		t.Run(name, func(t *testing.T) {
			onEach(t, func(t *testing.T, h *host) {
				h.create(id("a"))
				ended, release := h.hang(id("a"))
				defer release()
				end(h)
				select {
				case err := <-ended:
					require.Error(t, err)
				case <-time.After(5 * time.Second):
					t.Fatal("the request hangs")
				}
			})
		})
	}
}

func TestDeathIsNoticed(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.Kill(h.uid(a), "killed by signal 9")
		soon(t, "the sandbox is failed", func() bool { return h.state(a) == Failed })
		v, err := h.m.Get(a)
		require.NoError(t, err)
		require.Equal(t, "killed by signal 9", v.Reason)
		require.EqualValues(t, 2, v.Generation)
		soon(t, "its slot is given back", func() bool { return len(h.Slots()) == 0 })
		_, err = h.m.Guest(a, "reach")
		require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
		require.Equal(t, err.Error(), h.m.Reachable(a, "reach").Error())
		h.destroy(a)

		// One that dies while it is being handed its identity says why, not "canceled".
		h.Runtime.On("guest.restore", func(context.Context) error {
			for _, uid := range h.Runtime.Running() {
				go h.Runtime.Kill(uid, "guest panicked")
			}
			return errors.New("too late")
		})
		_, err = h.m.Create(t.Context(), Operation{}, request(id("b")), nil)
		require.ErrorContains(t, err, "create sandbox")
		require.NotEqual(t, fault.Canceled, fault.KindOf(err))
		h.empty()
	})
}

// A death during a pause is the reason that the sandbox is failed for.
func TestDeathDuringAPause(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.On("capture", func(ctx context.Context) error {
			h.Runtime.Kill(h.uid(a), "killed by signal 9")
			<-ctx.Done()
			return ctx.Err()
		})
		_, err := h.m.Pause(t.Context(), Operation{}, a, PauseOptions{Reason: "test"})
		require.ErrorContains(t, err, "killed by signal 9")
		require.Equal(t, Failed, h.state(a))
		require.Contains(t, h.sandbox(a).journal().Reason, "killed by signal 9")
		require.Empty(t, h.Slots())
	})
}

func (h *host) tick() { require.NoError(h.t, h.m.pauseIdle(h.t.Context())) }

func TestIdleSandboxesPause(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		req := request(a)
		req.IdleTimeout = time.Hour
		_, err := h.m.Create(t.Context(), Operation{}, req, nil)
		require.NoError(t, err)
		h.Runtime.Quiet(h.uid(a), 100*time.Hour)
		ended, release := h.hang(a)
		h.later.Store(int64(2 * time.Hour))
		h.tick()
		require.Equal(t, Running, h.state(a), "a request in flight is activity, however quiet")
		release()
		h.tick()
		require.Equal(t, Running, h.state(a), "and so is its end")
		h.Runtime.Quiet(h.uid(a), time.Minute)
		h.later.Store(int64(4 * time.Hour))
		h.tick()
		require.Equal(t, Running, h.state(a), "the guest saw output that nobody read")
		h.Runtime.Quiet(h.uid(a), 100*time.Hour)
		h.later.Store(int64(6 * time.Hour))
		h.tick()
		require.Equal(t, Paused, h.state(a))
		require.Error(t, wait(t, ended))
		require.Equal(t, "idle for 1h0m0s", h.sandbox(a).journal().Reason)
		never := time.Duration(0)
		_, err = h.m.Resume(t.Context(), Operation{}, a, ResumeOptions{Idle: &never})
		require.NoError(t, err)
		h.Runtime.Quiet(h.uid(a), 100*time.Hour)
		h.later.Store(int64(100 * time.Hour))
		h.tick()
		require.Equal(t, Running, h.state(a), "0 is never")
	})
}

// A request that comes between the look and the pause is not cut off.
func TestIdlePauseLooksAgain(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		_, err := h.m.pauseIf(t.Context(), Operation{}, a, PauseOptions{}, func(s *Sandbox) bool { return s.inFlight != 0 })
		require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
		h.answers(a)
		require.EqualValues(t, 1, h.sandbox(a).journal().Generation)
	})
}

// What could not be paused is not tried again at every tick.
func TestAFailedIdlePauseWaitsForTheNextTimeout(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		req := request(a)
		req.IdleTimeout = time.Hour
		_, err := h.m.Create(t.Context(), Operation{}, req, nil)
		require.NoError(t, err)
		h.Runtime.Quiet(h.uid(a), 100*time.Hour)
		h.Runtime.Fail("capture", 1, errors.New("broken on purpose"))
		h.later.Store(int64(2 * time.Hour))
		require.ErrorContains(t, h.m.pauseIdle(t.Context()), "broken on purpose")
		h.tick()
		require.Equal(t, Running, h.state(a))
		h.later.Store(int64(4 * time.Hour))
		h.tick()
		require.Equal(t, Paused, h.state(a))
	})
}

// Requests that fail leave no trace that keeps a sandbox awake.
func TestReachableCountsNothing(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		h.create(id("a"))
		require.NoError(t, h.m.Reachable(id("a"), "reach"))
		require.Zero(t, h.sandbox(id("a")).inFlight)
		require.Equal(t, fault.NotFound, fault.KindOf(h.m.Reachable(id("b"), "reach")))
	})
}
