//go:build failpoints

package dm_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/dm"
)

// A kernel that fails at one step. Not parallel: the environment is shared.

func TestFailedMakeLeavesNothing(t *testing.T) {
	c := control(t)
	before, err := c.List()
	require.NoError(t, err)
	for _, step := range []string{"devicemapper.ioctl.create", "devicemapper.ioctl.load", "devicemapper.ioctl.resume"} {
		t.Setenv("ROOST_FAILPOINTS", step+"=error")
		name, uuid := newName()
		_, err := c.Make(t.Context(), name, uuid, []dm.Target{dm.Zero(0, 8)}, false)
		require.ErrorContains(t, err, step)
		_, err = c.Info(name)
		require.True(t, fault.Is(err, fault.NotFound), "%v", err)
	}
	t.Setenv("ROOST_FAILPOINTS", "")
	after, err := c.List()
	require.NoError(t, err)
	require.Equal(t, before, after)
}

func TestFailedStepsChangeNothing(t *testing.T) {
	c := control(t)
	info := mapped(t, c, false, dm.Zero(0, 8))
	to, _ := newName()
	for step, run := range map[string]func() error{
		"devicemapper.ioctl.suspend": func() error { return c.Suspend(info.Name, dm.SuspendOptions{}) },
		"devicemapper.ioctl.rename":  func() error { return c.Rename(info.Name, to) },
		"devicemapper.ioctl.remove":  func() error { return c.Remove(t.Context(), info.Name) },
	} {
		t.Setenv("ROOST_FAILPOINTS", step+"=error")
		require.ErrorContains(t, run(), step)
		after, err := c.Info(info.Name)
		require.NoError(t, err)
		require.Equal(t, info, after)
	}
	t.Setenv("ROOST_FAILPOINTS", "")
}
