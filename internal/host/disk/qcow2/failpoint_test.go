//go:build failpoints

package qcow2_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/disk"
)

// A file system that fails at the last moment, by name. Not parallel: the environment is shared.

func TestFailedOpenLeavesNothing(t *testing.T) {
	base, dir := newBase(t), t.TempDir()
	t.Setenv("ROOST_FAILPOINTS", "qcow2.open.written=error")
	_, err := driver.Create(t.Context(), base, 8*mb, dir, 0)
	require.ErrorContains(t, err, "failpoint")
	require.Empty(t, filesIn(t, dir))
}

func TestFailedSealLeavesALiveDisk(t *testing.T) {
	live := create(t, 8*mb)
	t.Setenv("ROOST_FAILPOINTS", "qcow2.seal.sync=error")
	_, _, err := driver.Seal(t.Context(), live, 0, nil)
	require.ErrorContains(t, err, "failpoint")
	requireMode(t, live.Path, 0o600)

	// After a switch there is no way back: the next disk comes with the error.
	layer, next, err := driver.Seal(t.Context(), live, 1, func(context.Context, disk.Attachment) error { return nil })
	require.ErrorContains(t, err, "failpoint")
	require.Zero(t, layer)
	require.NotNil(t, next)
	require.Equal(t, live.Path, next.Stack.Layers[0].Path)

	t.Setenv("ROOST_FAILPOINTS", "")
	layer, _, err = driver.Seal(t.Context(), live, 0, nil)
	require.NoError(t, err)
	require.NotEmpty(t, layer.Sum)
	require.Equal(t, next.Stack.Layers[0], disk.Layer{Path: layer.Path, SizeBytes: layer.SizeBytes})
	requireMode(t, live.Path, 0o400)
}

func TestFailedPublishLeavesNothing(t *testing.T) {
	stack := seal(t, create(t, 8*mb))
	dir := t.TempDir()
	t.Setenv("ROOST_FAILPOINTS", "qcow2.publish.link=error")
	_, err := driver.Merge(t.Context(), disk.Stack{Base: stack.Base}, stack.Layers, filepath.Join(dir, "m"))
	require.ErrorContains(t, err, "failpoint")
	_, err = driver.Flatten(t.Context(), stack, filepath.Join(dir, "f"))
	require.ErrorContains(t, err, "failpoint")
	require.Empty(t, filesIn(t, dir))
}

func requireMode(t *testing.T, path string, mode os.FileMode) {
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, mode, st.Mode().Perm())
}
