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
	for _, c := range []struct {
		point string
		kind  PortKind
	}{
		{"network.make.named", Tap}, {"network.make.namespace", Tap}, {"network.make.wired", Tap},
		{"network.make.named", Veth}, {"network.make.far", Veth}, {"network.make.namespace", Veth},
		{"network.make.veth", Veth}, {"network.make.wired", Veth},
	} {
		t.Run(c.point+" "+string(c.kind), func(t *testing.T) {
			w := newWorld(t)
			opt := w.options()
			opt.PoolSize = -1
			m := w.manager(opt)
			before := w.census()
			t.Setenv("ROOST_FAILPOINTS", c.point+"=error")
			_, err := m.Acquire(t.Context(), "sb1", c.kind)
			require.ErrorContains(t, err, "failpoint "+c.point)
			require.Empty(t, namespacesOf(opt.Installation))
			require.Equal(t, before, w.census())
			t.Setenv("ROOST_FAILPOINTS", "")
			s, err := m.Acquire(t.Context(), "sb1", c.kind)
			require.NoError(t, err)
			require.Equal(t, 1, s.Index())
			require.NoError(t, m.Release(t.Context(), s))
		})
	}
}
