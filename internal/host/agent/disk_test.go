package agent

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/sandbox"
)

func TestDoctorSaysHowFullTheDiskIs(t *testing.T) {
	t.Parallel()
	d := sandbox.Disk{
		Path: "/data/sandboxes", Space: sandbox.Space{Total: 100 << 30, Free: 3 << 30}, UsedPercent: 97,
		State: sandbox.FillFull, Limits: sandbox.DefaultDiskLimits, ReserveWanted: 1 << 30, Frozen: []string{"a"},
	}
	c := checkDisk(d)
	require.Equal(t, "fail", c.GetStatus())
	require.Contains(t, c.GetDetail(), "97 % full (3.0 GiB of 100.0 GiB free under /data/sandboxes); 0 MiB of 1024 MiB reserved")
	require.Contains(t, c.GetDetail(), "1 sandboxes stand still")
	require.NotEmpty(t, c.GetHint())
	d.State, d.UsedPercent = sandbox.FillFilling, 81
	require.Equal(t, "warn", checkDisk(d).GetStatus())
	d.State = sandbox.FillOK
	require.Equal(t, "ok", checkDisk(d).GetStatus())
	require.Empty(t, checkDisk(d).GetHint())
	require.Equal(t, []string{"a"}, toDisk(d).GetFrozen())
}
