package devicemapper_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestProbeLeavesNothing(t *testing.T) {
	t.Parallel()
	d := newDriver(t, "pro1")
	dir := t.TempDir()
	for range 3 {
		require.NoError(t, d.Probe(t.Context(), dir))
	}
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
	census(t, d)
	require.Error(t, d.Probe(t.Context(), dir+"/none"))
	census(t, d)
}
