package undo

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRollbackRunsEveryStepInReverse(t *testing.T) {
	t.Parallel()
	var s Stack
	var ran []string
	one, two := errors.New("one"), errors.New("two")
	step := func(name string, err error) {
		s.Push(name, func(context.Context) error {
			ran = append(ran, name)
			return err
		})
	}
	step("a", one)
	step("b", nil)
	step("c", two)
	err := s.Rollback(t.Context())
	require.Equal(t, []string{"c", "b", "a"}, ran)
	require.ErrorIs(t, err, one)
	require.ErrorIs(t, err, two)
	require.EqualError(t, err, "undo c: two\nundo a: one")
	require.NoError(t, s.Rollback(t.Context()), "once")
	require.Len(t, ran, 3)
}

func TestDiscard(t *testing.T) {
	t.Parallel()
	var s Stack
	s.Push("a", func(context.Context) error { return errors.New("ran") })
	s.Discard()
	require.NoError(t, s.Rollback(t.Context()))
}

type key struct{}

func TestRollbackOutlivesTheCaller(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "kept"))
	cancel()
	var s Stack
	s.Push("a", func(ctx context.Context) error {
		deadline, bounded := ctx.Deadline()
		require.True(t, bounded)
		require.WithinDuration(t, time.Now().Add(Timeout), deadline, time.Second)
		require.Equal(t, "kept", ctx.Value(key{}))
		return ctx.Err()
	})
	require.NoError(t, s.Rollback(ctx))
}
