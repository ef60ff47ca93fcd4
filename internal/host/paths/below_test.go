package paths

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A directory has as many names as links and bind mounts give it; below it is below each.
func TestBelow(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	root, link, bind := filepath.Join(dir, "root"), filepath.Join(dir, "link"), filepath.Join(dir, "bind")
	for _, d := range []string{filepath.Join(root, "a/b"), root + "-not", bind} {
		require.NoError(t, os.MkdirAll(d, 0o700))
	}
	file := filepath.Join(root, "a/b/file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	outside := filepath.Join(root+"-not", "file")
	require.NoError(t, os.WriteFile(outside, nil, 0o600))
	require.NoError(t, os.Symlink(root, link))
	names := []string{root, link, root + "/a/.."}
	if os.Geteuid() == 0 {
		require.NoError(t, unix.Mount(root, bind, "", unix.MS_BIND, ""))
		t.Cleanup(func() { require.NoError(t, unix.Unmount(bind, 0)) })
		names = append(names, bind)
	}
	for _, top := range names {
		for _, name := range names {
			rel, below, err := Below(filepath.Join(name, "a/b/file"), top)
			require.NoError(t, err)
			require.True(t, below, "%s in %s", name, top)
			require.Equal(t, "a/b/file", rel)
		}
		_, below, err := Below(outside, top)
		require.NoError(t, err)
		require.False(t, below)
		_, _, err = Below(filepath.Join(top, "a/none"), top)
		require.ErrorIs(t, err, os.ErrNotExist)
	}
	_, below, err := Below(root, root)
	require.NoError(t, err)
	require.False(t, below, "it is not below itself")
	_, _, err = Below(file, filepath.Join(dir, "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
