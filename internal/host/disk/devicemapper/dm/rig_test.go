package dm_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/dm"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/loop"
)

const (
	mb      = 1 << 20
	sectors = mb / dm.SectorSize // in a MiB
	chunk   = 8                  // sectors
)

var registry = loop.NewRegistry(prefix)

// control opens device-mapper for a test, or skips it.
func control(t *testing.T) *dm.Control {
	t.Helper()
	c, err := dm.Open()
	if fault.Is(err, fault.FailedPrecondition) {
		t.Skip("needs device-mapper: run it in the lane, make vmtest PKG=./internal/host/disk/devicemapper/dm")
	}
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

var count atomic.Int64

// newName is a name and UUID that no other test has.
func newName() (name, uuid string) {
	n := count.Add(1)
	return fmt.Sprintf("%s-%d", prefix, n), fmt.Sprintf("ROOST-dmt5-%d", n)
}

// mapped makes a device that is removed at the end of the test.
func mapped(t *testing.T, c *dm.Control, readOnly bool, table ...dm.Target) dm.Info {
	t.Helper()
	name, uuid := newName()
	info, err := c.Make(t.Context(), name, uuid, table, readOnly)
	require.NoError(t, err)
	t.Cleanup(func() { remove(t, c, name) })
	return info
}

// limit is for what must end, on whatever machine.
const limit = 2 * time.Minute

func remove(t *testing.T, c *dm.Control, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), limit)
	defer cancel()
	require.NoError(t, c.Remove(ctx, name))
}

// file makes a sparse file that begins with text.
func file(t *testing.T, size int64, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, loop.CreateSparse(path, size, 0o600))
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString(text)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return path
}

// attach attaches a file until the end of the test.
func attach(t *testing.T, path string, readOnly bool) uint64 {
	t.Helper()
	ref, err := registry.Acquire(t.Context(), path, readOnly)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, ref.Release()) })
	return ref.Dev
}

// open opens a device's node.
func open(t *testing.T, c *dm.Control, info dm.Info, mode int) *os.File {
	t.Helper()
	node, err := c.Node(info)
	require.NoError(t, err)
	f, err := os.OpenFile(node, mode, 0)
	require.NoError(t, err)
	return f
}

func write(t *testing.T, c *dm.Control, info dm.Info, offset int64, text string) {
	t.Helper()
	f := open(t, c, info, os.O_RDWR)
	defer f.Close()
	_, err := f.WriteAt([]byte(text), offset)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
}

func read(t *testing.T, c *dm.Control, info dm.Info, offset int64, size int) string {
	t.Helper()
	f := open(t, c, info, os.O_RDONLY)
	defer f.Close()
	b := make([]byte, size)
	_, err := f.ReadAt(b, offset)
	require.NoError(t, err)
	return string(b)
}
