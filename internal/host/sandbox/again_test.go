package sandbox

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
)

// A repeated create of what is being destroyed is not answered with that: the destroy is finished,
// and the create is one of an id that is free.
func TestCreateAgainOfWhatIsBeingDestroyed(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		first := h.create(a)
		h.Runtime.Fail("stop", 2, errors.New("it does not die"))
		require.Error(t, h.m.Destroy(t.Context(), Operation{}, a))
		require.Equal(t, Destroying, h.state(a))
		again := func() (View, error) {
			return h.m.Create(t.Context(), Operation{ID: "create-" + a}, request(a), nil)
		}
		_, err := again()
		require.ErrorContains(t, err, "it does not die")
		v, err := again()
		require.NoError(t, err)
		require.Equal(t, Running, v.State)
		require.True(t, v.CreatedAt.After(first.CreatedAt))
		h.answers(a)
		h.destroy(a)
		h.empty()
	})
}

// The same goes for a fork, which made it as a part of itself and is not repeated.
func TestForkAgainOfWhatIsBeingDestroyed(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a, b := id("a"), id("b")
		h.create(a)
		fork := func() (ForkResult, error) {
			return h.m.Fork(t.Context(), Operation{ID: "fork"}, a, ForkRequest{Forks: []Fork{{Operation: "1", ID: b}}})
		}
		_, err := fork()
		require.NoError(t, err)
		h.Runtime.Fail("stop", 1, errors.New("it does not die"))
		require.Error(t, h.m.Destroy(t.Context(), Operation{}, b))
		_, err = fork()
		require.Equal(t, fault.NotFound, fault.KindOf(err), "%v", err)
		require.Equal(t, Destroying, h.state(b))
		h.destroy(b)
		_, err = fork()
		require.Equal(t, fault.NotFound, fault.KindOf(err))
		h.answers(a)
	})
}

// A fork of a sandbox into itself is refused, and does not wait for the gate that it holds.
func TestForkIntoItself(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a, b := id("a"), id("b")
		h.create(a)
		errs := make(chan error)
		go func() {
			_, err := h.m.Fork(t.Context(), Operation{}, a, ForkRequest{Forks: []Fork{{ID: b}, {ID: a}}})
			errs <- err
		}()
		err := wait(t, errs)
		require.Equal(t, fault.Invalid, fault.KindOf(err), "%v", err)
		require.Len(t, h.m.List(), 1)
		h.answers(a)
	})
}
