package sandbox

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/sandbox/sandboxtest"
)

// Delete is legal from every state, and cancels what is under way.
func TestDestroyInterrupts(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		step   string
		before func(*host)
		during func(*host) error
	}{
		"create": {"restore", func(*host) {}, func(h *host) error {
			_, err := h.m.Create(h.t.Context(), Operation{}, request(id("a")), nil)
			return err
		}},
		"pause": {"capture", func(h *host) { h.create(id("a")) }, func(h *host) error {
			_, err := h.m.Pause(h.t.Context(), Operation{}, id("a"), PauseOptions{Reason: "test"})
			return err
		}},
		"resume": {"restore", func(h *host) { h.create(id("a")); h.pause(id("a")) }, func(h *host) error {
			_, err := h.m.Resume(h.t.Context(), Operation{}, id("a"), ResumeOptions{})
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			onEach(t, func(t *testing.T, h *host) {
				require.NoError(t, h.m.Warm(t.Context(), sandboxtest.Template, defaultSize))
				c.before(h)
				step, arrived, _ := arrival()
				h.Runtime.On(c.step, step)
				errs := make(chan error)
				go func() { errs <- c.during(h) }()
				wait(t, arrived)
				gone := make(chan error)
				go func() { gone <- h.m.Destroy(t.Context(), Operation{}, id("a")) }()
				err := wait(t, errs)
				require.Equal(t, fault.Aborted, fault.KindOf(err), "%v", err)
				require.ErrorContains(t, err, "being destroyed")
				require.NoError(t, wait(t, gone))
				h.empty()
			})
		})
	}
}

// What is past its commit completes before a Destroy; what waits for the gate gives up.
func TestDestroyAfterTheCommit(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		step, arrived, leave := arrival()
		h.Runtime.On("stop", step)
		paused, resumed, gone := make(chan error), make(chan error), make(chan error)
		go func() {
			_, err := h.m.Pause(t.Context(), Operation{}, a, PauseOptions{Reason: "test"})
			paused <- err
		}()
		wait(t, arrived)
		go func() {
			_, err := h.m.Resume(t.Context(), Operation{}, a, ResumeOptions{})
			resumed <- err
		}()
		go func() { gone <- h.m.Destroy(t.Context(), Operation{}, a) }()
		soon(t, "the destroy waits", func() bool {
			s := h.sandbox(a)
			s.mu.RLock()
			defer s.mu.RUnlock()
			return s.doomed == 1
		})
		close(leave)
		require.NoError(t, wait(t, paused), "a committed pause completes")
		err := wait(t, resumed)
		require.True(t, fault.Is(err, fault.Aborted) || fault.Is(err, fault.NotFound), "%v", err)
		require.NoError(t, wait(t, gone))
		h.empty()
	})
}

// A destroy that an older generation asks for interrupts nothing.
func TestStaleDestroyInterruptsNothing(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.pause(a)
		step, arrived, leave := arrival()
		h.Runtime.On("restore", step)
		resumed := make(chan error)
		go func() {
			_, err := h.m.Resume(t.Context(), Operation{}, a, ResumeOptions{})
			resumed <- err
		}()
		wait(t, arrived)
		err := h.m.Destroy(t.Context(), Operation{Generation: 1}, a)
		require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
		close(leave)
		require.NoError(t, wait(t, resumed))
		h.answers(a)
	})
}

// What of a sandbox will not die keeps it from being forgotten; the next destroy ends it.
func TestDestroyIsTriedAgain(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		for _, step := range []string{"stop", "discard"} {
			h.Runtime.Fail(step, 1, errors.New("it does not die"))
			require.ErrorContains(t, h.m.Destroy(t.Context(), Operation{}, a), "it does not die")
			require.Equal(t, Destroying, h.state(a))
			require.Len(t, h.Slots(), 1)
			require.NotZero(t, h.uid(a))
		}
		_, err := h.m.Guest(a, "reach")
		require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
		_, err = h.m.Pause(t.Context(), Operation{}, a, PauseOptions{Reason: "test"})
		require.Equal(t, fault.NotFound, fault.KindOf(err), "whoever comes next finishes it")
		h.empty()

		// A create that cannot be undone is one that is being destroyed; the collector ends it.
		h.Runtime.Fail("guest.restore", 1, errors.New("broken"))
		h.Runtime.Fail("stop", 1, errors.New("it does not die"))
		_, err = h.m.Create(t.Context(), Operation{}, request(a), nil)
		require.ErrorContains(t, err, "it does not die")
		require.Equal(t, Destroying, h.state(a))
		require.Len(t, h.Slots(), 1)
		require.NoError(t, h.m.collect(t.Context()))
		h.empty()
	})
}

// A full disk must not keep anybody from making space.
func TestDestroyWithoutSpaceForTheJournal(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		_ = h.unwritable(a)
		h.destroy(a)
		h.empty()
	})
}

// An agent that stops undoes what is under way and waits for it; the sandboxes run on.
func TestStopWaitsForOperations(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a, b, c := id("a"), id("b"), id("c")
		h.create(a)
		h.create(b)
		h.pause(b)
		pausing, inPause, _ := arrival()
		h.Runtime.On("capture", pausing)
		starting, inStart, _ := arrival()
		h.Runtime.On("restore", starting)
		errs := make(chan error, 2)
		go func() {
			_, err := h.m.Pause(t.Context(), Operation{}, a, PauseOptions{Reason: "test"})
			errs <- err
		}()
		go func() {
			_, err := h.m.Create(t.Context(), Operation{}, request(c), nil)
			errs <- err
		}()
		wait(t, inPause)
		wait(t, inStart)
		h.stop()
		for range 2 {
			err := wait(t, errs)
			require.Equal(t, fault.Unavailable, fault.KindOf(err), "%v", err)
			require.ErrorContains(t, err, "agent is stopping")
			require.NotEmpty(t, fault.HintOf(err))
		}
		require.Equal(t, Running, h.state(a))
		_, err := h.m.Resume(t.Context(), Operation{}, b, ResumeOptions{})
		require.Equal(t, fault.Unavailable, fault.KindOf(err))
		require.NoDirExists(t, h.Data.Sandbox(c).String())
		h.Connect()
		h.start()
		h.answers(a)
		h.resume(b)
		require.Len(t, h.m.List(), 2)
		h.destroy(a)
		h.destroy(b)
		h.empty()
	})
}

// The slot of the wait for it: a caller that gives up does not wait for the gate.
func TestWaitingForTheGateEndsWithTheCaller(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		step, arrived, leave := arrival()
		h.Runtime.On("capture", step)
		paused := make(chan error)
		go func() {
			_, err := h.m.Pause(t.Context(), Operation{}, a, PauseOptions{Reason: "test"})
			paused <- err
		}()
		wait(t, arrived)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		_, err := h.m.SetIdleTimeout(ctx, Operation{}, a, time.Hour)
		require.Equal(t, fault.DeadlineExceeded, fault.KindOf(err))
		close(leave)
		require.NoError(t, wait(t, paused))
	})
}

// A client that is gone before the commit undoes what it asked for; after it, nothing does.
func TestAClientThatCancels(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		step   string
		before func(*host)
		during func(context.Context, *host) error
		// ends is the state afterwards; done says that the operation succeeded all the same.
		ends State
		done bool
	}{
		"pause, freezing":  {"freeze", func(h *host) { h.create(id("a")) }, pauseOf, Running, false},
		"pause, capturing": {"capture", func(h *host) { h.create(id("a")) }, pauseOf, Running, false},
		"pause, committed": {"stop", func(h *host) { h.create(id("a")) }, pauseOf, Paused, true},
		"resume, starting": {"restore", func(h *host) { h.create(id("a")); h.pause(id("a")) }, resumeOf, Paused, false},
		"resume, greeting": {"thaw", func(h *host) { h.create(id("a")); h.pause(id("a")) }, resumeOf, Paused, false},
		"rescue, saving":   {"salvage", func(h *host) { h.create(id("a")); h.fails(id("a")) }, rescueOf, Failed, false},
		"rescue, starting": {"boot", func(h *host) { h.create(id("a")); h.fails(id("a")) }, rescueOf, Paused, false},
		"destroy":          {"stop", func(h *host) { h.create(id("a")) }, destroyOf, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			c.before(h)
			ctx, leave := context.WithCancel(t.Context())
			reached, proceed := make(chan struct{}), make(chan struct{})
			once := false
			h.Runtime.On(c.step, func(ctx context.Context) error {
				if once {
					return nil // of the undoing
				}
				once = true
				close(reached)
				<-proceed
				return ctx.Err()
			})
			errs := make(chan error)
			go func() { errs <- c.during(ctx, h) }()
			wait(t, reached)
			leave()
			close(proceed)
			err := wait(t, errs)
			if c.done {
				require.NoError(t, err, "it is not the caller's to stop any more")
			} else {
				require.Equal(t, fault.Canceled, fault.KindOf(err), "%v", err)
			}
			if c.ends == "" {
				h.empty()
				return
			}
			require.Equal(t, c.ends, h.state(id("a")))
			require.Empty(t, h.files("sandboxes/*/captures/.tmp*"))
			require.Equal(t, c.ends == Running, len(h.Runtime.Running()) == 1)
			require.Equal(t, c.ends == Running, len(h.Slots()) == 1)
			h.noLeaks()
			switch c.ends {
			case Paused:
				h.resume(id("a"))
			case Failed:
				h.resumeCold(id("a"))
			}
			h.answers(id("a"))
		})
	}
}

func pauseOf(ctx context.Context, h *host) error {
	_, err := h.m.Pause(ctx, Operation{}, id("a"), PauseOptions{})
	return err
}

func resumeOf(ctx context.Context, h *host) error {
	_, err := h.m.Resume(ctx, Operation{}, id("a"), ResumeOptions{})
	return err
}

func rescueOf(ctx context.Context, h *host) error {
	_, err := h.m.Resume(ctx, Operation{}, id("a"), cold)
	return err
}

func destroyOf(ctx context.Context, h *host) error { return h.m.Destroy(ctx, Operation{}, id("a")) }
