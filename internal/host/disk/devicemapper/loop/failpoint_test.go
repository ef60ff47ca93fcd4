//go:build failpoints

package loop

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A kernel that fails at one step. Not parallel: the environment is shared.

func TestFailedStepsLeaveNothing(t *testing.T) {
	r, path := newRegistry(t), file(t, 1<<20)
	t.Setenv("ROOST_FAILPOINTS", "devicemapper.loop.attach=error")
	_, err := r.Acquire(t.Context(), path, true)
	require.ErrorContains(t, err, "failpoint")
	require.Empty(t, r.files)

	t.Setenv("ROOST_FAILPOINTS", "devicemapper.loop.capacity=error")
	ref := acquire(t, r, path, false)
	require.NoError(t, os.Truncate(path, 2<<20))
	require.ErrorContains(t, r.SetCapacity(ref), "failpoint")
	require.EqualValues(t, 1<<20, size(t, ref.Path))

	for _, step := range []string{"devicemapper.sparse.truncate", "devicemapper.sparse.close"} {
		t.Setenv("ROOST_FAILPOINTS", step+"=error")
		sparse := filepath.Join(t.TempDir(), "sparse")
		require.ErrorContains(t, CreateSparse(sparse, 1<<20, 0o600), "failpoint")
		require.NoFileExists(t, sparse)
	}
	t.Setenv("ROOST_FAILPOINTS", "")
}
