package dm

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// TestPrivateNodes: where /dev has no nodes for it, they are made, and the control's is gone at once.
func TestPrivateNodes(t *testing.T) {
	t.Parallel()
	file, err := openPrivate(unix.Mkdev(1, 5)) // /dev/zero is a character device on every host
	require.NoError(t, err)
	require.NoError(t, file.Close())
	require.NoFileExists(t, file.Name())

	path := filepath.Join(t.TempDir(), "dm", "dm-7")
	for _, dev := range []uint64{unix.Mkdev(253, 7), unix.Mkdev(252, 7)} {
		require.NoError(t, makeNode(path, dev))
		require.True(t, isNode(path, dev), "a node of a device that is gone is replaced")
	}
	require.False(t, isNode(path, unix.Mkdev(253, 7)))
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*"))
	require.NoError(t, err)
	require.Equal(t, []string{path}, left)
}

func TestControlByPrivateNode(t *testing.T) {
	t.Parallel()
	minor, err := controlMinor()
	if fault.Is(err, fault.FailedPrecondition) {
		require.Contains(t, fault.HintOf(err), "modprobe")
		_, err := Open()
		require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
		t.Skip("needs device-mapper: run it in the lane, make vmtest PKG=./internal/host/disk/devicemapper/dm")
	}
	require.NoError(t, err)
	file, err := openPrivate(unix.Mkdev(miscMajor, minor))
	require.NoError(t, err)
	c := &Control{file: file}
	_, err = c.Version()
	require.NoError(t, err)
	require.NoError(t, c.Close())
}
