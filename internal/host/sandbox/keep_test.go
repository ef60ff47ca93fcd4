package sandbox

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
)

// A template that fails takes back the save that it made, and no other.
func TestAFailedTemplateLeavesAnEarlierSnapshot(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a, old, kept := id("a"), id("s"), id("t")
		h.create(a)
		h.snapshot(a, old)
		for _, req := range []TemplateRequest{
			{Name: "made", Sandbox: a, Keep: old}, {Name: "made", Sandbox: a, Keep: kept}, {Name: "made", Snapshot: old, Keep: kept},
		} {
			_, _, err := h.m.CreateTemplate(t.Context(), Operation{}, req, func(string, string) {})
			require.Error(t, err, "the fake's guest gives out no files")
		}
		_, err := h.m.Snapshot(old)
		require.NoError(t, err)
		_, err = h.m.Snapshot(kept)
		require.Equal(t, fault.NotFound, fault.KindOf(err))
	})
}
