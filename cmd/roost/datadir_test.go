package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Whatever links lead to it, an installation has one data directory, also before it is there.
func TestRealData(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "d-") //nolint:usetesting // short: sockets lie below it
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	dir, err = filepath.EvalSymlinks(dir)
	require.NoError(t, err)
	long := filepath.Join(dir, strings.Repeat("long", 20))
	for _, d := range []string{"real", long} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, strings.TrimPrefix(d, dir)), 0o700))
	}
	require.NoError(t, os.Symlink("real", filepath.Join(dir, "link")))
	require.NoError(t, os.Symlink(long, filepath.Join(dir, "short")))
	for given, want := range map[string]string{
		"real": "real", "link": "real", "link/new": "real/new", "link/new/deep": "real/new/deep",
		"new": "new", "short": "short", "real/../link": "real",
	} {
		got, err := realData(filepath.Join(dir, given))
		require.NoError(t, err)
		require.Equal(t, filepath.Join(dir, want), got, given)
	}
	relative, err := realData(".")
	require.NoError(t, err)
	require.True(t, filepath.IsAbs(relative))
}
