//go:build failpoints

package network

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/failpoint"
)

// A slot that fails half made leaves nothing, and its number to the next.
func TestHalfMadeSlotIsUndone(t *testing.T) { //nolint:paralleltest // sets the environment
	require.True(t, failpoint.Enabled)
	for _, point := range []string{"network.make.namespace", "network.make.wired"} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t)
			opt := w.options()
			opt.PoolSize = -1
			m := w.manager(opt)
			before := w.census()
			t.Setenv("ROOST_FAILPOINTS", point+"=error")
			_, err := m.Acquire(t.Context(), "sb1")
			require.ErrorContains(t, err, "failpoint "+point)
			require.Equal(t, before, w.census())
			t.Setenv("ROOST_FAILPOINTS", "")
			s, err := m.Acquire(t.Context(), "sb1")
			require.NoError(t, err)
			require.Equal(t, 1, s.Index())
			require.NoError(t, m.Release(t.Context(), s))
		})
	}
}
