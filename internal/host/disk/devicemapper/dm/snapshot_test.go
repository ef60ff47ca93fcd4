package dm_test

import (
	"crypto/sha256"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/dm"
)

func sum(t *testing.T, path string) [32]byte {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return sha256.Sum256(b)
}

func status(t *testing.T, c *dm.Control, name string) dm.SnapshotStatus {
	t.Helper()
	table, err := c.Status(name)
	require.NoError(t, err)
	require.Len(t, table, 1)
	s, err := dm.ParseSnapshotStatus(table[0].Params)
	require.NoError(t, err)
	return s
}

func TestSnapshot(t *testing.T) {
	t.Parallel()
	c := control(t)
	basePath, cowPath := file(t, mb, "the base"), file(t, 2*mb, "")
	before := sum(t, basePath)
	base, cow := attach(t, basePath, true), attach(t, cowPath, false)
	table := dm.Snapshot(0, sectors, base, cow, true, chunk)
	name, uuid := newName()
	info, err := c.Make(t.Context(), name, uuid, []dm.Target{table}, false)
	require.NoError(t, err)
	require.Equal(t, "the base", read(t, c, info, 0, 8))
	fresh := status(t, c, name)
	require.EqualValues(t, 2*mb/dm.SectorSize, fresh.Total)
	require.Equal(t, fresh.Metadata, fresh.Used)
	write(t, c, info, 4, "disk")
	write(t, c, info, 100*4096, "far")
	require.EqualValues(t, fresh.Used+2*chunk, status(t, c, name).Used)
	remove(t, c, name)

	// A new device over the same store is the same disk.
	info = mapped(t, c, false, table)
	require.Equal(t, "the disk", read(t, c, info, 0, 8))
	require.Equal(t, "far", read(t, c, info, 100*4096, 3))
	require.Equal(t, before, sum(t, basePath))
}

// TestReadOnlySnapshot: a store that was sealed serves as a layer, from a file and a loop device
// that cannot be written to, under any number of tops at once.
func TestReadOnlySnapshot(t *testing.T) {
	t.Parallel()
	c := control(t)
	base := attach(t, file(t, mb, "the base"), true)
	layerPath := file(t, 2*mb, "")
	first := mapped(t, c, false, dm.Snapshot(0, sectors, base, attach(t, layerPath, false), true, chunk))
	write(t, c, first, 4, "disk")
	remove(t, c, first.Name)
	require.NoError(t, os.Chmod(layerPath, 0o400))
	before := sum(t, layerPath)

	layer := attach(t, layerPath, true)
	var below, tops [2]dm.Info
	for i := range below { // each over an origin of its own: see TestOneStoreOneOrigin
		origin := mapped(t, c, true, dm.Linear(0, sectors, base, 0))
		below[i] = mapped(t, c, true, dm.Snapshot(0, sectors, origin.Dev, layer, true, chunk))
		tops[i] = mapped(t, c, false, dm.Snapshot(0, sectors, below[i].Dev, attach(t, file(t, 2*mb, ""), false), true, chunk))
		require.Equal(t, "the disk", read(t, c, tops[i], 0, 8))
	}
	require.True(t, below[0].ReadOnly)
	shared := mapped(t, c, false, dm.Snapshot(0, sectors, below[0].Dev, attach(t, file(t, 2*mb, ""), false), true, chunk))
	write(t, c, tops[0], 0, "one")
	write(t, c, tops[1], 0, "two")
	require.Equal(t, "one disk", read(t, c, tops[0], 0, 8))
	require.Equal(t, "two disk", read(t, c, tops[1], 0, 8))
	require.Equal(t, "the disk", read(t, c, shared, 0, 8))
	require.Equal(t, "the disk", read(t, c, below[0], 0, 8))
	require.Equal(t, before, sum(t, layerPath))
}

// TestOneStoreOneOrigin: two snapshots of one origin with one store are a handover to the kernel,
// which it refuses while the first is live. So each disk needs an origin device of its own, or
// shares the layer's device.
func TestOneStoreOneOrigin(t *testing.T) {
	t.Parallel()
	c := control(t)
	base := attach(t, file(t, mb, "the base"), true)
	store := dm.Snapshot(0, sectors, base, attach(t, file(t, 2*mb, ""), false), true, chunk)
	mapped(t, c, false, store)
	name, uuid := newName()
	_, err := c.Make(t.Context(), name, uuid, []dm.Target{store}, true)
	require.True(t, fault.Is(err, fault.Invalid), "%v", err)
	_, err = c.Info(name)
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
}

// TestReadOnlySnapshotOfNothing: a layer that is no store, all zeros, is refused, not made one.
func TestReadOnlySnapshotOfNothing(t *testing.T) {
	t.Parallel()
	c := control(t)
	base := attach(t, file(t, mb, "the base"), true)
	path := file(t, 2*mb, "")
	before := sum(t, path)
	name, uuid := newName()
	_, err := c.Make(t.Context(), name, uuid, []dm.Target{dm.Snapshot(0, sectors, base, attach(t, path, true), true, chunk)}, true)
	if err == nil {
		remove(t, c, name)
	}
	t.Logf("the kernel says: %v", err)
	require.Equal(t, before, sum(t, path))
}

// TestReloadOverItself is a seal while somebody has the device open: its store becomes a layer
// under it, and its node stays.
func TestReloadOverItself(t *testing.T) {
	t.Parallel()
	c := control(t)
	base := attach(t, file(t, mb, "the base"), true)
	sealedPath := file(t, 2*mb, "")
	info := mapped(t, c, false, dm.Snapshot(0, sectors, base, attach(t, sealedPath, false), true, chunk))
	f := open(t, c, info, os.O_RDWR)
	defer f.Close()
	_, err := f.WriteAt([]byte("disk"), 4)
	require.NoError(t, err)
	require.NoError(t, f.Sync())

	require.NoError(t, c.Suspend(info.Name, dm.SuspendOptions{SkipLockfs: true}))
	layer := mapped(t, c, true, dm.Snapshot(0, sectors, base, attach(t, sealedPath, true), true, chunk))
	next := attach(t, file(t, 2*mb, ""), false)
	require.NoError(t, c.Load(t.Context(), info.Name, []dm.Target{dm.Snapshot(0, sectors, layer.Dev, next, true, chunk)}, false))
	again, err := c.Resume(info.Name)
	require.NoError(t, err)
	require.Equal(t, info.Dev, again.Dev)
	before := sum(t, sealedPath)

	_, err = f.WriteAt([]byte("new"), 0)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.Equal(t, "new disk", read(t, c, info, 0, 8))
	require.Equal(t, "the disk", read(t, c, layer, 0, 8))
	require.Equal(t, before, sum(t, sealedPath))
	require.NoError(t, f.Close())
	remove(t, c, info.Name)
}

// TestClearTable: a seal that was given up leaves the disk as it was, and what comes after it (a
// rename, the removal) does not meet the kernel's double free.
func TestClearTable(t *testing.T) {
	t.Parallel()
	c := control(t)
	base := attach(t, file(t, mb, "the base"), true)
	next := attach(t, file(t, 2*mb, ""), false)
	table := dm.Snapshot(0, sectors, base, attach(t, file(t, 2*mb, ""), false), true, chunk)
	for _, suspended := range []bool{true, false} {
		name, uuid := newName()
		info, err := c.Make(t.Context(), name, uuid, []dm.Target{table}, false)
		require.NoError(t, err)
		write(t, c, info, 4, "disk")
		if suspended {
			require.NoError(t, c.Suspend(name, dm.SuspendOptions{SkipLockfs: true}))
		}
		require.NoError(t, c.Load(t.Context(), name, []dm.Target{dm.Snapshot(0, sectors, base, next, true, chunk)}, false))
		require.NoError(t, c.ClearTable(name))
		require.NoError(t, c.ClearTable(name))
		info, err = c.Info(name)
		require.NoError(t, err)
		require.True(t, info.LiveTable && !info.InactiveTable && !info.Suspended && !info.ReadOnly, "%+v", info)
		live, err := c.Table(name)
		require.NoError(t, err)
		require.Equal(t, []dm.Target{table}, live)
		require.Equal(t, "the disk", read(t, c, info, 0, 8))
		write(t, c, info, 0, "one")
		to, _ := newName()
		require.NoError(t, c.Rename(name, to))
		require.False(t, status(t, c, to).Invalid)
		remove(t, c, to)
		info, err = c.Make(t.Context(), name, uuid, []dm.Target{table}, false)
		require.NoError(t, err)
		require.Equal(t, "one disk", read(t, c, info, 0, 8), "its store is whole")
		write(t, c, info, 0, "the")
		remove(t, c, name)
	}
}

// TestOverflow: a store that is too small loses the snapshot, says so, and the base is whole.
func TestOverflow(t *testing.T) {
	t.Parallel()
	c := control(t)
	basePath := file(t, mb, "the base")
	before := sum(t, basePath)
	info := mapped(t, c, false, dm.Snapshot(0, sectors, attach(t, basePath, true), attach(t, file(t, 64<<10, ""), false), true, chunk))
	f := open(t, c, info, os.O_RDWR)
	_, err := f.WriteAt([]byte(strings.Repeat("x", mb/2)), 0)
	if err == nil {
		err = f.Sync()
	}
	require.Error(t, err)
	_ = f.Close() // what could not be written is told again
	require.True(t, status(t, c, info.Name).Invalid)
	after, err := c.Info(info.Name)
	require.NoError(t, err)
	require.Greater(t, after.EventNr, info.EventNr)
	require.Equal(t, before, sum(t, basePath))
}
