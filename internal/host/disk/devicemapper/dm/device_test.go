package dm_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/dm"
)

func TestLife(t *testing.T) {
	t.Parallel()
	c := control(t)
	version, err := c.Version()
	require.NoError(t, err)
	require.Regexp(t, `^4\.\d+\.\d+$`, version)
	targets, err := c.Targets()
	require.NoError(t, err)
	require.Subset(t, names(targets), []string{"linear", "error", "snapshot", "zero"})

	base := attach(t, file(t, mb, "the base"), true)
	name, uuid := newName()
	info, err := c.Create(t.Context(), name, uuid)
	require.NoError(t, err)
	t.Cleanup(func() { remove(t, c, name) })
	require.Equal(t, dm.Info{Name: name, UUID: uuid, Dev: info.Dev, Major: info.Major, Minor: info.Minor}, info)

	table := []dm.Target{dm.Linear(0, sectors, base, 0), dm.Zero(sectors, sectors)}
	require.NoError(t, c.Load(t.Context(), name, table, true))
	info, err = c.Info(name)
	require.NoError(t, err)
	require.True(t, info.InactiveTable)
	require.False(t, info.LiveTable)

	info, err = c.Resume(name)
	require.NoError(t, err)
	require.True(t, info.LiveTable && !info.InactiveTable && info.ReadOnly && !info.Suspended, "%+v", info)
	loaded, err := c.Table(name)
	require.NoError(t, err)
	require.Equal(t, table, loaded)
	deps, err := c.Deps(name)
	require.NoError(t, err)
	require.Equal(t, []uint64{base}, deps)
	list, err := c.List()
	require.NoError(t, err)
	require.Contains(t, list, dm.Entry{Name: name, Dev: info.Dev})

	require.Equal(t, "the base", read(t, c, info, 0, 8))
	require.Equal(t, strings.Repeat("\x00", mb), read(t, c, info, mb, mb))

	require.NoError(t, c.Suspend(name, dm.SuspendOptions{SkipLockfs: true}))
	require.NoError(t, c.Suspend(name, dm.SuspendOptions{NoFlush: true}))
	info, err = c.Info(name)
	require.NoError(t, err)
	require.True(t, info.Suspended)
	require.NoError(t, c.Load(t.Context(), name, table[:1], true))
	require.NoError(t, c.ClearTable(name))
	info, err = c.Resume(name)
	require.NoError(t, err)
	require.False(t, info.Suspended)

	to, _ := newName()
	require.NoError(t, c.Rename(name, to))
	moved, err := c.Info(to)
	require.NoError(t, err)
	require.Equal(t, info.Dev, moved.Dev)
	require.Equal(t, uuid, moved.UUID)
	_, err = c.Info(name)
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
	remove(t, c, to)
	remove(t, c, to)
	_, err = c.Info(to)
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
}

func names(targets []dm.TargetVersion) []string {
	var list []string
	for _, t := range targets {
		list = append(list, t.Name)
	}
	return list
}

func TestKindsOfErrors(t *testing.T) {
	t.Parallel()
	c := control(t)
	info := mapped(t, c, false, dm.Zero(0, 8))
	_, err := c.Create(t.Context(), info.Name, "")
	require.True(t, fault.Is(err, fault.AlreadyExists), "%v", err)
	_, uuid := newName()
	_, err = c.Make(t.Context(), info.Name, uuid, []dm.Target{dm.Zero(0, 16)}, false)
	require.True(t, fault.Is(err, fault.AlreadyExists), "%v", err)
	table, err := c.Table(info.Name)
	require.NoError(t, err, "Make undoes what it made, and nothing else")
	require.Equal(t, []dm.Target{dm.Zero(0, 8)}, table)

	other := mapped(t, c, false, dm.Error(0, 8))
	require.True(t, fault.Is(c.Rename(info.Name, other.Name), fault.AlreadyExists))
	missing, _ := newName()
	_, err = c.Resume(missing)
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
	_, err = c.Status(missing)
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
	_, err = c.Info("")
	require.True(t, fault.Is(err, fault.Invalid), "%v", err)
	_, err = c.Create(t.Context(), strings.Repeat("x", 128), "")
	require.True(t, fault.Is(err, fault.Invalid), "%v", err)
}

func TestMakeUndoesItself(t *testing.T) {
	t.Parallel()
	c := control(t)
	for _, table := range [][]dm.Target{
		{{Start: 0, Length: 8, Type: "no-such-type"}},
		{{Start: 0, Length: 8, Type: "linear", Params: "not a device"}},
		{dm.Zero(8, 8)}, // a hole at the start
		{},              // resume without a table
	} {
		name, uuid := newName()
		_, err := c.Make(t.Context(), name, uuid, table, false)
		if len(table) > 0 {
			require.True(t, fault.Is(err, fault.Invalid), "%v", err)
			require.NotEmpty(t, fault.HintOf(err))
		}
		if err == nil {
			remove(t, c, name)
		}
		_, err = c.Info(name)
		require.True(t, fault.Is(err, fault.NotFound), "%v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	name, uuid := newName()
	_, err := c.Make(ended, name, uuid, []dm.Target{dm.Zero(0, 8)}, false)
	require.True(t, fault.Is(err, fault.Canceled), "%v", err)
}

// TestCounts: what a disk costs in ioctls.
func TestCounts(t *testing.T) {
	t.Parallel()
	c := control(t)
	base, cow := attach(t, file(t, mb, "base"), true), attach(t, file(t, 2*mb, ""), false)
	before := c.Calls()
	origin, uuid := newName()
	below, err := c.Make(t.Context(), origin, uuid, []dm.Target{dm.Linear(0, sectors, base, 0), dm.Zero(sectors, sectors)}, true)
	require.NoError(t, err)
	top, uuid := newName()
	_, err = c.Make(t.Context(), top, uuid, []dm.Target{dm.Snapshot(0, 2*sectors, below.Dev, cow, true, chunk)}, false)
	require.NoError(t, err)
	remove(t, c, top)
	remove(t, c, origin)
	after := c.Calls()
	for call, n := range map[string]uint64{"create": 2, "load": 2, "suspend or resume": 2} {
		require.Equal(t, n, after[call]-before[call], call)
	}
	// Nobody has it open, so one try each; on a busy machine udev might have looked at it.
	require.GreaterOrEqual(t, after["remove"]-before["remove"], uint64(2))
	t.Logf("ioctls since Open: %v", after)
}

func TestClosed(t *testing.T) {
	t.Parallel()
	c := control(t)
	d, err := dm.Open()
	require.NoError(t, err)
	require.NoError(t, d.Close())
	_, err = d.List()
	require.ErrorContains(t, err, "closed")
	_, err = c.List()
	require.NoError(t, err)
}

func TestReadOnlyDeviceRefusesWrites(t *testing.T) {
	t.Parallel()
	c := control(t)
	info := mapped(t, c, true, dm.Zero(0, sectors))
	node, err := c.Node(info)
	require.NoError(t, err)
	f, err := os.OpenFile(node, os.O_RDWR, 0)
	if err == nil { // some kernels refuse at open, some at the write
		_, err = f.Write(make([]byte, 512))
		if err == nil {
			err = f.Sync()
		}
		require.NoError(t, f.Close())
	}
	require.Error(t, err)
}
